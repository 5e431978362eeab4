"""A small data set is prepared by the real TensorFlow Datasets, as ArrayRecord, and read back."""

import io
import sys

import numpy as np
import pytest
from miniature import encoded, same

from mdw_jax.data.decoding import decode
from mdw_jax.data.readers.tfds import tfds
from mdw_jax.errors import UserError

library = pytest.importorskip("tensorflow_datasets")

SPLITS = {"train": range(5), "val": range(5, 7), "test": range(7, 8)}


class MiniCaptions(library.core.GeneratorBasedBuilder):
    """Features as coco_captions has them."""

    VERSION = library.core.Version("1.0.0")

    def _info(self):
        text = library.features.Text()
        return library.core.DatasetInfo(builder=self, features=library.features.FeaturesDict({
            "image": library.features.Image(encoding_format="jpeg"), "image/filename": text, "image/id": np.int64,
            "captions": library.features.Sequence({"id": np.int64, "text": text}),
            "flat": library.features.Sequence(text), "one": text}))

    def _split_generators(self, manager):
        return {split: self._generate_examples(rows) for split, rows in SPLITS.items()}

    def _generate_examples(self, rows):
        for i in rows:
            yield i, {"image": io.BytesIO(encoded(i)), "image/filename": f"{i}.jpg", "image/id": i, "one": f"One {i}.",
                      "captions": [{"id": 10 * i + told, "text": f"Photo {i}, told {told}."}
                                   for told in range(1 + i % 3)],
                      "flat": [f"Flat {i} é", "Again."]}


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
    assert "tensorflow" not in sys.modules


def test_lazy_is_eager(prepared):
    same(tfds(prepared, size=16, stream=True, attribute_columns="one"),
         tfds(prepared, size=16, attribute_columns="one"))


def test_other_features_and_splits(prepared):
    pairs = tfds(prepared, size=16, caption_columns="flat,one", train_split="train+val", holdout_val=3)
    assert len(pairs.train.images) == 4 and len(pairs.val.images) == 3
    assert pairs.test.captions == ("Flat 7 é", "Again.", "One 7.")
    assert len(tfds(prepared, size=16, train_split="train[:40%]").train.images) == 2


@pytest.mark.parametrize("settings, message", [
    ({"val_split": "dev"}, "cannot read split 'dev' of .* it has train, val, test: set val_split or holdout_val"),
    ({"caption_columns": "captions/raw"}, "has no feature 'raw'"),
    ({"image_column": "photo"}, "has no feature 'photo'; it has captions, flat, image, "),
    ({"key_column": "name"}, "has no feature 'name'; it has captions, flat, image, "),
    ({"caption_columns": ()}, "no caption_columns are given"),
    ({"caption_columns": "image/id"}, None),
])
def test_wrong_settings(prepared, settings, message):
    if message is None:  # numbers are text, if someone wants that
        assert tfds(prepared, size=16, **settings).test.captions == ("7",)
        return
    with pytest.raises(UserError, match=message):
        tfds(prepared, size=16, **settings)


def test_no_such_data_set(tmp_path):
    with pytest.raises(UserError, match="cannot find the data set 'nowhere_captions'"):
        tfds("nowhere_captions", data_dir=str(tmp_path))


def test_a_builder_that_is_not_prepared(tmp_path):
    with pytest.raises(UserError, match="'mini_captions' is not prepared"):
        tfds("mini_captions", data_dir=str(tmp_path))
