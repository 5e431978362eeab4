"""The launch files are valid for their tools, and `mdw` accepts every command in them."""

import configparser
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from mdw_jax.cli import main
from mdw_jax.cli.arguments import parse
from mdw_jax.config.loading import load_config
from mdw_jax.config.overrides import preset_config

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
CONFIG = "quickstart"


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Puts commands on the PATH that log their words and then run a script; returns a reader of the log."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(name, script=""):
        path = tmp_path / name
        # In one write: commands that run at the same time write to the same log.
        log = f'words=$(printf "%s\\037" "$@"; printf "\\036"); printf "%s" "$words" >> "{tmp_path}/{name}.log"'
        path.write_text(f"#!/usr/bin/env bash\n{log}\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

        def words():
            calls = (tmp_path / f"{name}.log").read_text().split("\036")[:-1]
            return [call.split("\037")[:-1] for call in calls]

        return words

    return make


@pytest.mark.parametrize("script", [*sorted(LAUNCH.glob("*.sh")), *sorted((ROOT / ".ci").iterdir())],
                         ids=lambda path: path.name)
def test_scripts_are_shell(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    if shutil.which("shellcheck"):  # .ci/run installs it, and runs it too
        subprocess.run(["shellcheck", script], check=True)


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_say_what_is_missing(script, monkeypatch):
    for name in ("NAME", "ZONE"):
        monkeypatch.setenv(name, "x")
    done = subprocess.run([script], capture_output=True, text=True)
    assert done.returncode and re.search("name of a config, or a file|directory of the results", done.stderr)


def test_every_line_of_the_grid_is_a_sweep_that_resolves(tmp_path, capsys, stub, monkeypatch):
    commands = stub("mdw")
    monkeypatch.setenv("SHARD", "1/2")
    subprocess.run([LAUNCH / "grid.sh", CONFIG, tmp_path / "run", "--config.distill.pairs=100"], check=True)
    assert len(commands()) >= 10
    for words in commands():
        assert main([*words, "--dry-run"]) == 0, (words, capsys.readouterr().err)


def test_every_line_of_the_gpu_check_resolves(tmp_path, capsys, stub, monkeypatch):
    commands = stub("mdw")
    stub("python", 'cat > /dev/null; echo "devices: stub"')
    monkeypatch.setenv("FLICKR8K", str(tmp_path / "flickr8k"))
    subprocess.run([LAUNCH / "gpu_check.sh", tmp_path / "out"], check=True, capture_output=True)
    benches = [words for words in commands() if words[0] == "bench"]
    sweeps = [words for words in commands() if words[0] == "sweep"]
    assert len(benches) == 5 and len(sweeps) == 9
    for words in benches:
        preset_config(parse(words).config and load_config(parse(words).config, parse(words).overrides), "mdw")
    for words in sweeps:
        assert main([*words, "--dry-run"]) == 0, (words, capsys.readouterr().err)
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.count("status 0") == 14 and "left out" not in summary


def test_the_gpu_check_says_that_there_is_no_gpu_and_what_it_leaves_out(tmp_path, stub, monkeypatch):
    stub("mdw")
    stub("python", "cat > /dev/null; echo 'no GPU here' >&2; exit 1")
    done = subprocess.run([LAUNCH / "gpu_check.sh", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 2 and "no GPU here" in done.stderr and not (tmp_path / "mdw.log").exists()
    stub("python", "cat > /dev/null")
    subprocess.run([LAUNCH / "gpu_check.sh", tmp_path / "out", "0"], check=True, capture_output=True)
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.count("left out, no time") == 5 and "FLICKR8K is not set" in summary


def test_a_stopped_grid_does_not_go_on(stub, tmp_path, monkeypatch):
    commands = stub("mdw", 'exit "$STATUS"')
    for status, goes_on in (("130", False), ("85", False), ("2", True)):
        monkeypatch.setenv("STATUS", status)
        before = len(commands()) if (tmp_path / "mdw.log").exists() else 0
        done = subprocess.run([LAUNCH / "grid.sh", CONFIG, tmp_path / "run"], capture_output=True, text=True)
        lines = (LAUNCH / "grid.sh").read_text().count("\ncells --grid")
        assert done.returncode == (1 if goes_on else int(status))
        assert len(commands()) - before == (lines if goes_on else 1)


def _resolves(words, capsys):
    """Whether `mdw WORDS` is a run whose config can be read."""
    assert words[0] == "run" and main(["config", *words[1:]]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_one_local_process_is_plain(stub, capsys):
    commands = stub("mdw", "env | grep ^MDW_ >&2; exit 7")
    for config in (CONFIG, str(ROOT / "configs" / "quickstart.py")):  # a name, or a file
        done = subprocess.run([LAUNCH / "local.sh", config, "--config.run.seed=3"], capture_output=True, text=True)
        assert done.returncode == 7 and done.stderr == ""
        assert _resolves(commands()[-1], capsys)["run"]["seed"] == 3


def test_local_processes_know_of_each_other(stub, monkeypatch, capsys):
    stub("nvidia-smi")
    commands = stub("mdw", 'echo "$MDW_COORDINATOR $MDW_PROCESSES $MDW_PROCESS $CUDA_VISIBLE_DEVICES" >&2')
    monkeypatch.setenv("PROCESSES", "3")
    done = subprocess.run([LAUNCH / "local.sh", CONFIG, "--config.run.dir=a b"], capture_output=True, text=True)
    assert done.returncode == 0
    variables = sorted(line.split() for line in done.stderr.splitlines())
    assert len({address for address, *_ in variables}) == 1 and re.fullmatch(r"localhost:\d{5}", variables[0][0])
    assert [rest for _, *rest in variables] == [["3", str(n), str(n)] for n in range(3)]
    assert len(commands()) == 3 and _resolves(commands()[0], capsys)["run"]["dir"] == "a b"


WAITS = """trap 'sleep 0.2; echo saved >> "$0.saved"; exit 0' TERM
touch "$0.$MDW_PROCESS.waits"
for ((i = 0; i < 200; i++)); do sleep 0.05; done; exit 9"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_local_stop_reaches_all_processes_and_waits_for_them(stub, tmp_path, monkeypatch, number, status):
    stub("mdw", WAITS)
    monkeypatch.setenv("PROCESSES", "2")
    # A shell that runs tests in the background has them ignore Ctrl-C, and a shell cannot trap what it is to ignore.
    process = subprocess.Popen([LAUNCH / "local.sh", CONFIG],
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    for _ in range(200):
        if len(list(tmp_path.glob("mdw.*.waits"))) == 2:
            break
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(20) == status
    assert (tmp_path / "mdw.saved").read_text() == "saved\nsaved\n"


def test_a_local_failure_ends_the_others(stub, tmp_path, monkeypatch):
    stub("mdw", f'if [[ $MDW_PROCESS == 1 ]]; then sleep 0.3; exit 5; fi\n{WAITS}')
    monkeypatch.setenv("PROCESSES", "2")
    assert subprocess.run([LAUNCH / "local.sh", CONFIG], timeout=20).returncode == 5
    assert (tmp_path / "mdw.saved").read_text() == "saved\n"


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (2, False), (85, True)])
def test_slurm_puts_a_stopped_run_back_into_the_queue(stub, monkeypatch, capsys, status, requeued):
    runs, requeues = stub("srun", f'[[ $MDW_DISTRIBUTED == 1 ]] || exit 1; exit "{status}"'), stub("scontrol")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    done = subprocess.run([LAUNCH / "slurm.sh", CONFIG, "--config.run.seed=3"], capture_output=True,
                          env={**os.environ, "MDW_STATUS_WHEN_STOPPED": ""})
    assert done.returncode == status
    [[program, *words]] = runs()
    assert program == "mdw" and _resolves(words, capsys)["run"]["seed"] == 3
    if requeued:
        assert requeues() == [["requeue", "17"]]


def test_local_processes_take_the_gpus_that_are_given(stub, monkeypatch):
    stub("nvidia-smi")
    stub("mdw", 'echo "$MDW_PROCESS $CUDA_VISIBLE_DEVICES" >&2')
    monkeypatch.setenv("PROCESSES", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    done = subprocess.run([LAUNCH / "local.sh", CONFIG], capture_output=True, text=True)
    assert sorted(done.stderr.split("\n"))[1:] == ["0 4", "1 6"]


def test_slurm_refuses_one_process_for_the_gpus_of_several_nodes(stub, monkeypatch):
    runs = stub("srun")
    for nodes, tasks, refused in (("1", "1", False), ("2", "16", False), ("2", "2", True)):
        for name, value in {"SLURM_NNODES": nodes, "SLURM_NTASKS": tasks, "SLURM_GPUS_ON_NODE": "8"}.items():
            monkeypatch.setenv(name, value)
        done = subprocess.run([LAUNCH / "slurm.sh", CONFIG], capture_output=True, text=True)
        assert done.returncode == (2 if refused else 0) and ("--ntasks-per-node=8" in done.stderr) == refused
    assert len(runs()) == 2


def test_slurm_options():
    text = (LAUNCH / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, re.MULTILINE))
    assert len(options) == text.count("#SBATCH") and "requeue" in options
    assert (options["nodes"], options["ntasks-per-node"]) == ("1", "1")
    assert options["signal"] == "TERM@120"  # to the processes, not to the script alone (B:), and well before the end
    before_any_command = text[: text.index("set -euo")]
    assert before_any_command.count("#SBATCH") == len(options)  # SLURM reads no further
    assert "MDW_STATUS_WHEN_STOPPED=85" in text and "status == 85" in text
    if shutil.which("sbatch"):
        subprocess.run(["sbatch", "--test-only", LAUNCH / "slurm.sh", CONFIG], check=True)


def test_the_job_set_is_one_that_kubernetes_takes(capsys):
    job_set = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [replicated] = job_set["spec"]["replicatedJobs"]
    job, pod = replicated["template"]["spec"], replicated["template"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0  # or podFailurePolicy is not allowed, or idle
    assert pod["terminationGracePeriodSeconds"] > 30
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert all(isinstance(value, str) for name, value in variables.items() if name != "MDW_PROCESS")
    assert replicated["replicas"] == 1 and job["parallelism"] == job["completions"] == int(variables["MDW_PROCESSES"])
    names = job_set["metadata"]["name"], replicated["name"]
    assert variables["MDW_COORDINATOR"].rpartition(":")[0] == f"{names[0]}-{names[1]}-0-0.{names[0]}"
    [by_status, by_node] = job["podFailurePolicy"]["rules"]
    assert by_status["onExitCodes"] == {"containerName": container["name"], "operator": "In",
                                        "values": [int(variables["MDW_STATUS_WHEN_STOPPED"])]}
    assert by_node["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert {rule["action"] for rule in (by_status, by_node)} == {"FailJob"}
    [rule] = job_set["spec"]["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"] and rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert "command" not in container and _resolves(container["args"], capsys)["run"]["dir"].startswith("/shared/")


def test_a_tpu_slice_is_requested_once_and_runs_the_command(stub, tmp_path, monkeypatch, capsys):
    states = tmp_path / "states"
    states.write_text("SUSPENDED\n\nWAITING_FOR_RESOURCES\nWAITING_FOR_RESOURCES\nACTIVE\n")
    calls = stub("gcloud", f'if [[ $* == *" describe "* ]]; then head -n 1 "{states}"; sed -i 1d "{states}"; fi')
    for name, value in {"NAME": "slice", "ZONE": "us-central2-b", "TYPE": "v4-16", "MORE": "--spot", "POLL": "0",
                        "TMPDIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    subprocess.run([LAUNCH / "cloud_tpu.sh", CONFIG, "--config.run.dir=/shared/my runs"], check=True,
                   capture_output=True)
    assert all(words[:2] == ["compute", "tpus"] and "--zone=us-central2-b" in words for words in calls())
    verbs = [words[3] for words in calls() if words[3] != "describe"]
    assert verbs == ["delete", "create", "scp", "ssh", "ssh"]  # the suspended one makes room
    [create] = [words for words in calls() if words[3] == "create"]
    assert {"--accelerator-type=v4-16", "--node-id=slice", "--spot"} <= set(create)
    assert all("--worker=all" in words for words in calls() if words[3] in ("scp", "ssh"))
    assert "--runtime-version=tpu-ubuntu2204-base" in create
    install, command = (words[-3].removeprefix("--command=") for words in calls() if words[3] == "ssh")
    subprocess.run(["bash", "-n", "-c", install], check=True)
    kept = tmp_path / "host" / "mdw" / "runs" / "coco" / "scores.csv"
    kept.parent.mkdir(parents=True)
    kept.touch()
    (tmp_path / "host" / "mdw" / "old.py").touch()
    subprocess.run(["bash", "-c", install.partition("tar -xzf")[0].rstrip(" &\n")], cwd=tmp_path / "host", check=True)
    assert kept.exists() and not (tmp_path / "host" / "mdw" / "old.py").exists()  # results outlive another start
    # What the shell of a host makes of it.
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "mdw").mkdir()
    program = tmp_path / "env" / "bin" / "mdw"
    program.write_text('#!/usr/bin/env python3\nimport json, os, sys\nprint(json.dumps([os.environ["MDW_DISTRIBUTED"], '
                     '*sys.argv[1:]]))\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    output = subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    distributed, *words = json.loads(output)
    assert distributed == "1" and _resolves(words, capsys)["run"]["dir"] == "/shared/my runs"


def test_the_container_file():
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
    lines = [line.split(maxsplit=1) for line in (LAUNCH / "Dockerfile").read_text().splitlines()
             if line.strip() and not line.startswith("#")]
    assert all(len(line) == 2 and line[0] in known for line in lines)
    words = [line[0] for line in lines]
    assert words[0] == "FROM" and words.count("ENTRYPOINT") == 1 and words.count("RUN") >= 1
    image = lines[0][1]
    assert re.fullmatch(r"python:3\.1[1-9]-slim", image)  # of the public registry: no host in front
    assert json.loads(dict(lines)["ENTRYPOINT"]) == ["mdw"]  # a list: signals reach mdw itself
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored and {source for name, rest in lines if name == "COPY" for source in rest.split()[:-1]} <= sent
    for name, rest in lines:
        if name == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
        if name == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
            assert "--no-deps" in rest  # nothing but what the locks name, and the package


def _locked(file):
    """{package: version} of a lock, each with hashes, and no address of where it comes from."""
    text = (LAUNCH / "locks" / file).read_text()
    assert not re.search(r"https?:|^-|file:", text, re.MULTILINE)
    locked = {}
    for entry in filter(str.strip, re.sub(r"^#.*$", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()):
        pinned, *hashes = entry.split()
        name, _, version = pinned.partition("==")
        assert version and hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes), name
        locked[canonicalize_name(name)] = Version(version)
    return locked


def test_the_locks_of_the_container_are_within_the_bounds_of_the_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = [line for line in config["options"]["install_requires"].splitlines() if line.strip()]
    wanted += tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = _locked("base.txt")
    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name))
        assert version in requirement.specifier, f"{requirement}, and .ci/lock has {version}"


def test_the_locks_of_accelerators_are_of_the_same_jax():
    base = _locked("base.txt")
    files = {path.name for path in (LAUNCH / "locks").iterdir()}
    assert files == {"base.txt", "cpu.txt", "cuda12.txt", "cuda13.txt", "tpu.txt"} and not _locked("cpu.txt")
    for cuda in ("cuda12", "cuda13"):
        locked = _locked(f"{cuda}.txt")
        assert locked[f"jax-{cuda}-plugin"] == locked[f"jax-{cuda}-pjrt"] == base["jax"]
        assert not locked.keys() & base.keys()
    assert "libtpu" in _locked("tpu.txt")
