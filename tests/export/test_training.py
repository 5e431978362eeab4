"""From a run to a trained student: mdw export, train.py, mdw train; the scores are those of the run."""

import csv
import json
import shutil

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
    assert "nothing was measured for this tower and these data" in out
    train = load_program_of(run / "export" / "random-0", monkey_torch())
    train.main(["--images", str(tmp_path / "photos"), "--captions", str(tmp_path / "captions.csv"), "--out",
                str(tmp_path / "u")])
    assert "lies inside" in capsys.readouterr().out  # as many images and captions as the run's test split has
    lines = (tmp_path / "captions.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:20]))
    train.main(["--images", str(tmp_path / "photos"), "--captions", str(tmp_path / "few.csv"), "--out",
                str(tmp_path / "u")])
    assert "Your data are others" in capsys.readouterr().out


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
    for change, message in (({"format": "x"}, "is of the format 'x'"), ({"tau": "0"}, "is damaged"),
                            ({"phases": [{"steps": 10**9, "factor": 1}]}, "is damaged"),
                            ({"backbone": {"file": "../../x", "sha256": ""}}, "cannot be used"),
                            ({"set": {"file": "distilled.safetensors", "sha256": "0"}}, "of another set")):
        (folder / "training.json").write_text(json.dumps(record | change))
        with pytest.raises(UserError, match=message):
            train_set(folder)
    (folder / "training.json").write_text(json.dumps(record))
    (folder / "backbone.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="its sha256 differs"):
        train_set(folder)


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
