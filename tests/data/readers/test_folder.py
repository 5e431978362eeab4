"""The folder reader, and what every reader shares: one table is written in every format, then spoilt in every way."""

import csv
import gzip
import json
import zipfile

import numpy as np
import pytest
from miniature import encoded, same, write_images

from mdw_jax.data.decoding import decode
from mdw_jax.data.readers.folder import folder
from mdw_jax.errors import UserError

SPLITS = ("train", "val", "train", "test", "train", "val", "train", "test", "other")


def _rows():
    """One row a caption, the two captions of an image far apart."""
    return [{"image": f"{i}.jpeg", "caption": f"Photo {i}, told {told}.", "split": split, "score": i / 2,
             "source": "web"}
            for told in ("once", 'twice, "again"') for i, split in enumerate(SPLITS)]


def _csv(path, rows, delimiter=",", opened=open):
    with opened(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def _lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _listed():
    rows = _rows()
    return [a | {"caption": [a["caption"], b["caption"]]} for a, b in zip(rows[:9], rows[9:])]


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path, 9)
    return tmp_path


def _read(path, **settings):
    return folder(path, **{"size": 16, "split_column": "split", **settings})


def test_everything_of_a_table(images):
    pairs = _read(_csv(images / "mini.csv", _rows()), attribute_columns="score, source")
    assert pairs.name == "mini" and not pairs.skipped
    for split, members in {"train": [0, 2, 4, 6], "val": [1, 5], "test": [3, 7]}.items():
        got = getattr(pairs, split)
        np.testing.assert_array_equal(got.images, [decode(encoded(i), 16) for i in members])
        truth = np.array([decode(encoded(i, "PNG"), 16) for i in members], int)
        assert np.abs(got.images - truth).mean() < 6  # JPEG's own loss
        assert got.captions == tuple(f"Photo {i}, told {told}." for i in members for told in ("once", 'twice, "again"'))
        assert got.image_of.tolist() == [row for row in range(len(members)) for _ in range(2)]
        assert got.attributes["key"].tolist() == [f"{i}.jpeg" for i in members]
        assert got.attributes["source"].tolist() == ["web"] * len(members)
    # Captions are numbered in the order of the table, split by split.
    assert pairs.train.caption_ids.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert pairs.val.caption_ids.tolist() == [8, 10, 9, 11]


def test_every_format_is_the_same_data(images):
    rows = _rows()
    want = _read(_csv(images / "mini.csv", rows))
    packed = images / "images.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(9):
            archive.writestr(f"top/{i}.jpeg", encoded(i))
    others = [
        _read(_csv(images / "mini.csv.gz", rows, opened=gzip.open)),
        _read(_csv(images / "mini.tsv", rows, "\t"), images=packed),
        _read(_csv(images / "mini.v2.csv", rows, "|"), delimiter="|", stream=True),
        _read(_lines(images / "mini.jsonl", rows), images=packed, stream=True),
        _read(_lines(images / "nested.jsonl", [row | {"caption": {"en": [{"raw": text} for text in row["caption"]]}}
                                               for row in _listed()]), caption_columns="caption/en/raw"),
        _read(_lines(images / "wide.jsonl", [row | {"a": row["caption"][0], "b": row["caption"][1]}
                                             for row in _listed()]), caption_columns=("a", "b"), stream=True),
    ]
    for other in others:
        for split in ("train", "val", "test"):
            got, wanted = getattr(other, split), getattr(want, split)
            np.testing.assert_array_equal(np.asarray(got.images), wanted.images)
            assert got.captions == wanted.captions and got.image_of.tolist() == wanted.image_of.tolist()
    streamed = [others[2], others[3]]  # from a folder and from a zip: the same sums, so the same fingerprint
    assert streamed[0].fingerprint == streamed[1].fingerprint != want.fingerprint
    (images / "2.jpeg").write_bytes(encoded(99))
    assert _read(images / "mini.csv", stream=True).fingerprint != streamed[0].fingerprint


def test_parquet(images):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist(_listed()), images / "mini.parquet", row_group_size=4)
    got = _read(images / "mini.parquet", attribute_columns=("score",))
    assert got.fingerprint != _read(_csv(images / "mini.csv", _rows())).fingerprint  # captions are numbered otherwise
    assert got.train.captions == _read(images / "mini.csv").train.captions
    assert got.train.attributes["score"].tolist() == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(UserError, match="no column 'text'; it has image, caption, split, score"):
        folder(images / "mini.parquet", caption_columns="text", attribute_columns="score")
    (images / "mini.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable Parquet or Arrow file"):
        _read(images / "mini.parquet")


def test_lazy_is_eager(images):
    table = _csv(images / "mini.csv", _rows())
    same(_read(table, stream=True, attribute_columns="score"), _read(table, attribute_columns="score"))
    same(_read(table, stream=True, check=False, limit=1), _read(table, limit=1))
    (images / "2.jpeg").write_bytes(encoded(2)[:300])
    same(_read(table, stream=True, on_error="skip", max_skipped=0.9), _read(table, on_error="skip", max_skipped=0.9))


def _keys(pairs):
    return {split: getattr(pairs, split).attributes["key"].tolist() for split in ("train", "val", "test")}


def test_held_out_splits_are_seeded_and_free_of_order(images):
    rows, n = _rows(), len(SPLITS)
    one = _keys(folder(_csv(images / "a.csv", rows), size=8, holdout_val=2, holdout_test=3))
    assert [len(one[split]) for split in one] == [n - 5, 2, 3]
    assert sorted(sum(one.values(), [])) == [f"{i}.jpeg" for i in range(n)]
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    other = _keys(folder(_csv(images / "b.csv", shuffled), size=8, holdout_val=2, holdout_test=3))
    assert {split: set(keys) for split, keys in one.items()} == {split: set(keys) for split, keys in other.items()}
    assert set(one["test"]) == set(_keys(folder(images / "a.csv", size=8, holdout_val=4, holdout_test=3))["test"])
    seeds = {tuple(_keys(folder(images / "a.csv", size=8, holdout_val=2, holdout_test=3, holdout_seed=seed))["test"])
             for seed in range(6)}
    assert len(seeds) > 1
    # Where only val is missing, test is the source's own.
    part = _read(images / "a.csv", val_split="", holdout_val=1)
    assert _keys(part)["test"] == ["3.jpeg", "7.jpeg"] and len(part.train.images) == 3


def test_limit_and_numbers_of_captions(images):
    table = _csv(images / "mini.csv", _rows())
    whole, part = _read(table), _read(table, limit=1)
    assert part.test.caption_ids.tolist() == whole.test.caption_ids[:2].tolist()
    np.testing.assert_array_equal(part.val.images, whole.val.images[:1])


@pytest.mark.parametrize("stream", [False, True])
def test_broken_images_are_an_error_or_counted(images, stream):
    table = _csv(images / "mini.csv", _rows())
    for name in ("2.jpeg", "7.jpeg"):
        (images / name).write_bytes(encoded(1)[:300])
    with pytest.raises(UserError, match=r"mini\.csv' cannot be .* 2 broken images \(the first: '2\.jpeg', line 4 \(.* set "
                       r"data.on_error=skip"):
        _read(table, stream=stream)
    pairs = _read(table, stream=stream, on_error="skip", max_skipped=0.9)
    assert pairs.skipped == {"broken image": 2}
    assert _keys(pairs)["train"] == ["0.jpeg", "4.jpeg", "6.jpeg"]
    assert pairs.train.caption_ids.tolist()[:4] == [0, 4, 2, 6]
    np.testing.assert_array_equal(pairs.train.images[1], decode(encoded(4), 16))
    (images / "3.jpeg").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 2 images of split 'test'"):
        _read(table, stream=stream, on_error="skip", max_skipped=0.9)


def test_columns_of_attributes(images):
    rows = [row | {"flag": i % 2 == 0, "maybe": None if i else 3, "word": None if i else "x"}
            for i, row in enumerate(_listed())]
    got = _read(_lines(images / "mini.jsonl", rows), attribute_columns=("flag", "maybe", "word", "caption")).train
    assert got.attributes["flag"].tolist() == [True] * 4 and got.attributes["flag"].dtype == bool
    np.testing.assert_array_equal(got.attributes["maybe"], [3, np.nan, np.nan, np.nan])
    assert got.attributes["word"].tolist() == ["x", "", "", ""]
    assert json.loads(got.attributes["caption"][1]) == list(got.captions[2:4])


def _change(row, **values):
    return lambda rows: rows[row].update(values)


@pytest.mark.parametrize("change, settings, message", [
    (_change(2, caption=" "), {}, r"1 empty caption \(caption 1 of '2\.jpeg', whose first is in line 3\)"),
    (_change(2, caption=None), {}, r"1 empty caption \(caption 1 of '2\.jpeg'"),
    (_change(11, caption=None), {}, r"1 empty caption \(caption 2 of '2\.jpeg', whose first is in line 3\)"),
    (_change(0, caption=""), {}, r"mini\.jsonl' cannot be used as it is: 1 empty caption \(caption 1 of '0\.jpeg'"),
    (_change(2, caption=[]), {}, None),  # its other row has one
    (lambda rows: [rows[i].update(caption=[]) for i in (2, 11)], {}, r"1 image without a caption \('2\.jpeg'"),
    (_change(2, image="nowhere.jpeg"), {}, r"1 absent image \('nowhere\.jpeg'"),
    (_change(2, image=["0.jpeg", "1.jpeg"]), {}, r"'image' .* one file name in each row, but row 3 has"),
    (_change(11, split="val"), {}, r"1 image of .* is in two splits, train and val, the first is '2.jpeg'"),
    (lambda rows: rows[3].pop("caption"), {}, "row 4 .* no column 'caption'; it has image, split"),
    (None, {"split_column": "fold"}, "row 1 .* no column 'fold'"),
    (None, {"attribute_columns": "size"}, "row 1 .* no column 'size'"),
    (None, {"val_split": "dev"}, r"column 'split' .* no image of split 'dev', only of val \(4 rows\), other \(2 rows\), "
     r"train, test; set data.val_split or hold some out of train with data.holdout_val"),
    (None, {"holdout_val": 3, "holdout_test": 1}, "holding out 4 images leaves none of the 4"),
    (None, {"holdout_val": -1}, "hold-outs at least 0, not 16, None, -1 and 0"),
    (None, {"size": 0}, "at least 1"), (None, {"limit": 0}, "at least 1"),
    (None, {"images": "nowhere"}, "no image directory or zip file 'nowhere'"),
])
def test_bad_tables(images, change, settings, message):
    rows = _rows()
    if change:
        change(rows)
    if message is None:
        assert len(_read(_lines(images / "mini.jsonl", rows)).train.captions) == 7
        return
    with pytest.raises(UserError, match=message):
        _read(_lines(images / "mini.jsonl", rows), **settings)


def test_a_fault_in_one_of_several_tables_names_the_table(images):
    rows = _rows()
    rows[11]["caption"] = ""
    tables = [_csv(images / "a.csv", rows[:9]), _csv(images / "b.csv", rows[9:])]
    with pytest.raises(UserError, match=r"\(caption 2 of '2\.jpeg', whose first is in line 4 of '.*/a\.csv'\)"):
        _read(tables)


@pytest.mark.parametrize("name, data, message", [
    ("a.txt", b"", "is empty"), ("none.csv", None, "no table '.*none.csv'"),
    ("a.jsonl", b"{", "not readable JSON"), ("a.jsonl", b"[1]\n", "entry 1 of .* is no object but '1'"),
    ("a.jsonl", b'[{"image": "0.jpeg", "caption": "a"},', "entry 2 of .* is damaged or cut off"),
    ("a.jsonl", b'{"image": "0.jpeg", "caption": "a"}\n{"image": ', "line 2 of .* is no JSON object"),
    ("a.csv", b"\xff\xfe", "is empty"), ("a.csv", b"image,caption\n0.jpeg,\xff\n", "line 2 of .* is not in UTF-8"),
    ("a.csv", b'image,note,caption\n0.jpeg,,"x\n', r"1 broken row \(line 2 .*quotation mark"),
    ("a.csv.gz", b"\x1f\x8b", "cannot be read"), ("a.csv", b"", "is empty"),
    ("a.csv", b"image,caption\n", "split 'train' of '.*a.csv' has no images; check the source"),
    ("a.csv", b"PK\x03\x04", "is a zip file"),
    ("a.csv", b"<html>", "is an HTML page"), ("a.csv", b"image,caption,image\n", "two columns called 'image'"),
    ("a.csv", b"image\n0.jpeg\n", "without tabs, commas, pipes or semicolons"),
    ("a.json", b'{"a": {"b": 1}}', "JSON object of no known form, with the keys a"),
    ("a.json", b'{"images": [{}], "annotations": [{}]}', "not COCO's captions"),
    ("a.json", b"[" * 100000, "damaged or cut off"), ("a.json", b'{"a":' * 100000, "not readable JSON"),
])
def test_damaged_tables(images, name, data, message):
    if data is not None:
        (images / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        folder(images / name)
