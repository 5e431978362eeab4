"""`mdw runs` tells from files where a run stands; `mdw diff` what differs, with the interval a textbook gives."""

import csv
import fcntl
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import ttest_ind

from mdw_jax.cli import main
from mdw_jax.config import base, resolve
from mdw_jax.config.sections import config_digest
from mdw_jax.io.checksums import write_listed
from mdw_jax.io.run_lock import hold_run_directory
from mdw_jax.reporting.run_list import described, run_directories, state
from mdw_jax.reporting.stats import welch

RNG = np.random.default_rng(0)
LOCK = "process 7 on host\n"
MDW, VLD = RNG.normal(20, 1, (2, 3, 5))  # r_mean of 3 sets x 5 students


def begun(folder, **changes):
    """A run folder right after `mdw prepare`."""
    c = base()
    presets = changes.pop("run__presets", ("random", "mdw"))  # not resolved: those from outside do not exist
    c.update_from_flattened_dict({"run.dir": str(folder)})
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    write(folder / ".lock", LOCK)
    config = resolve(c).to_dict()
    config["run"]["presets"] = presets
    write(folder / "config.json", json.dumps(config))
    return folder


def write(path, text="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def finished(folder, scores, select_on="val", **changes):
    """scores: {preset: (sets, students) r_mean}."""
    begun(folder, run__presets=tuple(scores), **changes)
    with open(folder / "scores.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("preset", "set", "student", "select_on", "r_mean"))
        rows.writerows((preset, i, n, select_on, value) for preset, sets in scores.items()
                       for i, students in enumerate(sets) for n, value in enumerate(students))
    return folder


def test_states_follow_the_files_of_a_run(tmp_path):
    folder = tmp_path / "a" / "b"
    texts = {".lock": LOCK, "scores.csv": "preset,set,select_on,r_mean\nmdw,0,val,1\n"}
    steps = [
        (".lock", "never begun"), ("cache/images.safetensors", "stopped at prepare"),
        ("config.json", "stopped at experts"), ("experts/dtcl-1.lock", "stopped at experts"),
        ("experts/dtcl-1/state-experts.safetensors", "stopped at experts"),
        ("experts/dtcl-1/experts.json", "stopped at distill"),
        ("distilled/random-2/set_0/card.json", "stopped at distill"),
        ("distilled/mdw-3/set_0/history.jsonl", "stopped at distill"),
        ("distilled/mdw-3/set_0/card.json", "stopped at evaluate"), ("scores.csv", "finished"),
    ]
    for name, expected in steps:
        if name == "config.json":
            begun(folder)
        else:
            write(folder / name, texts.get(name, ""))
        assert state(folder) == expected, name
        assert list(run_directories(tmp_path)) == [folder]
        with hold_run_directory(folder):
            stage = expected.removeprefix("stopped at ")
            stage = {"never begun": "prepare", "finished": "evaluate"}.get(stage, stage)
            assert state(folder) == f"running, {stage}"
        assert state(folder) == expected
    older = (folder / "config.json").stat().st_mtime_ns - 1  # the config has changed since
    os.utime(folder / "scores.csv", ns=(older, older))
    assert state(folder) == "stopped at evaluate"
    (folder / "config.json").write_text("{")
    assert state(folder) == "damaged config.json"


def test_scores_are_of_the_config_that_they_are_noted_for(tmp_path):
    folder = finished(tmp_path / "run", {"mdw": MDW})
    config = json.loads((folder / "config.json").read_text())
    write(folder / "report.json", json.dumps({"config": config_digest(config)}))
    os.utime(folder / "scores.csv", ns=(1, 1))  # as copied, or after another mdw prepare
    assert state(folder) == "finished"
    for changes, expected in (({"run.dir": "elsewhere", "watch.project": "p", "plan.images": 7}, "finished"),
                              ({"noise.rate": 0.3}, "stopped at experts")):
        c = resolve(base())
        with c.unlocked():
            c.update_from_flattened_dict({"run.presets": ("mdw",)} | changes)
        assert c.to_dict() != config
        write(folder / "config.json", json.dumps(c.to_dict()))
        os.utime(folder / "config.json", ns=(0, 0))
        assert state(folder) == expected


@pytest.mark.parametrize("text", ["", "preset,set\nmdw,0\n", "preset,set,select_on,r_mean\nmdw,0,val,no\n",
                                  "preset,set,select_on,r_mean\n", "r_mean,preset,set,select_on\n1,mdw\n", "\udcff"])
def test_damaged_scores_are_reported(tmp_path, capsys, text):
    folder = finished(tmp_path / "run", {"mdw": MDW})
    (folder / "scores.csv").write_bytes(text.encode(errors="surrogateescape"))
    assert described(folder)["state"] == "damaged scores.csv" and described(folder)["r_mean"] == "-"
    assert main(["diff", str(folder), str(finished(tmp_path / "b", {"mdw": MDW}))]) == 2
    out, err = capsys.readouterr()
    assert not out and err == f"mdw: '{folder / 'scores.csv'}' is damaged; run mdw evaluate again.\n"


def test_what_other_commands_did_without_a_run(tmp_path):
    write(tmp_path / ".lock", LOCK)
    for name, expected in (
            ("experts/dtcl-1/log.jsonl", "stopped at experts"), ("certificate.csv", "certified"),
            ("fairness.csv", "certified, fairness measured"), ("export/mdw-0/data.parquet", "certified, fairness measured"),
            ("export/mdw-0/card.json", "certified, fairness measured, 1 set exported")):
        write(tmp_path / name)
        assert state(tmp_path) == expected
    begun(tmp_path)
    assert state(tmp_path) == "stopped at experts"


def test_one_who_looks_is_not_at_work(tmp_path):
    with open(begun(tmp_path) / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert state(tmp_path) == "stopped at experts"


@pytest.mark.parametrize("foreign", [
    {"run": {"presets": None}, "distill": {}}, {"run": {"presets": ["a"]}, "distill": {"sets": 1}}, [],
    {"run": {"presets": [1]}, "distill": {"sets": 1}, "noise": {"rate": "x", "select_on": ""}, "data": {"name": 1}}])
def test_what_is_another_programs_hides_no_run(tmp_path, capsys, foreign):
    folder = begun(tmp_path / "a" / "b")
    write(tmp_path / "a" / "config.json", json.dumps(foreign))
    write(tmp_path / "a" / ".lock", "12345")
    write(tmp_path / ".lock", "")
    assert main(["runs", str(tmp_path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", str(folder)]


def test_what_other_commands_wrote_is_damaged_where_it_is(tmp_path):
    write(tmp_path / ".lock", LOCK)
    for name in ("certificate.csv", "fairness.csv"):
        write_listed(tmp_path / name, b"a,b\n1,2\n")
    assert state(tmp_path) == "certified, fairness measured"
    write(tmp_path / "fairness.csv", "a,b\n1,3\n")
    assert state(tmp_path) == "certified, damaged fairness.csv"


def test_a_sweep_says_how_many_cells_are_done(tmp_path):
    for name in (".lock", "sweep/1.json", "sweep/2.json", "sweep/3.failed.json"):
        write(tmp_path / name, LOCK)
    assert described(tmp_path)["state"] == "sweep, 2 cells done, 1 failed"
    with hold_run_directory(tmp_path, shared=True):
        assert state(tmp_path) == "running, sweep, 2 cells done, 1 failed"


def test_the_headline_is_mdw_or_the_best_that_is_distilled(tmp_path):
    low, high, full = np.array([[1.0, 3.0]]), np.array([[4.0, 6.0]]), np.array([[90.0, 90.0]])
    runs = {"mdw": {"vld": high, "mdw": low, "full": full}, "best": {"vld": low, "lors": high, "full": full},
            "none": {"full": full}}
    said = {name: described(finished(tmp_path / name, scores))["r_mean"] for name, scores in runs.items()}
    assert said == {"mdw": "2.00 +- 1.41 mdw", "best": "5.00 +- 1.41 lors", "none": "-"}
    baseline = described(finished(tmp_path / "test", {"vld": high}, select_on="test", noise__rate=0.25))
    assert baseline["r_mean"] == "5.00 +- 1.41 vld (optimistic)" and baseline["noise"] == "image 0.25"


def test_natural_noise_is_listed_with_its_estimate(tmp_path):
    natural = {"data__name": "folder", "noise__protocol": "natural"}
    folder = finished(tmp_path / "natural", {"mdw": MDW}, **natural)
    assert described(folder)["noise"] == "natural"

    def summary(**noise):
        config = json.loads((folder / "config.json").read_text())
        write(folder / "report.json", json.dumps({"config": config_digest(config), "presets": [
            {"name": "random", "noise": {"protocol": "image", "estimated": None}},
            {"name": "mdw", "noise": {"protocol": "natural", **noise}}]}))
        return described(folder)["noise"]

    estimate = {"eta": 0.125, "low": 0.1, "high": 0.15, "confidence": 0.95}
    assert summary(estimated=estimate) == "natural, 12.5% [10.0%, 15.0%]"
    assert summary(estimated=None) == summary() == summary(estimated={"eta": "x"}) == "natural"
    assert summary(estimated={"eta": 0.0, "low": 0.0, "high": 1.0, "confidence": 1.0}) == "natural"
    assert described(finished(tmp_path / "assumed", {"mdw": MDW}, noise__rate=0.2, **natural))["noise"] == (
        "natural (20.0% assumed)")
    assert described(finished(tmp_path / "file", {"mdw": MDW}, noise__file="a/b.npy"))["noise"] == "file b.npy"


def test_the_list_needs_no_jax_and_finds_runs_below(tmp_path):
    finished(tmp_path / "runs" / "one", {"mdw": MDW})
    finished(tmp_path / "runs" / "deep" / "two", {"vld": VLD})
    write(tmp_path / "runs" / "model" / "config.json", '{"model_type": "bert"}')
    program = "import sys\nfrom mdw_jax.cli import main\nstatus = main(['runs'])\nprint('jax' in sys.modules, status)"
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True,
                           env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}).stdout.splitlines()
    assert len(found) == 4 and found[0].split()[:2] == ["run", "state"] and found[3] == "False 0"
    assert {line.split()[0] for line in found[1:3]} == {"runs/one", "runs/deep/two"}
    assert all(" finished " in line and " scenes " in line for line in found[1:3])


def test_the_interval_is_welchs():
    for a, b in ((MDW[0], VLD[0]), (MDW[0, :2], 5 * VLD[1]), (MDW[:, 0], VLD[0])):
        expected = ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
        np.testing.assert_allclose(welch(a, b), (b.mean() - a.mean(), *expected))
    assert welch([1.0, 1.0], [3.0, 3.0]) == (2.0, 2.0, 2.0)
    assert np.isnan(welch([1.0], [3.0, 4.0])[1:]).all()


def test_differences(tmp_path, capsys):
    a = finished(tmp_path / "a", {"mdw": MDW, "vld": VLD, "full": VLD[:1]})
    b = finished(tmp_path / "b", {"mdw": MDW + 2, "vld": VLD[:1] - 1, "lors": VLD}, noise__rate=0.2, fairness__words="x y")
    assert main(["diff", str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[4:7]] == [
        ["fairness.words", '""', "x", "y"], ["noise.rate", "0.4", "0.2"], ["run.presets", "mdw,vld,full", "mdw,vld,lors"]]
    rows = {line[: line.index("  ")]: line for line in lines[9:]}
    low, high = ttest_ind(MDW.mean(1) + 2, MDW.mean(1), equal_var=False).confidence_interval(0.95)
    assert rows["MDW"].split("  ")[-2:] == [f"+2.00 [{low:+.2f}, {high:+.2f}]", "3 and 3 sets"]
    assert rows["VLD"].endswith("15 and 5 students") and rows["LoRS"].split()[1] == "-" == rows["LoRS"].split()[-1]
    assert main(["diff", str(a), str(a)]) == 0
    assert "The configs are the same." in capsys.readouterr().out
    assert main(["diff", str(a), str(begun(tmp_path / "c"))]) == 0
    assert f"'{tmp_path / 'c'}' has no scores of this config: stopped at experts." in capsys.readouterr().out
    assert main(["diff", str(a), str(finished(tmp_path / "d", {"mdw": MDW}, select_on="test"))]) == 0
    assert "A was selected on val, B on test" in capsys.readouterr().out


@pytest.mark.parametrize(("sizes", "row"), [
    (((1, 1), (1, 1)), ["MDW", "1.00", "2.00", "+1.00 [-]", "1 and 1 student"]),
    (((1, 1), (1, 3)), ["MDW", "1.00", "2.00 +- 0.00", "+1.00 [-]", "1 student and 3 students"]),
    (((3, 1), (1, 1)), ["MDW", "1.00 +- 0.00", "2.00", "+1.00 [-]", "3 students and 1 student"]),
    (((2, 1), (3, 1)), ["MDW", "1.00 +- 0.00", "2.00 +- 0.00", "+1.00 [+1.00, +1.00]", "2 and 3 sets"]),
])
def test_one_student_has_no_deviation_and_no_interval(tmp_path, capsys, sizes, row):
    a, b = (finished(tmp_path / name, {"mdw": np.full(size, value)})
            for name, size, value in zip("ab", sizes, (1.0, 2.0), strict=True))
    assert main(["diff", str(a), str(b)]) == 0
    assert [cell.strip() for cell in re.split("  +", capsys.readouterr().out.splitlines()[-1])] == row
    assert described(a)["r_mean"] == f"{row[1]} mdw"


@pytest.mark.parametrize(("words", "sentence"), [
    (["runs", "nowhere"], "there is no directory 'nowhere'"),
    (["runs", "empty"], "there are no runs in 'empty'"),
    (["diff", "nowhere", "empty"], "there is no directory 'nowhere'"),
    (["diff", "empty", "empty"], "'empty' holds no config of a run (no run)"),
    (["diff", "new", "new"], "'new' holds no config of a run (never begun)"),
    (["diff", "grid", "grid"], "'grid' holds a sweep"),
    (["diff", "empty"], "mdw diff compares two runs, not 1"),
    (["runs", "--config=x.py"], "mdw runs reads no config"),
])
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "new" / ".lock", LOCK)
    write(tmp_path / "grid" / "sweep" / "1.json")
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"mdw: {sentence}") and err.count("\n") == 1


def outside(folder, kinds, label="Mine"):
    """Make a finished run's presets from elsewhere known: report.json, as mdw evaluate writes it."""
    config = json.loads((folder / "config.json").read_text())
    write(folder / "report.json", json.dumps({"config": config_digest(config), "presets": [
        {"name": name, "label": label, "kind": kind} for name, kind in kinds.items()]}))
    return folder


@pytest.mark.parametrize(("kind", "headline", "noun"), [
    ("reference", "2.00 +- 1.41 vld", "2 and 2 networks"), ("coreset", "95.00 +- 7.07 mine:preset", "2 and 2 students")])
def test_report_json_says_what_a_preset_from_outside_is(tmp_path, capsys, kind, headline, noun):
    scores = {"vld": [[1.0, 3.0]], "mine:preset": [[90.0, 100.0]]}
    a, b = (outside(finished(tmp_path / name, scores), {"mine:preset": kind}) for name in "ab")
    assert described(a)["r_mean"] == headline and described(a)["state"] == "finished"
    assert main(["diff", str(a), str(b)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Mine  ") and last.endswith(noun)


def test_a_stopped_run_of_presets_from_outside_guesses_neither_experts_nor_sets(tmp_path):
    folder = begun(tmp_path / "run", run__presets=("random", "mine:preset"))
    write(folder / "distilled" / "random-2" / "set_0" / "card.json")
    assert state(folder) == "stopped at experts or later"
    write(folder / "experts" / "dtcl-1" / "experts.json")
    write(folder / "experts" / "dtcl-1.lock")
    assert state(folder) == "stopped at distill or later"
    outside(folder, {"mine:preset": "reference"})
    assert state(folder) == "stopped at evaluate"
    outside(folder, {"mine:preset": "coreset"})
    assert state(folder) == "stopped at distill"
    write(folder / "distilled" / "mine.preset-3" / "set_0" / "card.json")
    assert state(folder) == "stopped at evaluate"


@pytest.mark.parametrize("name", ["**", "../[a", "/etc", "", "a\0b", "\ud800", "x" * 5000, "\x1b[31mred\n"])
def test_a_hostile_name_of_a_preset_hides_no_run(tmp_path, capsys, name):
    good, bad = begun(tmp_path / "good"), begun(tmp_path / "bad")
    write(good / "experts" / "dtcl-1.lock")
    config = json.loads((bad / "config.json").read_text())
    config["run"]["presets"] = [name]
    write(bad / "config.json", json.dumps(config))
    assert main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3 and out.isascii() and "\x1b" not in out
    assert main(["diff", str(good), str(bad)]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("summary", [
    {"presets": [{"name": "mdw", "label": 5}]}, {"presets": 5}, {"presets": [5]}, [], {"config": 5},
    {"presets": [{"name": "mine:preset", "label": ["a"], "kind": ["b"]}]}])
def test_a_damaged_report_json_stops_neither_runs_nor_diff(tmp_path, capsys, summary):
    folder = finished(tmp_path / "run", {"mdw": MDW, "mine:preset": VLD})
    write(folder / "report.json", json.dumps(summary))
    assert main(["runs", str(tmp_path)]) == 0 and main(["diff", str(folder), str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "mine:preset" in out and not err
    assert out.splitlines()[-1].startswith("mine:preset ") or summary == {"config": 5}  # scores of another config


def test_numbers_out_of_range_are_a_damaged_config(tmp_path):
    folder = begun(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["noise"]["rate"] = 10**400
    write(folder / "config.json", json.dumps(config))
    assert described(folder)["state"] == "damaged config.json"


def test_a_run_of_an_older_version_says_so(tmp_path, capsys):
    folder = finished(tmp_path / "run", {"mdw": MDW})
    text = (folder / "scores.csv").read_text()
    write(folder / "scores.csv", text.replace("select_on", "protocol", 1))
    assert described(folder)["state"] == "of an older version"
    words = "was made by an older version of mdw-jax; run mdw again in another directory.\n"
    for argv, name in ((["diff", str(folder), str(folder)], f"the run in '{folder}'"),
                       (["table", str(folder / "scores.csv")], f"'{folder / 'scores.csv'}'")):
        assert main(argv) == 2 and capsys.readouterr().err == f"mdw: {name} {words}"


@pytest.mark.parametrize("words", [["runs", "x" * 5000], ["diff", "x" * 5000, "b"], ["report", "x/" * 2500]])
def test_a_path_that_is_too_long_is_one_sentence(capsys, words):
    assert main(words) == 2
    assert re.fullmatch(r"mdw: the path 'x.*\.\.\.' cannot be opened \(File name too long\); check the path\.\n",
                        capsys.readouterr().err)
