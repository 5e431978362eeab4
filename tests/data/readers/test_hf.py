"""Data sets written by the real `datasets` and `pyarrow` libraries are read back from every place they can put them."""

import json
import re
import zipfile

import numpy as np
import pytest
from miniature import encoded, same, write_images

from mdw_jax.data.decoding import decode
from mdw_jax.data.readers.hf import hf
from mdw_jax.data.tables.cells import LIST
from mdw_jax.errors import UserError

datasets = pytest.importorskip("datasets", reason="the datasets library is not installed: pip install 'mdw-jax[test]'")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

SPLITS = {"train": [0, 1, 2, 3], "restval": [4], "validation": [5, 6], "test": [7]}
HALF = {"size": 16, "on_error": "skip", "max_skipped": 0.5, "holdout_val": 1, "holdout_test": 1}


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    """No network, no progress bars, nothing in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def _table(rows, **columns):
    return datasets.Dataset.from_dict({
        "image": [{"bytes": encoded(i), "path": None} for i in rows],
        "caption": [[f"Photo {i}, told {told}." for told in ("once", "twice")] for i in rows],
        "sentences": [[{"raw": f"Raw {i}."}] for i in rows],
        "name": [f"{i}.jpg" for i in rows], "score": [i / 2 for i in rows], **columns,
    }).cast_column("image", datasets.Image())


def _parquet(path, **columns):
    """Write a Parquet file by pyarrow; columns are lists or Arrow arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def _pictures(rows):
    return [{"bytes": encoded(i), "path": f"{i}.jpg"} for i in rows]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "mini"
    datasets.DatasetDict({split: _table(rows) for split, rows in SPLITS.items()}).save_to_disk(str(folder))
    return folder


def _check(pairs, train=(0, 1, 2, 3)):
    for split, rows in {"train": train, "val": [5, 6], "test": [7]}.items():
        got = getattr(pairs, split)
        np.testing.assert_array_equal(np.asarray(got.images), [decode(encoded(i), 16) for i in rows])
        assert got.captions == tuple(f"Photo {i}, told {told}." for i in rows for told in ("once", "twice"))
        assert got.image_of.tolist() == [row for row in range(len(rows)) for _ in range(2)]


def _captions(pairs):
    return sorted(caption for split in (pairs.train, pairs.val, pairs.test) for caption in split.captions)


# ---- sources ---------------------------------------------------------------------------------------------------------

def test_saved_to_disk(saved):
    pairs = hf(saved, size=16, key_column="name", attribute_columns="score")
    _check(pairs)
    assert pairs.name == "mini" and pairs.val.attributes["score"].tolist() == [2.5, 3.0]
    assert pairs.val.attributes["key"].tolist() == ["5.jpg", "6.jpg"]
    assert "rows of other splits were left out: 1 of restval." in pairs.notes
    _check(hf(saved, size=16, train_split="train+restval"), train=(0, 1, 2, 3, 4))
    assert hf(saved, size=16, caption_columns="sentences/raw,caption").test.captions[:2] == ("Raw 7.",
                                                                                            "Photo 7, told once.")
    same(hf(saved, size=16, stream=True), hf(saved, size=16))


def test_parquet_files_and_folders_of_them(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        _table(SPLITS[split]).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    _check(hf(folder, size=16))
    _check(hf(f"{folder}/*.parquet", size=16))
    one = hf(folder / "train-00000-of-00001.parquet", size=16, holdout_val=1, holdout_test=1)
    both = hf(f"{folder}/t*.parquet", size=16, train_split="train+test", holdout_val=1, holdout_test=1)
    assert len(one.train.images) == 2 and len(both.train.images) == 3


def test_files_whose_names_say_no_split(tmp_path):
    for i in range(5):
        _parquet(tmp_path / "plain" / f"{i:05d}.parquet", image=_pictures([i]), caption=[f"Photo {i}."])
    pairs = hf(f"{tmp_path}/plain/*.parquet", size=16, holdout_val=1, holdout_test=1)
    assert _captions(pairs) == [f"Photo {i}." for i in range(5)] and len(pairs.train.images) == 3
    for split, i in {"train": 0, "val": 1, "test": 2}.items():
        _parquet(tmp_path / "dirs" / split / "0.parquet", image=_pictures([i]), caption=[f"Photo {i}."])
    _parquet(tmp_path / "dirs" / "more" / "0.parquet", image=_pictures([9]), caption=["Photo 9."])
    pairs = hf(f"{tmp_path}/dirs/*/*.parquet", size=16)
    assert [split.captions for split in (pairs.train, pairs.val, pairs.test)] == [("Photo 0.",), ("Photo 1.",),
                                                                                  ("Photo 2.",)]
    assert "rows of other splits were left out: 1 of unnamed." in pairs.notes
    pairs = hf(tmp_path / "dirs", size=16)  # the library passes over the last without a word
    assert any(re.fullmatch(r"in '.*dirs', 1 file of no split: not read \(the first: 'more/0.parquet'\).*",
                            note) for note in pairs.notes)


def test_arrow_files(saved, tmp_path):
    """As `save_to_disk` names them (streams), and as pyarrow writes files, whatever they are called."""
    assert len(hf(saved / "train" / "data-00000-of-00001.arrow", size=16, holdout_val=1, holdout_test=1).train.images) == 2
    table = pyarrow.table({"image": _pictures(range(4)), "caption": [f"Photo {i}." for i in range(4)]})
    with pyarrow.ipc.new_file(tmp_path / "photos.data", table.schema) as writer:
        writer.write_table(table)
    assert _captions(hf(tmp_path / "photos.data", size=16, holdout_val=1, holdout_test=1)) == [
        f"Photo {i}." for i in range(4)]
    (tmp_path / "photos.csv").write_text("image,caption\n")
    with pytest.raises(UserError, match=r"photos.csv' is neither a Parquet nor an Arrow file; .* data.name=folder"):
        hf(tmp_path / "photos.csv")


def _image_folder(folder, rows, form):
    write_images(folder, len(rows))
    cells = [{"file_name": f"{n}.jpeg", "text": f"Photo {i}."} for n, i in enumerate(rows)]
    if form == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, cells)))
    else:
        (folder / "metadata.csv").write_text("\n".join(["file_name,text", *(",".join(cell.values()) for cell in cells)]))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_image_folders(tmp_path, form):
    for split, rows in {"train": range(3), "validation": range(3, 5), "test": range(5, 6)}.items():
        _image_folder(tmp_path / "photos" / split, rows, form)
    (tmp_path / "photos" / "train" / "extra.jpeg").write_bytes(encoded(8))
    pairs = hf(tmp_path / "photos", size=16)
    assert pairs.train.captions == ("Photo 0.", "Photo 1.", "Photo 2.") and pairs.test.captions == ("Photo 5.",)
    np.testing.assert_array_equal(pairs.val.images, [decode(encoded(i), 16) for i in range(2)])
    assert any(note.endswith("photos', 1 image file in no row of the metadata: not read.") for note in pairs.notes)
    (tmp_path / "photos" / "train" / "1.jpeg").unlink()
    with pytest.raises(UserError, match=r"1 absent image \(row 2 of split 'train' of .*1\.jpeg"):
        hf(tmp_path / "photos", size=16)
    assert hf(tmp_path / "photos", size=16, on_error="skip", max_skipped=0.5).skipped == {"absent image": 1}


def test_image_folders_in_zip_files(tmp_path):
    _image_folder(tmp_path / "loose", range(4), "jsonl")
    (tmp_path / "photos").mkdir()
    with zipfile.ZipFile(tmp_path / "photos" / "train.zip", "w") as archive:
        for path in (tmp_path / "loose").iterdir():
            archive.write(path, path.name)
    pairs = hf(tmp_path / "photos", size=16, stream=True, holdout_val=1, holdout_test=1)
    assert _captions(pairs) == [f"Photo {i}." for i in range(4)] and pairs.train.images[:].shape == (2, 16, 16, 3)


def test_no_such_data_set(tmp_path):
    for source in (tmp_path / "nowhere", tmp_path / "nowhere.parquet", f"{tmp_path}/nowhere/*.parquet"):
        with pytest.raises(UserError, match="cannot load the data set '.*nowhere"):
            hf(source)


# ---- splits ----------------------------------------------------------------------------------------------------------

COLUMN = ["train", "restval", "train", "val", "test", "train", "other", "val", None, "train"]


def _one_split(tmp_path, **columns):
    """As the copies of Flickr30k on the Hub are: all rows in one split, test, and the real ones in a column."""
    _parquet(tmp_path / "hub" / "test-00000-of-00001.parquet", image=_pictures(range(10)),
             caption=[[f"Photo {i}."] for i in range(10)], **columns)
    return tmp_path / "hub"


def _rows(split):
    return [int(caption.split()[1][:-1]) for caption in split.captions]


def test_splits_in_a_column(tmp_path):
    source = _one_split(tmp_path, split=COLUMN)
    pairs = hf(source, size=16, split_column="split")
    assert [_rows(split) for split in (pairs.train, pairs.val, pairs.test)] == [[0, 2, 5, 9, 1], [3, 7], [4]]
    assert "rows whose column 'split' names another split were left out: 1 of other, 1 of no split." in pairs.notes
    pairs = hf(source, size=16, split_column="split", train_split="train", test_split="other", holdout_val=2)
    assert len(pairs.train.images) == 2 and len(pairs.val.images) == 2 and _rows(pairs.test) == [6]
    assert any(note.endswith("left out: 1 of restval, 2 of val, 1 of test, 1 of no split.") for note in pairs.notes)
    with pytest.raises(UserError, match=r"column 'split' of '.*hub' has no value 'dev', only train \(4 rows\), restval "
                       r"\(1 rows\), .*; set data.val_split to one of them, or data.holdout_val=1"):
        hf(source, size=16, split_column="split", val_split="dev")
    with pytest.raises(UserError, match=r"has no column 'fold'; it has image, caption, split: set data.split_column"):
        hf(source, size=16, split_column="fold")


def test_a_split_column_of_class_labels_over_several_splits(tmp_path):
    label = datasets.ClassLabel(names=["test", "train", "val"])
    datasets.DatasetDict({
        "train": _table([0, 1, 2], split=[1, 1, 2]).cast_column("split", label),
        "test": _table([3, 4], split=[0, 1]).cast_column("split", label)}).save_to_disk(str(tmp_path / "mini"))
    pairs = hf(tmp_path / "mini", size=16, split_column="split", key_column="name")
    assert {name: getattr(pairs, name).attributes["key"].tolist() for name in ("train", "val", "test")} == {
        "train": ["0.jpg", "1.jpg", "4.jpg"], "val": ["2.jpg"], "test": ["3.jpg"]}
    pairs = hf(tmp_path / "mini", size=16, holdout_val=1)
    assert any(note.startswith("column 'split' was not used, and names another split in 2 rows; data.split_column=split")
               for note in pairs.notes)


def test_the_way_on_without_a_split(tmp_path):
    """Each message names what is there, and a setting with which the next run gets on."""
    with pytest.raises(UserError, match=r"has no split for train, only test \(10 rows\); its column 'split' says the split "
                       "of each row: set data.split_column=split"):
        hf(_one_split(tmp_path, split=COLUMN), size=16)
    source = _parquet(tmp_path / "test.parquet", image=_pictures(range(20)), caption=[f"Photo {i}." for i in range(20)])
    with pytest.raises(UserError, match=r"only test \(20 rows\); set data.train_split=test and hold the others out of it: "
                       "data.holdout_val=2 data.holdout_test=2"):
        hf(source, size=16)
    assert len(hf(source, size=16, train_split="test", holdout_val=2, holdout_test=2).train.images) == 16
    rows = [i for i in range(20) for _ in range(2)]  # one row for each caption: a tenth of the images, not of the rows
    _parquet(tmp_path / "two" / "train.parquet", image=_pictures(rows), caption=[f"Told {n}." for n in range(40)])
    _parquet(tmp_path / "two" / "test.parquet", image=_pictures([20]), caption=["Photo 20."])
    with pytest.raises(UserError, match=r"has no split for val, only train \(40 rows\), test \(1 rows\); set "
                       "data.holdout_val=2 to hold a tenth of train out"):
        hf(tmp_path / "two", size=16)
    pairs = hf(tmp_path / "two", size=16, holdout_val=2)
    assert (len(pairs.train.images), len(pairs.train.captions), len(pairs.val.captions)) == (18, 36, 4)
    assert any(note.startswith("of 'two', 20 rows with the image of an earlier one (the same bytes): ")
               for note in pairs.notes)


# ---- columns ---------------------------------------------------------------------------------------------------------

NUMBERED = {f"caption_{told}": [f"Photo {i}, {told}." for i in range(4)] for told in range(5)}
FORMS = {
    "bytes under another name": ({"id": [1, 2, 3, 4], "jpg": [encoded(i) for i in range(4)], **NUMBERED}, "jpg",
                                 "caption_0, caption_1, caption_2, caption_3, caption_4"),
    "large types": ({"picture": pyarrow.array([encoded(i) for i in range(4)], pyarrow.large_binary()),
                     "text": pyarrow.array([f"Photo {i}." for i in range(4)], pyarrow.large_string())}, "picture", "text"),
    "views": ({"image": pyarrow.array([encoded(i) for i in range(4)], pyarrow.binary_view()),
               "text": pyarrow.array([f"Photo {i}." for i in range(4)], pyarrow.string_view())}, "image", "text"),
    "a struct with more fields": ({"img": [{"path": "a", "bytes": encoded(i), "w": i} for i in range(4)],
                                   "alt_text": [f"Photo {i}." for i in range(4)]}, "img", "alt_text"),
    "nested captions": ({"image": _pictures(range(4)), "sentences": [[{"sentid": i, "raw": f"Photo {i}."}]
                                                                     for i in range(4)]}, "image", "sentences/raw"),
    "captions as bytes": ({"image": _pictures(range(4)), "caption": [f"Photo {i}.".encode() for i in range(4)]}, "image",
                          "caption"),
    "conversations": ({"image": _pictures(range(4)), "conversations": [
        [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Photo {i}."}]
        for i in range(4)]}, "image", "conversations"),
}


@pytest.mark.parametrize("form", FORMS)
def test_columns_are_found(tmp_path, form):
    columns, image, captions = FORMS[form]
    source = _parquet(tmp_path / "photos.parquet", **columns)
    pairs = hf(source, size=16, holdout_val=1, holdout_test=1)
    numbered = captions.startswith("caption_")
    assert _captions(pairs) == (sorted(sum(NUMBERED.values(), [])) if numbered else [f"Photo {i}." for i in range(4)])
    assert f"'{source}' was read with images in '{image}' and captions in '{captions}'." in pairs.notes
    by_name = hf(source, size=16, holdout_val=1, holdout_test=1, image_column=image, caption_columns=captions)
    assert by_name.fingerprint == pairs.fingerprint and not any("was read with" in note for note in by_name.notes)


def test_images_by_path_and_by_bytes(tmp_path):
    names = write_images(tmp_path / "images", 3)
    texts = [f"Photo {i}." for i in range(3)]
    for name, images in {"by_path": [str(tmp_path / "images" / name) for name in names],
                         "by_bytes": [encoded(i) for i in range(3)]}.items():
        datasets.Dataset.from_dict({"image": images, "caption": texts}).save_to_disk(str(tmp_path / name))
    _parquet(tmp_path / "images" / "beside.parquet", file_name=names, caption=texts,
             coco_url=[f"http://images.example/{name}" for name in names])
    read = [hf(tmp_path / name, size=16, holdout_val=1, holdout_test=1, stream=True)
            for name in ("by_path", "by_bytes", "images/beside.parquet")]
    assert len({pairs.fingerprint for pairs in read}) == 1 and sorted(map(len, read[0].train.captions)) == [8]


def test_rows_of_one_image_are_one_image(tmp_path):
    _table([0, 1, 0, 2, 3]).save_to_disk(str(tmp_path / "mini"))
    pairs = hf(tmp_path / "mini", size=16, holdout_val=1, holdout_test=1)
    assert sum(len(split.images) for split in (pairs.train, pairs.val, pairs.test)) == 4
    assert sum(len(split.captions) for split in (pairs.train, pairs.val, pairs.test)) == 10


def test_lists_written_into_strings(tmp_path):
    """As the annotations of Flickr30k have them; what is no list of texts stays the caption that it is."""
    written = ['["Photo 0.", "It is green."]', "[sic] a photo", "['Photo 2.']", "[1, 2]"]
    pairs = hf(_parquet(tmp_path / "photos.parquet", image=_pictures(range(4)), caption=written), size=16, holdout_val=1,
               holdout_test=1)
    assert _captions(pairs) == sorted(["Photo 0.", "It is green.", "[sic] a photo", "Photo 2.", "[1, 2]"])
    assert any(note.startswith("of 'photos', 2 captions") and LIST in note for note in pairs.notes)


@pytest.mark.parametrize("settings, message", [
    ({"val_split": "dev"}, r"no split 'dev', only train \(4 rows\), restval \(1 rows\), validation \(2 rows\), test "
                           r"\(1 rows\); set data.val_split to one of them, or data.holdout_val=1 to hold"),
    ({"train_split": "train+extra"}, r"no split 'extra', only .*; set data.train_split to one of them"),
    ({"image_column": "photo"}, "no column 'photo'; it has image, caption, sentences, name, score: set data.image_column"),
    ({"image_column": "score"}, "column 'score' .* cannot be read as images: it holds double"),
    ({"caption_columns": "sentences/text"}, "no column 'sentences/text': 'sentences' has nested values with raw; set"),
    ({"caption_columns": "sentences"}, "has nested values with raw; name one, as in data.caption_columns=sentences/raw"),
    ({"caption_columns": "name/raw"}, "no column 'name/raw': 'name' has no nested values"),
    ({"caption_columns": "score"}, "column 'score' of .* holds double, no captions"),
    ({"key_column": "id"}, "no column 'id'; .* set data.key_column"),
    ({"attribute_columns": "score,label"}, "no column 'label'; .* set data.attribute_columns"),
    ({"image_column": "name"}, r"7 absent images \(the first: row 1 of split 'train' of .* \('0\.jpg'\)\)"),
])
def test_wrong_settings(saved, settings, message):
    with pytest.raises(UserError, match=message):
        hf(saved, size=16, **settings)


def test_addresses_are_no_images(tmp_path):
    source = _parquet(tmp_path / "photos.parquet", url=[f"https://images.example/{i}.jpg" for i in range(3)],
                      caption=[f"Photo {i}." for i in range(3)])
    for settings in ({}, {"image_column": "url"}):
        with pytest.raises(UserError, match="holds addresses of images, not files; fetch them first: img2dataset"):
            hf(source, size=16, **settings)
    source = _parquet(tmp_path / "texts.parquet", number=[1, 2], caption=["One.", "Two."])
    with pytest.raises(UserError, match="no column of .* holds images, .* it has number, caption: set data.image_column"):
        hf(source, size=16)
    source = _parquet(tmp_path / "labels.parquet", image=_pictures([1, 2]), label=[1, 2])
    with pytest.raises(UserError, match="is called caption, text or the like; it has .*: set data.caption_columns"):
        hf(source, size=16)


# ---- what cannot be used ---------------------------------------------------------------------------------------------

def test_broken_images(tmp_path):
    rows = list(range(5))
    images = [{"bytes": encoded(i) if i != 2 else b"broken", "path": None} for i in rows]
    whole = _table([7])
    datasets.DatasetDict({"train": _table(rows, image=images), "test": whole}).save_to_disk(str(tmp_path / "mini"))
    settings = {"size": 16, "key_column": "name", "val_split": "test"}
    for stream in (False, True):
        with pytest.raises(UserError, match=r"1 broken image \('2\.jpg', row 3 of split 'train' of .*mini' \("):
            hf(tmp_path / "mini", stream=stream, **settings)
        assert hf(tmp_path / "mini", stream=stream, on_error="skip", max_skipped=0.5, **settings).skipped == {
            "broken image": 1}


@pytest.mark.parametrize("key_column", ["", "name"])
def test_what_cannot_be_used_is_counted_by_reason(tmp_path, key_column):
    """Rows 0 to 4 are good; each later one has a fault of its own."""
    images = [*_pictures(range(8)), None, {"bytes": None, "path": None}, {"bytes": b"", "path": None},
              {"bytes": None, "path": "gone.jpg"}, {"bytes": None, "path": "https://images.example/12.jpg"}]
    captions = [*([f"Photo {i}."] for i in range(5)), [None, "Photo 5."], None, ["nan", " "], *[["Photo."]] * 5]
    source = _parquet(tmp_path / "photos.parquet", image=images, caption=captions, name=[f"{n}.jpg" for n in range(13)])
    with pytest.raises(UserError, match=r"3 samples without an image \(the first: row 9 of split 'train' of .*\).*set "
                       "data.on_error=skip"):
        hf(source, key_column=key_column, **{**HALF, "on_error": "stop"})
    pairs = hf(source, key_column=key_column, **HALF)
    assert pairs.skipped == {"no image": 3, "absent image": 2, "empty caption": 3, "missing value as caption": 1}
    assert _captions(pairs) == [f"Photo {i}." for i in range(6)]
    with pytest.raises(UserError, match=r"data.max_skipped \(0.1\)"):
        hf(source, key_column=key_column, **{**HALF, "max_skipped": 0.1})


def test_a_row_without_a_key(tmp_path):
    """Rows without a key are not the captions of one image."""
    source = _parquet(tmp_path / "photos.parquet", image=_pictures(range(6)), caption=[f"Photo {i}." for i in range(6)],
                      name=["0", "1", None, "3", None, "5"])
    with pytest.raises(UserError, match=r"2 broken rows \(the first: row 3 of .* has no 'name'\)"):
        hf(source, size=16, key_column="name", holdout_val=1, holdout_test=1)
    assert hf(source, key_column="name", **HALF).skipped == {"broken row": 2}


def test_captions_that_are_no_text(tmp_path):
    for form in (lambda caption: caption, lambda caption: [caption, b"Again."]):
        captions = [*(form(f"Photo {i} é".encode()) for i in range(4)), form(b"\xff\xfe")]
        source = _parquet(tmp_path / "photos.parquet", image=_pictures(range(5)), caption=captions)
        pairs = hf(source, **HALF)
        assert pairs.skipped == {"caption not in Unicode": 1} and "Photo 3 é" in _captions(pairs)


@pytest.mark.parametrize("form", [lambda caption: caption, lambda caption: [caption], lambda caption: {"text": caption}],
                         ids=["text", "a list", "nested"])
def test_text_that_is_not_in_utf8(tmp_path, form):
    """A file that says that its column is text, and holds other bytes: only that row is left out."""
    source = tmp_path / "photos.parquet"
    captions = [form(caption) for caption in (*(f"Photo {i} é" for i in range(4)), "XXXXXXXXXX")]
    parquet.write_table(pyarrow.table({"image": _pictures(range(5)), "caption": captions}), source, compression="none")
    source.write_bytes(source.read_bytes().replace(b"XXXXXXXXXX", b"\xff\xfe" * 5))
    pairs = hf(source, **HALF)
    assert pairs.skipped == {"caption not in Unicode": 1} and _captions(pairs) == [f"Photo {i} é" for i in range(4)]


def test_output_of_img2dataset(tmp_path):
    """Its Parquet output: pictures in `jpg`, a status, a JSON of statistics beside each file."""
    for shard in range(2):
        rows = range(5 * shard, 5 * shard + 5)
        failed = [i % 5 == 3 for i in rows]
        _parquet(tmp_path / "out" / f"{shard:05d}.parquet",
                 url=[f"https://images.example/{i}" for i in rows], caption=[f"Photo {i}." for i in rows],
                 key=[f"{i:09d}" for i in rows], width=[None if bad else 32 for bad in failed],
                 status=["failed_to_download" if bad else "success" for bad in failed],
                 error_message=["HTTP Error 404" if bad else None for bad in failed],
                 jpg=[None if bad else encoded(i) for i, bad in zip(rows, failed)])
        (tmp_path / "out" / f"{shard:05d}_stats.json").write_text(json.dumps({"count": 5, "successes": 4}))
    for source in (tmp_path / "out", f"{tmp_path}/out/*.parquet"):
        with pytest.raises(UserError, match=r"2 failed downloads \(the first: row 4 of .* \(failed_to_download\)\)"):
            hf(source, size=16, holdout_val=1, holdout_test=1)
        pairs = hf(source, **HALF)
        assert pairs.skipped == {"failed download": 2} and len(pairs.train.images) == 6


def test_no_image_is_decoded_while_reading(tmp_path):
    source = _parquet(tmp_path / "photos.parquet", image=[b"no image %d" % i for i in range(3)],
                      caption=[f"Photo {i}." for i in range(3)], split=["train", "val", "test"])
    pairs = hf(source, size=16, split_column="split", stream=True, check=False)
    with pytest.raises(UserError, match="cannot be decoded"):
        pairs.train.images[:]
