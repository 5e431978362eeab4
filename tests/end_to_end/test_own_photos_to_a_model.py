"""A stranger's way: a folder of photos and a CSV, to a student in plain PyTorch, by the commands of the README."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mdw_jax.cli import main
from mdw_jax.data.synthetic.scenes import scenes


def write_photos(folder, train, val, test, size=64):
    """Photos as JPEG files under `photos`, not square, and `captions.csv` with a split column."""
    (folder / "photos").mkdir(parents=True)
    pairs = scenes(train=train, val=val, test=test, size=size, seed=3)
    with open(folder / "captions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for name in ("train", "val", "test"):
            split = getattr(pairs, name)
            for n, pixels in enumerate(np.asarray(split.images)):
                wide = np.pad(pixels, ((0, 0), (5, 5), (0, 0)), "edge")
                Image.fromarray(wide).save(folder / "photos" / f"{name}{n}.jpg", quality=90)
            for row, caption in zip(split.image_of, split.captions, strict=True):
                writer.writerow([f"{name}{row}.jpg", caption, name])


QUICK = ["--pairs=8", "--config.data.size=64", "--config.model.weights=mobilenet_v1_0.25", "--config.text.encoder=bow",
         "--config.text.path=", "--config.experts.count=1", "--config.experts.teacher_count=1",
         "--config.experts.epochs=4", "--config.experts.teacher_epochs=3", "--config.experts.trajectory_epochs=2",
         "--config.distill.match_epochs=2", "--config.distill.steps=2", "--config.distill.inner_steps=4",
         "--config.distill.prototype_steps=2", "--config.evaluate.steps=40", "--config.evaluate.students=2"]


@pytest.mark.slow
def test_own_photos_to_a_run_that_commands_go_on_from(tmp_path, monkeypatch, capsys):
    """Tiny, through the command line: the run, what takes its folder, and what refuses to train."""
    write_photos(tmp_path, 60, 20, 20)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--data", "photos", "captions.csv", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "data: captions: images 60 train, 20 val, 20 test" in out and "folder: runs/photos" in out
    rows = (tmp_path / "runs/photos/scores.csv").read_text()
    # Fewer presets, the same rows; nothing is trained again.
    assert main(["evaluate", "runs/photos", "--config.run.presets=closed_form"]) == 0
    assert sorted((tmp_path / "runs/photos/scores.csv").read_text().splitlines()) == sorted(rows.splitlines())
    stored = json.loads((tmp_path / "runs/photos/config.json").read_text())
    assert set(stored["run"]["presets"]) == {"random", "correspond", "mdw", "closed_form", "experts"}
    # A forgotten flag is an error, not a new set.
    before = sorted(path for path in (tmp_path / "runs/photos").rglob("*"))
    assert main(["export", "runs/photos", "--config.distill.lr_images=1", "--config.export.license=cc0-1.0"]) == 2
    assert "trains nothing by itself" in capsys.readouterr().err
    assert sorted(path for path in (tmp_path / "runs/photos").rglob("*")) == before
    assert main(["export", "runs/photos", "--config.export.license=cc0-1.0"]) == 0
    for command in ("report", "fairness"):
        assert main([command, "runs/photos"]) in (0, 2)
    monkeypatch.chdir("/")  # the folder holds absolute paths of the data
    assert main(["evaluate", str(tmp_path / "runs/photos")]) == 0


@pytest.mark.slow
def test_own_photos_to_a_student_in_pytorch(tmp_path, monkeypatch):
    """600 / 200 / 200 photos and a CSV, the README's commands and nothing else; minutes."""
    pytest.importorskip("torch")
    write_photos(tmp_path, 600, 200, 200)
    run = lambda *words: subprocess.run([sys.executable, *words], cwd=tmp_path, check=True, capture_output=True,
                                        text=True).stdout
    run("-m", "mdw_jax", "run", "--data", "photos/", "captions.csv", "--pairs", "30")
    run("-m", "mdw_jax", "export", "runs/photos", "--config.export.license=cc0-1.0", "--config.export.with_test=True")
    said = run("runs/photos/export/mdw-0/train.py", "--students", "5")
    assert re.search(r"r_mean.*inside", said, re.DOTALL) and "outside" not in said
