"""A user's own files as a data section."""

import csv

import numpy as np
import pytest
from PIL import Image

from mdw_jax.data.decoding import decode
from mdw_jax.data.own import own_data
from mdw_jax.data.registry import load
from mdw_jax.errors import UserError


def _photo(path, seed, size=(24, 16)):
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    """40 photos and a CSV without splits, which names one photo that is not there."""
    (tmp_path / "photos").mkdir()
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for n in range(40):
            _photo(tmp_path / "photos" / f"{n}.png", n)
            writer.writerow([f"{n}.png", f"a photo of {n}"])
        writer.writerow(["absent.png", "nothing"])
    return tmp_path


def test_a_tenth_is_held_out_twice_and_broken_rows_are_left_out(photos, monkeypatch):
    monkeypatch.chdir(photos)
    data = own_data(["photos", "captions.csv"], 8)
    assert data.held_out == ("val", "test") and data.settings["on_error"] == "skip"
    pairs = load(data.detection.name, **data.settings, size=8)
    assert [len(split.images) for split in (pairs.train, pairs.val, pairs.test)] == [32, 4, 4]
    assert sum(pairs.skipped.values()) == 1
    monkeypatch.chdir("/")  # the settings hold absolute paths
    assert len(load(data.detection.name, **data.settings, size=8).train.images) == 32


def test_images_that_do_not_fit_into_memory_stay_on_disk(photos):
    paths = [photos / "photos", photos / "captions.csv"]
    assert "stream" not in own_data(paths, 8).settings and own_data(paths, 10_000).settings["stream"] is True


def test_crop_takes_the_central_square(tmp_path):
    stripes = np.zeros((8, 16, 3), np.uint8)
    stripes[:, :4], stripes[:, 12:] = (255, 0, 0), (0, 0, 255)  # red left, blue right of a black square
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    data = (tmp_path / "wide.png").read_bytes()
    assert not decode(data, 8, "crop").any()
    squashed = decode(data, 8, "squash")
    assert squashed[:, 0, 0].min() > 200 and squashed[:, -1, 2].min() > 200


@pytest.mark.parametrize("size", [(16, 9), (9, 16), (17, 16)])
def test_crop_keeps_the_aspect(tmp_path, size):
    """The same pixels as cropping first, where the square has whole pixels; a square image is not changed."""
    _photo(tmp_path / "x.png", 1, size)
    image = Image.open(tmp_path / "x.png")
    left, top = ((size[0] - min(size)) / 2, (size[1] - min(size)) / 2)
    box = (left, top, left + min(size), top + min(size))
    expected = np.asarray(image.resize((5, 5), Image.Resampling.BICUBIC, box))
    assert np.array_equal(decode((tmp_path / "x.png").read_bytes(), 5, "crop"), expected)


def test_streamed_images_know_how_they_were_fitted(photos):
    data = own_data([photos / "photos", photos / "captions.csv"], 8)
    prints = {fit: load(data.detection.name, **data.settings, size=8, stream=True, fit=fit).fingerprint
              for fit in ("crop", "squash")}
    assert prints["crop"] != prints["squash"]


def test_an_empty_path_is_not_the_current_directory(photos, monkeypatch):
    monkeypatch.chdir(photos)
    with pytest.raises(UserError, match="--data is given an empty path"):
        own_data([""], 8)
