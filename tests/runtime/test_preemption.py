"""Runs that are stopped, by a signal or with kill -9, end where an undisturbed one does."""

import contextlib
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mdw_jax.pipeline.feature_cache import image_features
from mdw_jax.runtime import preemption

ROOT = Path(__file__).parents[2]
TINY = {
    "data.size": 16, "data.train": 60, "data.val": 30, "data.test": 30, "noise.rate": 0.4, "text.dim": 24,
    "model.mode": "projection", "model.patches": "8,", "model.widths": "16,", "model.dim": 8,
    "experts.count": 1, "experts.epochs": 3, "experts.teacher_epochs": 2, "experts.batch": 32,
    "distill.pairs": 8, "distill.steps": 6, "distill.inner_steps": 2, "distill.batch": 4, "distill.trajectories": 1,
    "distill.rank": 2, "distill.max_start_epoch": 1, "distill.checkpoint_every": 4, "distill.ceo_every": 3,
    "evaluate.students": 2, "evaluate.steps": 10, "evaluate.every": 5, "evaluate.batch": 8,
    "evaluate.lr_scales": "0.3,1.0", "run.presets": "mdw",
}
# Runs `mdw` several times, each in a fork of one process, for most of the time would go into imports. At the n-th
# call of a function, a run first sends itself a signal: where that is, the test says.
FORKS = """
import importlib, json, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
from mdw_jax.pipeline import distill, run
from mdw_jax.runtime import preemption
from mdw_jax.cli import main

def signal_at(module, name, n, number):
    module, calls = importlib.import_module(module), []
    function = getattr(module, name)
    def counted(*args, **named):
        calls.append(None)
        if len(calls) == n:
            os.kill(os.getpid(), number)
            while not preemption._received:
                time.sleep(0.01)
        return function(*args, **named)
    setattr(module, name, counted)

for words, at, log in json.loads(sys.argv[1]):
    process = os.fork()
    if not process:
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY), 2)
        if at:
            signal_at(*at)
        sys.exit(main(words))
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


def arguments(command, folder, **changes):
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return [command, f"--config={folder}.py", f"--config.run.dir={folder}",
            *(f"--config.{name}={value}" for name, value in settings.items())]


def environment():
    variables = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
                          "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    cache = jax.config.jax_compilation_cache_dir
    return variables | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {})


@pytest.fixture
def run(tmp_path_factory):
    """A folder of that name, with a config file beside it."""

    def make(name):
        folder = tmp_path_factory.mktemp("runs") / name
        Path(f"{folder}.py").write_text("from mdw_jax.config import base as get_config\n")
        return folder

    return make


def results(folder):
    """{path: bytes} of what a run is for: experts, sets, metrics and scores; times and paths are in none of them."""
    names = ("division.npy", "correct.npy", "experts.json", "log.jsonl", "metrics.jsonl", "distilled.safetensors",
            "metrics.csv", "scores.csv", "table.md")
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.name in names or path.name.startswith("scores-")}


def left_over(folder):
    """Names of what only an unfinished run needs."""
    return [path.name for path in folder.rglob("*")
            if re.search(r"^checkpoint|^history|^candidates|^start|^state-|^teachers-|part$|tmp", path.name)]


def test_stopped_runs_end_where_an_undisturbed_one_does(run):
    whole, stopped = run("whole"), run("stopped")
    runs = [
        # Where it gets the signal, and: exit status, what is left on the way, what it says.
        (whole, None, 0, set(), "done, 6 steps"),
        # In the second epoch of the experts.
        (stopped, ("mdw_jax.method.experts", "make_epoch_batches", 3, signal.SIGTERM), 0, {"state-experts.safetensors"},
         "stopped at 2/3 epochs"),
        # In the second step of the distillation (two keys for the first state, then one a step): it ends, and no
        # checkpoint is due there.
        (stopped, ("mdw_jax.pipeline.distill_loop", "named_key", 4, signal.SIGTERM), 0,
         {"checkpoint.safetensors", "history.jsonl", "candidates.jsonl"}, "stopped at 2/6 steps"),
        # While the set is scored on val, at the regular checkpoint; by Ctrl-C.
        (stopped, ("mdw_jax.pipeline.candidates", "evaluate", 1, signal.SIGINT), 130,
         {"checkpoint.safetensors", "history.jsonl", "candidates.jsonl"}, "stopped at 4/6 steps"),
        (stopped, None, 0, set(), "done, 6 steps"),
    ]
    logs = [f"{whole}-{n}.log" for n in range(len(runs))]
    jobs = [(arguments("distill", folder), at, log) for (folder, at, *_), log in zip(runs, logs, strict=True)]
    process = subprocess.Popen([sys.executable, "-c", FORKS, json.dumps(jobs)], env=environment(), text=True,
                               stdout=subprocess.PIPE)
    left = []
    for line in process.stdout:
        if line.strip().isdigit():
            left.append((int(line), set(left_over(runs[len(left)][0]))))
    assert process.wait() == 0 and len(left) == len(runs)
    for (_, at, status, names, words), found, log in zip(runs, left, logs, strict=True):
        output = Path(log).read_text()
        assert found == (status, names) and words in output and "Traceback" not in output, output
        assert ("the same command goes on where it stopped" in output) == bool(at)
    wanted = results(whole)
    assert len(wanted) == 7 and results(stopped) == wanted


@pytest.fixture
def child():
    """Starts Python on a text that listens to signals; ends it with the test."""
    started = []

    def start(text):
        text = ("import signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
                f"from mdw_jax.runtime import preemption\npreemption.GRACE = 1.0\n{text}")
        process = subprocess.Popen([sys.executable, "-c", text], env=environment(), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


# One call into C, as a compiled epoch is: none of Python's own handlers runs before it is over.
BUSY = ("import hashlib\nwith preemption.handle_signals():\n    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n")


@pytest.mark.parametrize(("number", "extra", "status"), [
    (signal.SIGTERM, {}, 0), (signal.SIGINT, {}, 130), (signal.SIGTERM, {"MDW_STATUS_WHEN_STOPPED": "85"}, 85)])
def test_what_does_not_come_by_is_abandoned_in_time(child, monkeypatch, number, extra, status):
    for name, value in extra.items():
        monkeypatch.setenv(name, value)
    process = child(BUSY)
    start = time.monotonic()
    process.send_signal(number)
    assert process.wait(20) == status and 0.9 < time.monotonic() - start < 10
    output = process.stderr.read().splitlines()
    assert len(output) == 2 and "a second signal stops at once" in output[0] and "from the last checkpoint" in output[1]


def test_a_second_signal_kills_and_an_echo_does_not(child):
    process = child(BUSY.replace("with ", "preemption.GRACE, preemption.ECHO = 30.0, 0.3\nwith "))
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 128 + signal.SIGINT


def test_without_a_signal_everything_is_as_before():
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with preemption.handle_signals():
        assert [signal.getsignal(number) for number in preemption.SIGNALS] != before
        preemption.raise_if_interrupted()
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_features_go_on_after_the_rows_that_are_there(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).integers(0, 256, (350, 4, 4, 3)).astype(np.uint8)
    images = {"val": rows[:120], "train": rows}

    class Model:
        frozen, mode = (), "projection"
        inputs = staticmethod(lambda x: x.mean((1, 2)))
        with_frozen = staticmethod(lambda frozen: Model)

    model = Model()
    wanted = image_features(model, images, tmp_path / "whole", "key")
    assert wanted["train"].shape == (350, 3)
    calls = []

    def check():
        calls.append(None)
        if len(calls) == 4:  # two chunks of val and two of train are there
            raise preemption.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(preemption, "raise_if_interrupted", check)
    with pytest.raises(preemption.Interrupted):
        image_features(model, images, tmp_path / "stopped", "key")
    found = image_features(model, images, tmp_path / "stopped", "key")
    assert len(calls) == 4 + 2
    for name in images:
        np.testing.assert_array_equal(found[name], wanted[name])
    assert image_features(model, images, tmp_path / "stopped", "key").keys() == images.keys() and len(calls) == 6


# Forks a run for each line that it is given, for most of the time would go into imports: its process, and how it ended.
ONE_BY_ONE = """
import json, os, sys
import mdw_jax.pipeline.distill, mdw_jax.pipeline.experts, mdw_jax.pipeline.run
from mdw_jax.cli import main

mdw_jax.pipeline.experts.SAVE_EVERY = 0.0
for line in sys.stdin:
    words, log = json.loads(line)
    process = os.fork()
    if not process:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        sys.exit(main(words))
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Runs:
    """Runs of `mdw`, one after the other.

    Attributes:
        code: how the latest ended; None while it goes on.
        log: what it wrote to stderr.
    """

    def __init__(self, log):
        self.log, self.code, self._number = log, 0, 0
        self._forks = subprocess.Popen([sys.executable, "-c", ONE_BY_ONE], env=environment(), bufsize=0,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def begin(self, words, folder):
        """Begin a run, and wait until it holds its folder: before that there is nothing to break."""
        self._forks.stdin.write(json.dumps([words, str(self.log)]).encode() + b"\n")
        self._number, self.code = int(self._forks.stdout.readline()), None
        lock = folder / ".lock"
        while self.wait(0.01) is None and not (lock.exists() and f"process {self._number} " in lock.read_text()):
            pass

    def wait(self, seconds=None):
        if self.code is None and select.select([self._forks.stdout], [], [], seconds)[0]:
            self.code = int(self._forks.stdout.readline())
        return self.code

    def kill(self):
        os.kill(self._number, signal.SIGKILL)
        return self.wait()

    def close(self):
        if self.wait(0) is None:
            self.kill()
        self._forks.stdin.close()
        self._forks.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("command", "seed", "kills", "files"), [("run", 20, 20, 19), ("experts", 10, 10, 5)])
def test_killed_at_random_moments(run, tmp_path, capsys, command, seed, kills, files):
    """kill -9 at random moments of the work, restarted each time; every run that gets to its end is compared.

    Experts are a small part of a run, and hardly hit in one: they are killed apart as well. MDW_KILLS: how often each;
    MDW_SEED=1, 2, ...: at other moments.
    """
    kills, seed = int(os.environ.get("MDW_KILLS", kills)), seed + 1000 * int(os.environ.get("MDW_SEED", "0"))
    changes = {"run__presets": "mdw,random", "experts__teacher_count": 1, "distill__steps": 20, "distill__sets": 2,
               "distill__checkpoint_every": 8, "evaluate__steps": 100}
    draw, whole, seconds = random.Random(seed), run("whole"), 0.0
    with contextlib.closing(Runs(tmp_path / "log")) as runs:
        begin = lambda folder: runs.begin(arguments(command, folder, **changes), folder)
        for folder in (whole, run("warm")):  # the second time nothing has to be compiled: how long the work takes
            begin(folder)
            start = time.monotonic()
            assert runs.wait() == 0, runs.log.read_text()
            seconds = time.monotonic() - start
        wanted = results(whole)
        assert len(wanted) == files

        folder, landed, finished = run("killed"), [], 0
        counts = lambda: ", ".join(f"{landed.count(stage)} in {stage}" for stage in dict.fromkeys(landed))
        while len(landed) < kills or runs.code:  # the last is not killed
            begin(folder)
            wait = draw.uniform(0, 0.6 * seconds) if len(landed) < kills else None
            if runs.wait(wait) is None:
                landed.append(stage_of(folder))
                runs.kill()
                if len(landed) % 20 == 0:
                    with capsys.disabled():
                        print(f"{command}: {len(landed)} kills ({counts()}), {finished} ended alike", flush=True)
            output = runs.log.read_text()
            assert "Traceback" not in output and runs.code in (0, -signal.SIGKILL), output
            if runs.code == 0:
                assert results(folder) == wanted and not left_over(folder)
                finished, folder = finished + 1, run("killed")
    with capsys.disabled():
        print(f"\n{command}: {kills} kills in work of {seconds:.1f} s: {counts()}; {finished} runs came to their end, all "
              "alike")


def stage_of(folder):
    """Which stage a running run is in, by its files."""
    if not list(folder.glob("experts/*/experts.json")):
        return "experts" if list(folder.glob("experts/*")) else "prepare"
    sets = list(folder.glob("distilled/mdw-*/set_*/card.json"))
    if len(sets) < 2:
        return "distill"
    return "evaluate"
