"""Data sets written by the real `datasets` library are read back from every place it can put them."""

import numpy as np
import pytest
from miniature import encoded, same, write_images

from mdw_jax.data.decoding import decode
from mdw_jax.data.readers.hf import hf
from mdw_jax.errors import UserError

datasets = pytest.importorskip("datasets")


def _table(rows, **columns):
    return datasets.Dataset.from_dict({
        "image": [{"bytes": encoded(i), "path": None} for i in rows],
        "caption": [[f"Photo {i}, told {told}." for told in ("once", "twice")] for i in rows],
        "sentences": [[{"raw": f"Raw {i}."}] for i in rows],
        "name": [f"{i}.jpg" for i in rows], "score": [i / 2 for i in rows], **columns,
    }).cast_column("image", datasets.Image())


SPLITS = {"train": [0, 1, 2, 3], "restval": [4], "validation": [5, 6], "test": [7]}


@pytest.fixture
def saved(tmp_path):
    datasets.DatasetDict({split: _table(rows) for split, rows in SPLITS.items()}).save_to_disk(str(tmp_path / "mini"))
    return tmp_path / "mini"


def _check(pairs, train=(0, 1, 2, 3)):
    for split, rows in {"train": train, "val": [5, 6], "test": [7]}.items():
        got = getattr(pairs, split)
        np.testing.assert_array_equal(np.asarray(got.images), [decode(encoded(i), 16) for i in rows])
        assert got.captions == tuple(f"Photo {i}, told {told}." for i in rows for told in ("once", "twice"))
        assert got.image_of.tolist() == [row for row in range(len(rows)) for _ in range(2)]


def test_saved_to_disk(saved):
    pairs = hf(saved, size=16, key_column="name", attribute_columns="score")
    _check(pairs)
    assert pairs.name == "mini" and pairs.val.attributes["score"].tolist() == [2.5, 3.0]
    assert pairs.val.attributes["key"].tolist() == ["5.jpg", "6.jpg"]
    _check(hf(saved, size=16, train_split="train+restval"), train=(0, 1, 2, 3, 4))
    assert hf(saved, size=16, caption_columns="sentences/raw,caption").test.captions[:2] == ("Raw 7.",
                                                                                            "Photo 7, told once.")
    same(hf(saved, size=16, stream=True), hf(saved, size=16))


def test_parquet_files_and_folders_of_them(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        _table(SPLITS[split]).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    _check(hf(folder, size=16, cache=str(tmp_path / "cache")))
    one = hf(folder / "train-00000-of-00001.parquet", cache=str(tmp_path / "cache"), size=16, holdout_val=1,
             holdout_test=1)
    both = hf(f"{folder}/t*.parquet", cache=str(tmp_path / "cache"), size=16, holdout_val=1, holdout_test=1)
    assert len(one.train.images) == 2 and len(both.train.images) == 3


def test_images_by_path_and_by_bytes(tmp_path):
    names = write_images(tmp_path / "images", 3)
    texts = [f"Photo {i}." for i in range(3)]
    for name, images in {"by_path": [str(tmp_path / "images" / name) for name in names],
                         "by_bytes": [encoded(i) for i in range(3)]}.items():
        datasets.Dataset.from_dict({"image": images, "caption": texts}).save_to_disk(str(tmp_path / name))
    read = [hf(tmp_path / name, size=16, holdout_val=1, holdout_test=1, stream=True)
            for name in ("by_path", "by_bytes")]
    assert read[0].fingerprint == read[1].fingerprint and sorted(map(len, read[0].train.captions)) == [8]


def test_rows_of_one_image_are_one_image(tmp_path):
    _table([0, 1, 0, 2, 3]).save_to_disk(str(tmp_path / "mini"))
    pairs = hf(tmp_path / "mini", size=16, holdout_val=1, holdout_test=1)
    assert sum(len(split.images) for split in (pairs.train, pairs.val, pairs.test)) == 4
    assert sum(len(split.captions) for split in (pairs.train, pairs.val, pairs.test)) == 10


def test_broken_images(tmp_path):
    rows = list(range(5))
    images = [{"bytes": encoded(i) if i != 2 else b"broken", "path": None} for i in rows]
    whole = _table([7])
    datasets.DatasetDict({"train": _table(rows, image=images), "test": whole}).save_to_disk(str(tmp_path / "mini"))
    settings = {"size": 16, "key_column": "name", "val_split": "test"}
    for stream in (False, True):
        with pytest.raises(UserError, match=r"1 of 7 images cannot be decoded, the first is '2\.jpg'"):
            hf(tmp_path / "mini", stream=stream, **settings)
        assert hf(tmp_path / "mini", stream=stream, skip_broken=True, **settings).skipped == {"broken image": 1}


@pytest.mark.parametrize("settings, message", [
    ({"val_split": "dev"}, "no split 'dev', only train, restval, validation, test; set val_split or holdout_val"),
    ({"image_column": "photo"}, "no column 'photo'; it has image, caption, sentences, name, score"),
    ({"image_column": "score"}, "column 'score' .* cannot be read as images"),
    ({"caption_columns": ""}, "no caption_columns are given"),
    ({"caption_columns": "sentences/text"}, "row 0 .* cannot be read"),
    ({"caption_columns": "score"}, "captions of 'mini' are empty or not text"),
])
def test_wrong_settings(saved, settings, message):
    with pytest.raises(UserError, match=message):
        hf(saved, size=16, **settings)


def test_no_such_data_set(tmp_path):
    for source in (tmp_path / "nowhere", tmp_path / "nowhere.parquet"):
        with pytest.raises(UserError, match="cannot load the data set '.*nowhere"):
            hf(source, cache=str(tmp_path / "cache"))
