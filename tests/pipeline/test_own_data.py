"""A config for a user's own data."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from mdw_jax.cli import main
from mdw_jax.config import base, resolve
from mdw_jax.config.stored import CONFIG
from mdw_jax.errors import UserError
from mdw_jax.models.weights.shipped import SHIPPED, shipped_or_local
from mdw_jax.pipeline import own_data
from mdw_jax.pipeline.own_data import own_config, refuse_other_data


@pytest.fixture
def photos(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for n in range(60):
            pixels = np.random.default_rng(n).integers(0, 255, (6, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"{n}.png")
            writer.writerow([f"{n}.png", f"photo {n}"])
    monkeypatch.chdir(tmp_path)
    return ["photos", "captions.csv"]


@pytest.mark.parametrize(("minilm", "hub", "accelerator", "tower", "text"), [
    (False, False, False, "mobilenet_v2", ("bow", "")),
    (True, False, False, "mobilenet_v2", ("transformer", "all-MiniLM-L6-v2")),
    (False, True, False, "mobilenet_v2", ("transformer", "sentence-transformers/all-MiniLM-L6-v2")),
    (True, True, True, "timm/nfnet_l0.ra2_in1k", ("transformer", "all-MiniLM-L6-v2")),
    (False, False, True, "mobilenet_v2", ("bow", ""))])
def test_towers_and_encoders_are_what_is_there(photos, monkeypatch, minilm, hub, accelerator, tower, text):
    monkeypatch.setattr(own_data, "is_installed", lambda name: minilm)
    monkeypatch.setattr(own_data, "is_reachable", lambda name: hub)
    monkeypatch.setattr(own_data.jax, "default_backend", lambda: "gpu" if accelerator else "cpu")
    c = own_config(photos)
    assert (c.model.weights, (c.text.encoder, c.text.path)) == (tower, text)
    assert c.data.size == (224 if accelerator else 160) and c.run.dir == "runs/photos"
    assert resolve(c).noise.protocol == "natural" and c.noise.rate == base().noise.rate


def test_a_budget_fits_the_data(photos):
    c = resolve(own_config(photos))
    counted = 60 - 2  # one image of val and test each, as in the pass that counts
    assert c.distill.pairs == counted // 6 == c.distill.batch and c.experts.batch == counted // 4


def test_another_config_keeps_everything_but_its_data(photos):
    given = base()
    given.data.name, given.data.train, given.data.size = "scenes", 77, 48
    given.noise.protocol, given.run.dir, given.experts.epochs = "image", "runs/mine", 3
    c = own_config(photos, given.lock())
    assert (c.data.name, c.data.train, c.data.size) == ("folder", base().data.train, 48)
    assert (c.run.dir, c.experts.epochs, c.noise.protocol) == ("runs/mine", 3, "")
    assert given.data.name == "scenes"


def test_a_folder_of_other_data_is_not_used_again(photos, tmp_path, capsys):
    c = own_config(photos)
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    (tmp_path / "runs" / "photos" / CONFIG).write_text(json.dumps(c.to_dict()))
    refuse_other_data(own_config(photos))
    (tmp_path / "captions.csv").rename(tmp_path / "others.csv")
    with pytest.raises(UserError, match="holds a run of other data .data.annotations is"):
        refuse_other_data(own_config(["photos", "others.csv"]))
    assert main(["config", "--data", "photos", "others.csv", "--config.run.dir=runs/second"]) == 0
    assert "dir: runs/second" in capsys.readouterr().out


def test_weights_that_travel_are_the_files_of_their_readme():
    import hashlib

    for name, file in SHIPPED.items():
        path = shipped_or_local(name)
        assert hashlib.sha256(path.read_bytes()).hexdigest() in (path.parent / "README.md").read_text()
        assert path.name == file and (path.parent / "LICENSE").is_file()
