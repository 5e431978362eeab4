"""A small data set is prepared by the real TensorFlow Datasets, as ArrayRecord, and read back."""

import io
import sys

import numpy as np
import pytest
from miniature import encoded, same

from mdw_jax.data.decoding import decode
from mdw_jax.data.readers.tfds import tfds
from mdw_jax.data.tables.cells import LIST
from mdw_jax.errors import UserError

library = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed: pip install "
                              "'mdw-jax[tfds]'")

SPLITS = {"train": range(5), "val": range(5, 7), "test": range(7, 8)}


class MiniCaptions(library.core.GeneratorBasedBuilder):
    """Features as coco_captions has them."""

    VERSION = library.core.Version("1.0.0")

    def _info(self):
        text = library.features.Text()
        return library.core.DatasetInfo(builder=self, features=library.features.FeaturesDict({
            "image": library.features.Image(encoding_format="jpeg"), "image/filename": text, "image/id": np.int64,
            "captions": library.features.Sequence({"id": np.int64, "text": text}),
            "flat": library.features.Sequence(text), "one": text, "json": text, "faulty": library.features.Sequence(text)}))

    def _split_generators(self, manager):
        return {split: self._generate_examples(rows) for split, rows in SPLITS.items()}

    def _generate_examples(self, rows):
        for i in rows:
            yield i, {"image": io.BytesIO(encoded(i)), "image/filename": f"{i}.jpg", "image/id": i, "one": f"One {i}.",
                      "captions": [{"id": 10 * i + told, "text": f"Photo {i}, told {told}."}
                                   for told in range(1 + i % 3)],
                      "flat": [f"Flat {i} é", "Again."], "json": f'["Json {i}.", "Again."]',
                      "faulty": ["Good.", *([b"\xff"] if i == 1 else ["nan"] if i == 2 else [""] if i == 3 else [])]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = MiniCaptions(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def test_everything_of_a_builder(prepared):
    pairs = tfds(prepared, size=16, key_column="image/filename", attribute_columns="image/id,one")
    assert pairs.name == "mini_captions"
    for split, rows in SPLITS.items():
        got = getattr(pairs, split)
        ids = got.attributes["image/id"].tolist()  # TFDS shuffles what it writes
        assert sorted(ids) == list(rows) and got.attributes["key"].tolist() == [f"{i}.jpg" for i in ids]
        np.testing.assert_array_equal(got.images, [decode(encoded(i), 16) for i in ids])
        assert got.captions == tuple(f"Photo {i}, told {told}." for i in ids for told in range(1 + i % 3))
        assert got.attributes["one"].tolist() == [f"One {i}." for i in ids]
    assert f"'{prepared}' was read with images in 'image' and captions in 'captions/text'." in pairs.notes
    assert "tensorflow" not in sys.modules


def test_lazy_is_eager(prepared):
    same(tfds(prepared, size=16, stream=True, attribute_columns="one"),
         tfds(prepared, size=16, attribute_columns="one"))


def test_other_features_and_splits(prepared):
    pairs = tfds(prepared, size=16, caption_columns="flat,one", train_split="train+val", holdout_val=3)
    assert len(pairs.train.images) == 4 and len(pairs.val.images) == 3
    assert pairs.test.captions == ("Flat 7 é", "Again.", "One 7.")
    assert len(tfds(prepared, size=16, train_split="train[:40%]").train.images) == 2


def test_what_is_left_out_is_said(prepared):
    assert "examples of other splits were left out: 2 of val." in tfds(prepared, size=16, holdout_val=2).notes
    pairs = tfds(prepared, size=16, caption_columns="json")
    assert pairs.test.captions == ("Json 7.", "Again.") and any(f"8 captions {LIST}" in note for note in pairs.notes)
    with pytest.raises(UserError, match=r"1 empty caption \("):
        tfds(prepared, size=16, caption_columns="faulty")
    assert tfds(prepared, size=16, caption_columns="faulty", on_error="skip", max_skipped=0.5).skipped == {
        "caption not in Unicode": 1, "missing value as caption": 1, "empty caption": 1}


@pytest.mark.parametrize("settings, message", [
    ({"val_split": "dev"}, r"cannot read split 'dev' of .* it has train \(5 images\), val \(2 images\), test \(1 images\): "
                           "set data.val_split to one of them, or data.holdout_val=1 to hold a tenth of train out"),
    ({"caption_columns": "captions/raw"}, "has no feature 'captions/raw'; it has captions, .* where it ends id, text: set "
                                          "data.caption_columns"),
    ({"caption_columns": "captions"}, "feature 'captions' of .* holds no captions but nested ones: name one"),
    ({"image_column": "photo"}, "has no feature 'photo'; it has captions, faulty, flat, image, "),
    ({"image_column": "one"}, "feature 'one' of .* is no image; set data.image_column"),
    ({"key_column": "name"}, "has no feature 'name'; it has captions, .* set data.key_column"),
    ({"caption_columns": "image/id"}, "feature 'image/id' of .* holds no captions; set data.caption_columns"),
])
def test_wrong_settings(prepared, settings, message):
    with pytest.raises(UserError, match=message):
        tfds(prepared, size=16, **settings)


class TrainOnly(MiniCaptions):
    """With no val and no test, as many have it."""

    def _split_generators(self, manager):
        return {"train": self._generate_examples(range(20))}


def test_a_split_that_is_not_there(tmp_path):
    builder = TrainOnly(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    with pytest.raises(UserError, match=r"cannot read a split for val .*train \(20 images\): .*data.holdout_val=2 to hold"):
        tfds(builder.data_dir, size=16)
    pairs = tfds(builder.data_dir, size=16, holdout_val=2, holdout_test=2)
    assert [len(split.images) for split in (pairs.train, pairs.val, pairs.test)] == [16, 2, 2]


def test_no_such_data_set(tmp_path):
    with pytest.raises(UserError, match="cannot find the data set 'nowhere_captions'"):
        tfds("nowhere_captions", data_dir=str(tmp_path))


def test_a_builder_that_is_not_prepared(tmp_path):
    with pytest.raises(UserError, match="'mini_captions' is not prepared"):
        tfds("mini_captions", data_dir=str(tmp_path))
