"""Tables as real programs write them, found by attacks: each is read rightly, or refused with what to do."""

import json

import forms
import pytest

from mdw_jax.data.readers import folder as folder_reader
from mdw_jax.data.registry import load
from mdw_jax.data.tables import arrow_rows
from mdw_jax.errors import UserError

RED, BLUE = "A red dog, sitting", 'The "blue" one'
HELD = {"holdout_val": 1, "holdout_test": 1, "size": 8}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    forms.write_images(root, lambda i: f"{i}.jpg", range(4))
    return root


def _captions(pairs):
    found = {}
    for split in (pairs.train, pairs.val, pairs.test):
        for caption, image in zip(split.captions, split.image_of, strict=True):
            found.setdefault(int(str(split.attributes["key"][image]).split("/")[-1][:-4]), []).append(caption)
    return [found.get(i) for i in range(4)]


def _read(images, text, name="t.csv", encoding="utf-8", **settings):
    forms.write(images / name, text, encoding)
    return load("folder", annotations=str(images / name), images=str(images), **HELD, **settings)


def _rows(*cells, sep=",", end="\n", head="image,caption"):
    return "".join(f"{line}{end}" for line in (head.replace(",", sep), *(f"{i}.jpg{sep}{c}" for i, c in enumerate(cells))))


FOUR = [["a"], ["b"], ["c"], ["d"]]
GOOD = {
    "numpy": (_rows("['one' 'two']", "['b\\'s' \"c\"]", "\"['c'\n 'd']\"", "d"),
              [["one", "two"], ["b's", "c"], ["c", "d"], ["d"]]),
    "python tuple": (_rows("\"('one', 'two')\"", *"bcd"), [["one", "two"], ["b"], ["c"], ["d"]]),
    "postgres": (_rows('"{""one"",""two""}"', *"bcd"), [["one", "two"], ["b"], ["c"], ["d"]]),
    "brackets that are no list": (_rows("[laughs] hello [door]", *"bcd"), [["[laughs] hello [door]"], ["b"], ["c"], ["d"]]),
    "old Mac": (_rows(*"abcd", end="\r"), FOUR),
    "Excel names the delimiter": ("sep=;\n" + _rows(*"abcd", sep=";"), FOUR),
    "Excel's empty rows": (_rows(*"abcd") + ",\n,\n", FOUR),
    "a header once more": (_rows("a", "b") + "image,caption\n2.jpg,c\n3.jpg,d\n", FOUR),
    "commas at the ends of rows": (_rows("a,", "b,", '"c, c",', "d,"), [["a"], ["b"], ["c, c"], ["d"]]),
    "one row without marks": (_rows(f'"{RED}"', '"The ""blue"" one"', '"c, c"', "d, d"),
                              [[RED], [BLUE], ["c, c"], ["d, d"]]),
    "backslashes": (_rows('"The \\"blue\\" one"', '"a, b"', "c", "d"), [[BLUE], ["a, b"], ["c"], ["d"]]),
    "backslashes without marks": (_rows("A red dog\\, sitting", *"bcd"), [[RED], ["b"], ["c"], ["d"]]),
    "Excel's tabs": (_rows(f'"{RED}"', "b", "c", "d", sep="\t"), [[RED], ["b"], ["c"], ["d"]]),
    "pandas' tabs": (_rows('"a\tb"', '"The ""blue"" one"', "c", "d", sep="\t"), [["a\tb"], [BLUE], ["c"], ["d"]]),
    "several columns": ("image,caption,caption_2,caption.3\n0.jpg,a,b,\n1.jpg,b,,\n2.jpg,c,,\n3.jpg,d,e,f\n",
                        [["a", "b"], ["b"], ["c"], ["d", "e", "f"]]),
    "other machine": ("image,caption\n" + "".join(f"/content/drive/{i}.jpg,{c}\n" for i, c in enumerate("abcd")), FOUR),
    "Windows": ("image,caption\n" + "".join(f"C:\\me\\{i}.jpg,{c}\n" for i, c in enumerate("abcd")), FOUR),
    "numbers and captions of several lines": (
        'image,caption\n0,"Steps:\n1, stir\n2, serve"\n1,b\n2,c\n3,d\n',
        [["Steps:\n1, stir\n2, serve"], ["b"], ["c"], ["d"]]),
    "numbers with a gap": ("image,caption\n0.0,a\n1.0,b\n2.0,c\n3.0,d\n", FOUR),
    "names of columns with spaces": (_rows(*"abcd", head="Image Name,Caption"), FOUR),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_programs_write_is_read(images, name):
    text, right = GOOD[name]
    settings = {"file_pattern": "{}.jpg"} if "numbers" in name else {}
    assert _captions(_read(images, text, **settings)) == right


ROWS = [{"image": f"{i}.jpg", "caption": c} for i, c in enumerate("abcd")]
JSON = {
    "columns, as pandas does by default": {key: {str(i): row[key] for i, row in enumerate(ROWS)} for key in ROWS[0]},
    "lists": {key: [row[key] for row in ROWS] for key in ROWS[0]},
    "index": {str(i): row for i, row in enumerate(ROWS)},
    "split": {"columns": list(ROWS[0]), "index": [0, 1, 2, 3], "data": [list(row.values()) for row in ROWS]},
    "by name": {row["image"]: [row["caption"]] for row in ROWS},
    "chat": [{"image": row["image"], "messages": [{"role": "user", "content": "describe"},
                                                  {"role": "assistant", "content": row["caption"]}]} for row in ROWS],
    "cauldron": [{"images": row["image"], "texts": [{"user": "describe", "assistant": row["caption"], "source": "x"}]}
                 for row in ROWS],
}


@pytest.mark.parametrize("name", JSON)
def test_json_of_every_orientation(images, name):
    assert _captions(_read(images, json.dumps(JSON[name]), "t.json")) == FOUR


def test_json_arrays_of_the_splits(images):
    document = {"train": ROWS[:2], "val": ROWS[2:3], "test": ROWS[3:]}
    forms.write(images / "s.json", json.dumps(document))
    pairs = load("folder", annotations=str(images / "s.json"), images=str(images), size=8)
    assert _captions(pairs) == FOUR and pairs.val.captions == ("c",)


def test_long_first_lines_of_json(images):
    lines = "".join(json.dumps({**row, "features": [0.123456] * 9000}) + ",\n" for row in ROWS)
    assert _captions(_read(images, lines, "t.jsonl")) == FOUR


REFUSED = {
    "without a header": ("t.csv", "".join(f"{i}.jpg,{i},text\n" for i in range(4)),
                         "no header, and 3 columns .*write a first line with their names"),
    "tabs without a header": ("t.tsv", "".join(f"{i}.jpg\ttext\tdog\n" for i in range(4)), "no header, and 3 columns"),
    "a very long cell": ("t.csv", "0.jpg," + "word " * 40000 + "\n1.jpg,x\n", "cannot be used|of more than|no header"),
    "an infinite number": ("t.json", '[{"image": Infinity, "caption": "a"}]', "no number|numbers"),
    "one name twice": ("t.json", '{"0.jpg": "a", "0.jpg": "b", "1.jpg": "c"}', "the name '0.jpg' twice"),
    "one id of two images": ("t.json", json.dumps({
        "images": [{"id": 0, "file_name": "0.jpg"}, {"id": 0, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 0, "caption": "a"}]}), "two images of id 0, '0.jpg' and '1.jpg'"),
    "an image without captions": ("t.json", json.dumps({
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)],
        "annotations": [{"image_id": i, "caption": "a"} for i in range(3)]}), r"1 image without a caption \('3.jpg'"),
    "missing values": ("t.csv", _rows("a", "\\N", "#NAME?", "d"), "2 captions with a missing value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(images, name):
    file, text, message = REFUSED[name]
    settings = {"file_pattern": "{:012d}.jpg"} if "infinite" in name else {}
    with pytest.raises(UserError, match=message):
        _read(images, text, file, **settings)


CUT = {"one line": '3.jpg,"d, which', "several lines": '3.jpg,"d,\nwhich',
       "several columns": '3.jpg,1,"d, which'}


@pytest.mark.parametrize("name", CUT)
def test_a_table_that_ends_within_a_quoted_cell_is_said_to_be_cut_off(images, name):
    row = "{}.jpg,1,{}\n" if name == "several columns" else "{}.jpg,{}\n"
    head = "image,number,caption\n" if name == "several columns" else "image,caption\n"
    text = head + "".join(row.format(i, c) for i, c in enumerate(("a", '"b, b"', "c"))) + CUT[name]
    with pytest.raises(UserError, match="line 5 of .* the end of the file does not close, .* seems to be cut off"):
        _read(images, text)
    pairs = _read(images, text, on_error="skip", max_skipped=0.5)
    assert pairs.skipped == {"broken row": 1} and _captions(pairs) == [["a"], ["b, b"], ["c"], None]
    assert any("1 caption in line 5" in note and "seems to be cut off" in note for note in pairs.notes)


@pytest.mark.parametrize("text", [_rows("a", "b", "c", '"d'),  # a line that is written to its end
                                  _rows("a", '"b', "c", "d").rstrip()])  # a mark in the middle
def test_a_stray_mark_is_no_end_of_a_table(images, text):
    pairs = _read(images, text)
    assert [captions[0].strip('"') for captions in _captions(pairs)] == list("abcd")
    assert not any("cut off" in note for note in pairs.notes)


def test_directories_that_are_not_read_are_named(tmp_path):
    for word in ("train", "val", "test", "extra"):
        forms.write_images(tmp_path / word, lambda i: f"{i}.jpg", range(2))
        for i in range(2):
            forms.write(tmp_path / word / f"{i}.jpg.txt", f"{word} {i}")
    pairs = load("folder", annotations=str(tmp_path), size=8)
    assert pairs.val.captions == ("val 0", "val 1")
    assert any(note == "directories beside those of the splits are not read: extra." for note in pairs.notes)
    forms.write(tmp_path / "val" / "0.caption", "another")
    with pytest.raises(UserError, match="are both texts of one image"):
        load("folder", annotations=str(tmp_path), size=8)
    (tmp_path / "valid").mkdir()
    with pytest.raises(UserError, match="'val' and 'valid' in .* are both called as split 'val' is"):
        load("folder", annotations=str(tmp_path), size=8)


def test_a_directory_that_spark_wrote(images, tmp_path):
    for part in range(2):
        rows = "".join(f"{i}.jpg,{'abcd'[i]}\n" for i in range(2 * part, 2 * part + 2))
        forms.write(tmp_path / "out.csv" / f"part-0000{part}-c000.csv", f"image,caption\n{rows}")
    forms.write(tmp_path / "out.csv" / "_SUCCESS", "")
    assert _captions(load("folder", annotations=str(tmp_path / "out.csv"), images=str(images), **HELD)) == FOUR


def test_json_beside_images_has_their_captions_and_what_could_not_be_fetched(tmp_path):
    forms.write_images(tmp_path, lambda i: f"{i}.jpg", range(4))
    for i in range(6):
        status = "success" if i < 4 else "failed_to_download"
        forms.write(tmp_path / f"{i}.json", json.dumps({"caption": "abcdef"[i], "url": "u", "status": status}))
    with pytest.raises(UserError, match=r"2 failed downloads \(the first: "):
        load("folder", annotations=str(tmp_path), **HELD)
    pairs = load("folder", annotations=str(tmp_path), on_error="skip", max_skipped=0.5, **HELD)
    assert _captions(pairs) == FOUR and pairs.skipped == {"failed download": 2}


def test_broken_images_are_no_copies_of_each_other(tmp_path):
    forms.write_images(tmp_path, lambda i: f"{i}.jpg", range(8))
    for i in (1, 6):
        (tmp_path / f"{i}.jpg").write_bytes(b"<html>404</html>")
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    table = "image,caption,split\n" + "".join(f"{i}.jpg,caption {i},{split}\n" for i, split in enumerate(splits))
    forms.write(tmp_path / "t.csv", table)
    for _ in range(5):  # memory that is not written differs from call to call
        pairs = load("folder", annotations=str(tmp_path / "t.csv"), size=8, on_error="skip", max_skipped=0.5)
        assert pairs.skipped == {"broken image": 2} and not any("in train too" in note for note in pairs.notes)


def test_of_parquet_only_the_columns_asked_for_are_read(images, tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({**{key: [row[key] for row in ROWS] for key in ROWS[0]},
                                       "embedding": [[0.5] * 9] * 4}), tmp_path / "t.parquet")
    read, asked = arrow_rows._open.read, []
    monkeypatch.setattr(arrow_rows._open, "read", lambda file, columns: asked.append(columns) or read(file, columns))
    assert _captions(load("folder", annotations=str(tmp_path / "t.parquet"), images=str(images), **HELD)) == FOUR
    assert asked == [["image", "caption"]]


def test_a_table_is_opened_once(images, monkeypatch):
    opened = []
    real = folder_reader.open_table
    monkeypatch.setattr(folder_reader, "open_table", lambda path, *rest: opened.append(path) or real(path, *rest))
    table = forms.write(images / "once.csv", "image,caption,split\n" + "".join(
        f"{row['image']},{row['caption']},{split}\n" for row, split in zip(ROWS, ["train", "train", "val", "test"])))
    load("folder", annotations=str(table), size=8)
    assert opened == [table]
