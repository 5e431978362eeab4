"""From a run to a trained student: mdw export, train.py, mdw train; the scores are those of the run."""

import csv
import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from test_export import CARD, NEAR, make_set

from mdw_jax.config import base
from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.errors import UserError
from mdw_jax.export.command import export_command
from mdw_jax.export.export_set import PROGRAMS, export_set
from mdw_jax.export.student import load_student
from mdw_jax.export.train_command import train_command
from mdw_jax.export.training import TRAINING_FILES, expected_scores, load_training
from mdw_jax.io import checksums
from mdw_jax.io.checksums import write_listed
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.io.scores import METRICS
from mdw_jax.pipeline.run import evaluate_command
from mdw_jax.runtime.may_train import may_train

TINY = {
    "data.size": 16, "data.train": 60, "data.val": 20, "data.test": 30, "text.dim": 64, "model.mode": "projection",
    "model.patches": (8,), "model.widths": (16,), "model.dim": 8, "distill.pairs": 20, "distill.batch": 10,
    "noise.rate": 0.0, "noise.protocol": "image", "run.presets": ("random",), "evaluate.steps": 40, "evaluate.students": 3,
    "evaluate.batch": 12, "evaluate.lr_scales": (1.0,), "evaluate.grow": 0, "export.license": "unknown",
    "export.formats": ("safetensors",), "export.with_test": True}
OPTIONS = {"data": (), "out": None, "tower": None, "weights": None, "text": None, "students": "1", "seed": None}


def train_set(path, **options):
    train_command(str(path), *(OPTIONS | options).values())


def config_of(folder, **changes):
    c = base()
    c.update_from_flattened_dict(TINY | {"run.dir": str(folder)} | changes)
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    evaluate_command(config_of(folder))
    export_command(config_of(folder))
    return folder


@pytest.fixture(scope="module")
def rows(run):
    with open(run / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_scores_to_expect_by_hand():
    rows = [{**dict.fromkeys(METRICS, value), "select_on": "val"} for value in (10.0, 12.0, 14.0, 12.0)]
    found = expected_scores(rows)
    assert (found["students"], found["mean"]["IR@1"], found["select_on"]) == (4, 12.0, "val")
    assert found["std"]["r_mean"] == pytest.approx(np.std([10, 12, 14, 12], ddof=1))
    low, high = stats.t.interval(0.95, 3, 12, found["std"]["r_mean"] / 2)
    assert found["interval_of_mean"] == pytest.approx([low, high])
    low, high = stats.t.interval(0.95, 3, 12, found["std"]["r_mean"] * np.sqrt(1.25))
    assert found["interval_of_one"] == pytest.approx([low, high])
    alone = expected_scores(rows[:1])
    assert alone["t"] is alone["interval_of_mean"] is alone["interval_of_one"] is None and alone["std"]["r_mean"] == 0


def test_the_record_is_that_of_the_run(run, rows):
    folder = run / "export" / "random-0"
    record, tensors, test = load_training(folder)
    distilled, card = load_distilled(folder)
    assert record["set"]["sha256"] == card["sha256"] and record["about"]["preset"] == "random"
    assert record["expected"]["mean"]["r_mean"] == pytest.approx(np.mean([float(row["r_mean"]) for row in rows]))
    assert record["phases"] == [{"steps": int(rows[0]["steps"]), "factor": 1.0}] and record["batch"] == 12
    assert record["step_sizes"] == {"image": 0.3, "text": 0.3}  # none were learned: evaluate.lr, at scale 1
    assert record["image"]["tower"] == {"kind": "convnet", "patches": [8], "widths": [16]}
    assert set(tensors) == {"backbone.position", *(f"backbone.Dense_{n}.{part}" for n in (0, 1)
                                                   for part in ("weight", "bias"))}
    assert test["images"].shape == (30, 16) and test["texts"].shape == (len(test["image_of"]), 64)
    readme = " ".join((folder / "README.md").read_text().split())
    assert "python train.py --students 5" in readme and "mdw train ." in readme
    assert f"Expect r_mean **{record['expected']['mean']['r_mean']:.2f}**" in readme
    assert "| `convnet` (the set was made for it) | frozen, under a trained head | 3 |" in readme


def test_mdw_train_repeats_the_students_of_the_run(run, rows, tmp_path, capsys):
    """Same seed, same numbers: an export holds all that the run's own students had."""
    folder = run / "export" / "random-0"
    train_set(folder, out=str(tmp_path / "s"), students="3")
    out = capsys.readouterr().out
    mean = np.mean([float(row["r_mean"]) for row in rows])
    assert f"r_mean:    {mean:.2f}" in out and "lies inside" in out and "these are the students of the run" in out
    student = load_student(tmp_path / "s")
    assert student.description["scores"]["r_mean"] == pytest.approx(float(rows[0]["r_mean"]), abs=1e-3)
    # The student in the file is the one that was scored.
    test = load_training(folder).test
    split = scenes(60, 20, 30, size=16).test
    np.testing.assert_allclose(student.embed_captions(split.captions), student.embed_texts(test["texts"]), atol=1e-6)
    [stored] = run.glob("distilled/random-*/set_0")
    train_set(stored, out=str(tmp_path / "t"))
    assert load_student(tmp_path / "t").sha256 == student.sha256


def test_data_of_ones_own(run, tmp_path, capsys):
    split = scenes(60, 20, 30, size=16).test
    (tmp_path / "photos").mkdir()
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for caption, image in zip(split.captions, split.image_of, strict=True):
            writer.writerow([f"{image}.png", caption])
    for number, image in enumerate(split.images):
        Image.fromarray(np.asarray(image)).save(tmp_path / "photos" / f"{number}.png")
    train_set(run / "export" / "random-0", data=[str(tmp_path / "photos"), str(tmp_path / "captions.csv")],
              out=str(tmp_path / "s"))
    out = capsys.readouterr().out
    assert "all of it (there is no test split), 30 images" in out
    # Whatever the order of images is, the whole of the same data scores the same.
    with open(run / "scores.csv", newline="") as file:
        wanted = float(next(csv.DictReader(file))["r_mean"])
    assert load_student(tmp_path / "s").description["scores"]["r_mean"] == pytest.approx(wanted, abs=0.3)
    assert "your captions are those of its test split" in out and "lies inside" in out
    train = load_program_of(run / "export" / "random-0", monkey_torch())
    train.main(["--images", str(tmp_path / "photos"), "--captions", str(tmp_path / "captions.csv"), "--out",
                str(tmp_path / "u")])
    out = capsys.readouterr().out
    assert "Your data are that test split, by the sha256 of their captions" in out and "lies inside" in out
    lines = (tmp_path / "captions.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:20]))
    train.main(["--images", str(tmp_path / "photos"), "--captions", str(tmp_path / "few.csv"), "--out",
                str(tmp_path / "u")])
    assert "Your data are others, by the sha256 of their captions" in capsys.readouterr().out
    train_set(run / "export" / "random-0", data=[str(tmp_path / "photos"), str(tmp_path / "few.csv")],
              out=str(tmp_path / "s"))
    assert "nothing was measured for this tower and these data" in capsys.readouterr().out


def monkey_torch():
    return pytest.importorskip("torch")


def load_program_of(folder, torch):
    from test_train_py import load_program

    torch.set_num_threads(1)
    return load_program(folder / "train.py")


def test_train_py_of_the_export(run, tmp_path, capsys):
    train = load_program_of(run / "export" / "random-0", monkey_torch())
    train.main(["--students", "4", "--out", str(tmp_path / "s")])
    out = capsys.readouterr().out
    assert "20 pairs" in out and "(4 students)" in out and "lies inside" in out
    assert load_student(tmp_path / "s").description["trained_by"] == "train.py (PyTorch)"


def test_another_tower_takes_its_steps_from_val(run, tmp_path, capsys):
    with pytest.raises(UserError, match="chosen on val; give a data set by --data"):
        train_set(run / "export" / "random-0", tower="convnet")


def test_exports_of_earlier_versions_and_damaged_ones(run, tmp_path):
    export_set(tmp_path / "old", make_set(), NEAR, CARD, formats=["safetensors"], license="cc0-1.0")
    assert load_distilled(tmp_path / "old")[1]["preset"] == "mdw"  # the set itself can be read
    with pytest.raises(UserError, match=r"has no training.json, .* an earlier version .* export the set again"):
        train_set(tmp_path / "old")
    folder = shutil.copytree(run / "export" / "random-0", tmp_path / "copy")
    record = json.loads((folder / "training.json").read_text())
    for change, message in (({"format": "x"}, "is of the format 'x'"), ({"tau": "0"}, "cannot be used: tau is '0'"),
                            ({"phases": [{"steps": 10**9, "factor": 1}]}, r"cannot be used: phases\[0\] is"),
                            ({"backbone": {"file": "../../x", "sha256": ""}}, "cannot be used"),
                            ({"set": {"file": "distilled.safetensors", "sha256": "0"}}, "of another set")):
        write_listed(folder / "training.json", json.dumps(record | change).encode())
        with pytest.raises(UserError, match=message):
            train_set(folder)
    write_listed(folder / "training.json", json.dumps(record).encode())
    (folder / "backbone.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="its sha256 differs"):
        train_set(folder)


@pytest.mark.parametrize("name", ["training.json", "SHA256SUMS"])
def test_every_flipped_bit_of_the_record_is_found_by_both_programs(run, tmp_path, monkeypatch, name):
    """And by `sha256sum -c`, which every file of the export is listed for."""
    folder = shutil.copytree(run / "export" / "random-0", tmp_path / "copy", ignore=shutil.ignore_patterns("student"))
    good = (folder / name).read_bytes()
    program = load_program_of(run / "export" / "random-0", monkey_torch())
    monkeypatch.setattr(program, "HERE", folder)
    monkeypatch.setattr(checksums, "_PAUSE", 0)
    expected, found = load_training(folder).record, 0
    assert program.read_record() == expected
    draw = random.Random(0)
    for place in (draw.randrange(len(good)) for _ in range(60)):
        (folder / name).write_bytes(good[:place] + bytes([good[place] ^ 1 << draw.randrange(8)]) + good[place + 1:])
        try:
            assert load_training(folder).record == expected
        except UserError as error:
            found += 1
            with pytest.raises(program.InputError) as theirs:
                program.read_record()
            assert "training.json in" in str(error) and "training.json in" in str(theirs.value)
        else:
            assert program.read_record() == expected
    assert found == 60 if name == "training.json" else 5 < found < 55
    (folder / name).write_bytes(good)
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines() if not line.startswith("#")}
    assert listed == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"SHA256SUMS"}


def test_an_export_without_evaluation_says_so_and_formats_without_numbers_have_no_program(tmp_path, capsys):
    c = config_of(tmp_path / "run", **{"export.with_test": False})
    export_command(c)
    assert "no student of this set was evaluated; run mdw evaluate" in capsys.readouterr().out
    folder = tmp_path / "run" / "export" / "random-0"
    record, _, test = load_training(folder)
    assert record["expected"] is None and test == {} and not (folder / "test.safetensors").exists()
    assert "**No score is known**" in (folder / "README.md").read_text()
    export_command(config_of(tmp_path / "run", **{"export.formats": ("folder",)}))
    assert not [name for name in (*TRAINING_FILES, *PROGRAMS) if (folder / name).exists()]
    with may_train(False, "mdw export", str(tmp_path / "run")):  # all is there: nothing is trained
        export_command(c)


def changed(record, key, value):
    """A record with another value at "section.name"; ... removes it."""
    record = json.loads(json.dumps(record))
    *sections, last = key.split(".")
    section = record
    for name in sections:
        section = section[name]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return record


DAMAGE = [
    ("tau", 0.0), ("tau", -1), ("tau", True), ("tau", float("nan")), ("tau", float("inf")), ("optimizer.momentum", 2.0),
    ("optimizer.momentum", 1.0), ("optimizer.weight_decay", -0.1), ("step_sizes.image", 1e30), ("step_sizes.text", 0),
    ("step_sizes.image", 1e6), ("step_sizes.text", "0.1"), ("phases", []), ("phases", [{"steps": 0, "factor": 1.0}]),
    ("phases", [{"steps": 10**7 + 1, "factor": 1.0}]), ("phases", [{"steps": 5, "factor": 0.5}]), ("phases", [7]),
    ("phases", [{"steps": 10**7, "factor": 1.0}, {"steps": 1, "factor": 0.1}]), ("batch", 0), ("batch", 1.0),
    ("chosen.seed", -1), ("chosen.seed", 1 << 63), ("chosen.seed", 1.5), ("chosen", ...), ("chosen.how", ...),
    ("chosen.scale", 0.0), ("image.shape", [16, 16]), ("image.shape", [16, 4097, 3]), ("image.shape", [16, 16, 0]),
    ("image.fit", "stretch"), ("image.fit", ["crop"]), ("image.dtype", "float16"), ("image.head", "yes"),
    ("image.head", 1), ("image.mode", None), ("image", None), ("text.width", 63), ("text.kind", "words"),
    ("text.seed", -1), ("head", "W1"), ("expected", ...), ("expected", 3), ("expected.mean.IR@1", 101.0),
    ("expected.students", 0), ("expected.interval_of_one", [1]), ("test.images", "30"), ("set", {}),
    ("backbone.sha256", 5), ("test_captions_sha256", "0"), ("dim", 0), ("alpha", -1.0), ("loss", 4)]


@pytest.mark.parametrize(("key", "value"), DAMAGE, ids=str)
def test_a_record_that_cannot_be_trained_by_names_its_key(run, tmp_path, monkeypatch, key, value):
    """`mdw train` and train.py say the same sentence."""
    folder = shutil.copytree(run / "export" / "random-0", tmp_path / "copy")
    record = json.loads((folder / "training.json").read_text())
    write_listed(folder / "training.json", json.dumps(changed(record, key, value)).encode())
    with pytest.raises(UserError, match=rf"training.json in '.*copy' cannot be used: {key}[ .\[].*export or copy") as ours:
        train_set(folder, out=str(tmp_path / "s"))
    program = load_program_of(run / "export" / "random-0", monkey_torch())
    monkeypatch.setattr(program, "HERE", folder)
    with pytest.raises(program.InputError) as theirs:
        program.load_set(program.read_record())
    assert str(theirs.value) == str(ours.value) and not (tmp_path / "s").exists()


def test_earlier_exports_have_no_digest_of_captions_and_are_trained_on(run, tmp_path):
    folder = shutil.copytree(run / "export" / "random-0", tmp_path / "copy")
    record = json.loads((folder / "training.json").read_text())
    write_listed(folder / "training.json", json.dumps(changed(record, "test_captions_sha256", ...)).encode())
    assert "test_captions_sha256" not in load_training(folder).record


def test_a_diverged_training_writes_nothing(run, tmp_path, monkeypatch):
    folder = shutil.copytree(run / "export" / "random-0", tmp_path / "copy")
    record = json.loads((folder / "training.json").read_text())
    for key, value in (("step_sizes.image", 9e5), ("step_sizes.text", 9e5), ("optimizer.weight_decay", 9e5)):
        record = changed(record, key, value)
    write_listed(folder / "training.json", json.dumps(record).encode())
    with pytest.raises(UserError, match="the training diverged: .* nothing was written"):
        train_set(folder, out=str(tmp_path / "s"))
    program = load_program_of(run / "export" / "random-0", monkey_torch())
    monkeypatch.setattr(program, "HERE", folder)
    with pytest.raises(program.InputError, match="The training diverged"):
        program.main(["--out", str(tmp_path / "s")])
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("options", [["--images", "none", "--captions", "none.csv"], ["--seed", "-1"],
                                     ["--device", "nothing"]])
def test_train_py_ends_with_2_and_a_sentence(run, tmp_path, options):
    monkey_torch()
    done = subprocess.run([sys.executable, str(run / "export" / "random-0" / "train.py"), *options], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "There is no file 'none.csv'" in done.stderr or f"{options[0]} must be a whole" in done.stderr or (
        "--device nothing cannot be used" in done.stderr)


def test_seeds_end_at_63_bits(run):
    with pytest.raises(UserError, match=f"--seed must be a whole number of at least 0 and at most {(1 << 63) - 1}"):
        train_set(run / "export" / "random-0", seed=str(1 << 63))
