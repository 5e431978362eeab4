"""Every form that people hold: what it is taken for, the pairs that are read, what is said; or the right refusal."""

import io
import re
import tarfile

import forms
import pytest

from mdw_jax.analysis.inspection import inspect_command
from mdw_jax.data.detect import detect
from mdw_jax.data.registry import load
from mdw_jax.errors import UserError

SMALL = {"size": 16}
HELD = {"holdout_val": 4, "holdout_test": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return forms.write_all(tmp_path_factory.mktemp("forms"))


def _all(pairs):
    """{key: captions} of all splits together."""
    found = {}
    for split in (pairs.train, pairs.val, pairs.test):
        for caption, image in zip(split.captions, split.image_of, strict=True):
            found.setdefault(str(split.attributes["key"][image]), []).append(caption)
    return found


def _right(rows):
    right = {}
    for key, caption in rows:
        right.setdefault(key, []).append(caption)
    return right


PLAIN = _right(forms.pairs())
QUOTES = forms.pairs()
QUOTES[3] = (QUOTES[3][0], 'A man holds a sign that says "hello" .')
QUOTES[4] = (QUOTES[4][0], '"Hello" is on the sign .')
RAW = [(key, caption.replace(",", "")) for key, caption in QUOTES]
SWALLOW = [(key, caption.replace(",", "")) for key, caption in forms.pairs()]
SWALLOW[10] = (SWALLOW[10][0], '"so long said the dog')
SWALLOW[18] = (SWALLOW[18][0], 'the sign says : bye"')
TABS = forms.pairs()
for place, text in ((3, '"Hello" is written on a sign'), (9, '"unbalanced mark at the start'), (17, 'and one here"')):
    TABS[place] = (TABS[place][0], text)
ONE = {forms.name(i): [forms.captions(i)[0]] for i in range(forms.N)}
OWN = {}  # the splits of the source

# path (of the table or directory), settings beside it, all pairs, what is said
TABLES = [
    ("kaggle_flickr8k/captions.txt", HELD, PLAIN, "separated by commas"),
    ("kaggle_flickr8k/captions_quotes.csv", HELD, _right(QUOTES), ""),
    ("kaggle_flickr8k/captions_bom_crlf.csv", HELD, _right(QUOTES), ""),
    ("kaggle_flickr8k/captions_utf16.csv", HELD, _right(QUOTES), "separated by tabs"),
    ("kaggle_flickr8k/captions_unquoted.csv", HELD, PLAIN, "24 captions with commas that are not quoted"),
    ("kaggle_flickr8k/captions_rawquotes.csv", HELD, _right(RAW), "1 caption with quotation marks that are not those of"),
    ("kaggle_flickr8k/captions_swallow.csv", HELD, _right(SWALLOW), "1 caption with quotation marks"),
    ("kaggle_flickr8k/captions_multiline.csv", HELD,
     {forms.name(i): [f"a block\non line {i}"] for i in range(forms.N)}, ""),
    ("kaggle_flickr8k/captions_latin1.csv", HELD | {"encoding": "latin-1"},
     {forms.name(i): [f"a café no {i}"] for i in range(forms.N)}, ""),
    ("kaggle_flickr8k/captions_semicolon.csv", HELD,
     {forms.name(i): [f"a {forms.color(i)} block"] for i in range(forms.N)}, "separated by semicolons"),
    ("kaggle_flickr8k/captions_index.csv", HELD, {forms.name(i): ["a block"] for i in range(forms.N)}, ""),
    ("kaggle_flickr8k/captions_lists.csv", HELD, PLAIN, "24 captions written as lists in one cell"),
    ("flickr8k_text/results_20130124.token", HELD, PLAIN, "120 image names with the number of a caption"),
    ("flickr8k_text/token_header.tsv", HELD, PLAIN, "120 image names with the number"),
    ("flickr8k_text/token_quotes.tsv", HELD, _right(TABS), ""),
    ("flickr8k_text/pandas.tsv", HELD, _right([(key, f'{caption} "so"') for key, caption in forms.pairs()]),
     "quoted as CSV"),
    ("flickr8k_text/results_20130124.token", {f"{split}_list": f"flickr8k_text/Flickr_8k.{word}Images.txt"
                                               for split, word in (("train", "train"), ("val", "dev"), ("test", "test"))},
     PLAIN, ""),
    ("kaggle_flickr30k/results_mended.csv", HELD, PLAIN, "separated by pipes"),
    ("hub_flickr30k/flickr_annotations_30k.csv", OWN, PLAIN, "the splits are those of column 'split'"),
    ("albef_flickr30k/flickr30k_train.json", {"val_annotations": "albef_flickr30k/flickr30k_val.json",
                                              "test_annotations": "albef_flickr30k/flickr30k_test.json"},
     _right((f"flickr30k-images/{key}", caption) for key, caption in forms.pairs()), "a JSON array"),
    ("coco/annotations/captions_train2017.json",
     {"images": "coco/train2017,coco/val2017", "val_annotations": "coco/annotations/captions_val2017.json",
      "holdout_test": 4}, {forms.coco_name(i): forms.captions(i) for i in range(forms.N)}, "COCO's captions"),
    ("sidecar", HELD, ONE, "images with texts of the same name"),
    ("img2dataset_files", HELD,
     {f"{i // 12:05d}/{i // 12:05d}{i:04d}.jpg": forms.captions(i)[:1] for i in range(forms.N)}, ""),
    ("image_folder", OWN, {f"{word}/{forms.name(i)}": forms.captions(i)[:1] for i in range(forms.N)
                           for split, word in (("train", "train"), ("val", "validation"), ("test", "test"))
                           if forms.SPLIT[i] == split}, "JSON lines"),
    ("llava/metadata.json", HELD, ONE, "a JSON array"),
    ("llava/chat.json", HELD, ONE, "24 captions in the form of conversations"),
    ("numbered/t.csv", HELD | {"file_pattern": "{:012d}.jpg"},
     {f"{i:012d}.jpg": [forms.captions(i)[2]] for i in range(forms.N)}, ""),
    ("numbered/t0.csv", HELD | {"file_pattern": "{}.jpg"},
     {f"{i:012d}.jpg": [forms.captions(i)[2]] for i in range(forms.N)}, ""),
    ("numbered/t.jsonl", HELD | {"file_pattern": "{:012d}.jpg"},
     {f"{i:012d}.jpg": [forms.captions(i)[2]] for i in range(forms.N)}, "JSON lines"),
]


def _folder(root, path, settings):
    local = {key: ",".join(str(root / part) for part in value.split(",")) if "/" in str(value) else value
             for key, value in settings.items()}
    return load("folder", annotations=str(root / path), **SMALL, **local)


@pytest.mark.parametrize("path, settings, right, said", TABLES, ids=[f"{n}-{row[0]}" for n, row in enumerate(TABLES)])
def test_every_form_gives_its_pairs(root, path, settings, right, said):
    pairs = _folder(root, path, settings)
    assert _all(pairs) == right
    assert said in " ".join(pairs.notes) and not pairs.skipped
    sizes = [len(split.images) for split in (pairs.train, pairs.val, pairs.test)]
    assert sizes == ([12, 8, 4] if "coco" in path else [16, 4, 4])


REFUSED = [
    ("kaggle_flickr8k/captions_latin1.csv", {}, r"line 2 of .*latin1.csv' is not in UTF-8 .*data.encoding=latin-1"),
    ("kaggle_flickr8k/captions_long.csv", {}, r"24 broken rows .*line 3 of .* has 5 cells for 3 columns .*on_error=skip"),
    ("kaggle_flickr8k/captions_missing.csv", {}, r"2 captions with a missing value .*1 empty caption .*on_error=skip"),
    ("kaggle_flickr30k/results.csv", {}, r"1 broken row \(line 16 of .* has 2 cells for 3 columns"),
    ("flickr8k_text/Flickr8k.token.txt", {}, r"1 absent image \('2258277193_586949ec62.jpg.1'"),
    ("flickr8k_text/Flickr_8k.devImages.txt", {}, r"without tabs, commas, pipes or semicolons"),
    ("numbered/t.jsonl", {}, r"holds numbers, such as 0 in row 1; .*data.file_pattern"),
    ("addresses/urls.tsv", {}, r"img2dataset --url_list TABLE .*--url_col url --caption_col caption"),
    ("addresses/Train_GCC-training.tsv", {}, r"img2dataset --url_list TABLE"),
    ("karpathy_coco/dataset_coco.json", {}, r"Karpathy's schema; read it with data.name=karpathy"),
    ("kaggle_flickr8k/captions.txt", {"image_column": "photo"}, r"no column 'photo'; it has image, caption"),
    ("kaggle_flickr8k/captions.txt", {"delimiter": "||"}, r"data.delimiter must be one character or one of tab"),
    ("kaggle_flickr8k/captions.txt", {"quoting": "some"}, r"data.quoting must be csv, none or empty"),
    ("kaggle_flickr8k/captions.txt", {"encoding": "utf-9"}, r"no encoding 'utf-9'"),
    ("kaggle_flickr8k/captions.txt", {"caption_lines": "split"}, r"data.caption_lines is of texts beside images"),
    ("kaggle_flickr8k/captions.txt", {"holdout_val": 0, "holdout_test": 0, "near_duplicates": 3}, r"none is held out"),
    ("sidecar", {"image_column": "image"}, r"data.image_column is of tables, .* a directory without one"),
    ("sidecar", {"delimiter": "tab"}, r"data.delimiter is of tables"),
    ("llava/metadata.json", {"encoding": "latin-1"}, r"data.encoding is set, and .* is JSON in UTF-8, which does not"),
    ("numbered/t.jsonl", {"quoting": "csv"}, r"data.quoting is set, and .* is JSON lines"),
    ("numbered/t.csv", {"file_pattern": "a.jpg"}, r"data.file_pattern is 'a.jpg'; give a file name with one"),
]


@pytest.mark.parametrize("path, settings, message", REFUSED, ids=[f"{n}-{row[0]}" for n, row in enumerate(REFUSED)])
def test_what_cannot_be_read_rightly_is_refused(root, path, settings, message):
    with pytest.raises(UserError, match=message):
        _folder(root, path, HELD | settings)


@pytest.mark.parametrize("path, skipped", [
    ("kaggle_flickr8k/captions_missing.csv", {"missing value as caption": 2, "empty caption": 1}),
    ("kaggle_flickr30k/results.csv", {"broken row": 1}),
    ("flickr8k_text/Flickr8k.token.txt", {"absent image": 1})])
def test_with_skip_the_rest_is_read_and_counted(root, path, skipped):
    pairs = _folder(root, path, {"holdout_val": 4, "holdout_test": 4, "on_error": "skip", "max_skipped": 0.2})
    assert pairs.skipped == skipped
    kept = [caption for texts in _all(pairs).values() for caption in texts]
    assert set(kept) <= {caption for i in range(forms.N) for caption in (*forms.captions(i), "a block")}
    assert len(kept) == {"captions_missing.csv": 21, "results.csv": 119, "Flickr8k.token.txt": 120}[path.split("/")[-1]]


def test_more_than_the_largest_share_stops(root):
    with pytest.raises(UserError, match=r"3 of 24 captions of .* cannot be used \(12.5 %\).*max_skipped \(0.05\)"):
        _folder(root, "kaggle_flickr8k/captions_missing.csv", HELD | {"on_error": "skip"})


def test_karpathy_of_coco(root):
    where = root / "karpathy_coco"
    right = {f"{'train2014' if i < 12 else 'val2014'}/COCO_{'train' if i < 12 else 'val'}2014_{forms.coco_name(i)}":
             forms.captions(i) for i in range(forms.N)}
    for images in (str(where), f"{where}/train2014.zip,{where}/val2014.zip"):
        pairs = load("karpathy", annotations=str(where / "dataset_coco.json"), images=images, **SMALL)
        assert _all(pairs) == right
        assert [len(split.images) for split in (pairs.train, pairs.val, pairs.test)] == [16, 4, 4]
    assert _all(load("karpathy", annotations=str(where / "text_ids.json"), images=str(where), **SMALL)) == right
    held = load("karpathy", annotations=str(where / "trained_only.json"), images=str(where), holdout_val=4, **SMALL)
    assert _all(held) == right and len(held.val.images) == 4


@pytest.mark.parametrize("stem, message", [
    ("empty", r"1 empty caption"), ("upper", r"1 absent image \(.*\.JPG.*"), ("absent", r"1 absent image"),
    ("trained_only", r"no image of split 'val', only of .*data.val_split.*data.holdout_val")])
def test_faults_of_karpathy_are_named(root, stem, message):
    where = root / "karpathy_coco"
    with pytest.raises(UserError, match=message):
        load("karpathy", annotations=str(where / f"{stem}.json"), images=str(where), **SMALL)
    if stem != "trained_only":
        pairs = load("karpathy", annotations=str(where / f"{stem}.json"), images=str(where), on_error="skip", **SMALL)
        assert sum(pairs.skipped.values()) == 1


def test_copies_of_a_picture_stay_on_one_side(root):
    pairs = _folder(root, "copies/t.jsonl", {"holdout_val": 8, "holdout_test": 8})
    sides = {split: {key.replace("_copy", "") for key in getattr(pairs, split).attributes["key"]}
             for split in ("train", "val", "test")}
    assert [len(getattr(pairs, split).images) for split in sides] == [32, 8, 8]
    assert not sides["train"] & sides["val"] and not sides["train"] & sides["test"] and not sides["val"] & sides["test"]
    assert any(re.match(r"24 images show the same as an earlier one", note) for note in pairs.notes)


def test_pictures_and_captions_of_test_that_are_in_train_are_counted(root, tmp_path):
    table = forms.write(tmp_path / "t.csv", "image,caption,split\na.jpg,one,train\nb.jpg,two,val\nc.jpg,one,test\n")
    forms.write_images(tmp_path, lambda i: "a.jpg", [1])
    forms.write_images(tmp_path, lambda i: "b.jpg", [2])
    forms.write_images(tmp_path, lambda i: "c.jpg", [1])
    notes = " ".join(load("folder", annotations=str(table), **SMALL).notes)
    assert "1 of 1 images of test are in train too" in notes and "1 of 1 captions of test are captions of train" in notes
    assert "of val" not in notes


DETECTED = [
    ("flickr8k_text/Flickr8k.token.txt flickr8k_text/Flicker8k_Dataset", "folder", ()),
    ("kaggle_flickr8k/captions.txt kaggle_flickr8k/Images", "folder", ()),
    ("hub_flickr30k", "folder", ("train", "val", "test")),
    ("albef_flickr30k", "folder", ("train", "val", "test")),
    ("coco", "folder", ("train", "val")),
    ("karpathy_coco/dataset_coco.json karpathy_coco", "karpathy", ("train", "val", "test")),
    ("sidecar", "folder", ()),
    ("img2dataset_files", "folder", ()),
    ("image_folder", "folder", ("train", "val", "test")),
    ("numbered/t.csv numbered/images", "folder", ()),
]


@pytest.mark.parametrize("paths, reader, splits", DETECTED, ids=[row[0] for row in DETECTED])
def test_what_is_detected_can_be_read(root, paths, reader, splits):
    found = detect([root / path for path in paths.split()])
    assert (found.name, sorted(found.has)) == (reader, sorted(splits))
    held = {f"holdout_{split}": 4 for split in ("val", "test") if split not in found.has}
    pairs = load(found.name, **SMALL, **found.settings, **held, on_error="skip")
    assert len(_all(pairs)) == forms.N


def test_several_tables_are_asked_about(root):
    with pytest.raises(UserError, match=r"tables could hold the captions: .*captions.*; name one"):
        detect([root / "kaggle_flickr8k"])


def test_shards_and_parquet_are_detected_with_their_splits(tmp_path):
    for word, only in (("train", range(16)), ("test", range(16, forms.N))):
        (tmp_path / "wds" / word).mkdir(parents=True)
        with tarfile.open(tmp_path / "wds" / word / "0.tar", "w") as archive:
            for i in only:
                for end, data in (("jpg", forms.jpeg(i)), ("txt", "\n".join(forms.captions(i)).encode())):
                    member = tarfile.TarInfo(f"s{i:07d}.{end}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    both = [tmp_path / "wds" / "train", tmp_path / "wds" / "test"]
    for paths in ([tmp_path / "wds"], both):
        found = detect(paths)
        assert (found.name, sorted(found.has)) == ("webdataset", ["test", "train"])
        pairs = load("webdataset", **found.settings, **SMALL, holdout_val=2)
        assert len(_all(pairs)) == forms.N and len(pairs.train.captions) == 70
    with pytest.raises(UserError, match="give the shards alone"):
        detect([*both, tmp_path])


def test_parquet_with_images_is_detected_with_its_splits(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.table({
        "image": [{"bytes": forms.jpeg(i), "path": forms.name(i)} for i in range(forms.N)],
        "caption": [forms.captions(i) for i in range(forms.N)], "split": forms.SPLIT}),
        tmp_path / "data" / "test-00000-of-00001.parquet")
    found = detect([tmp_path])
    assert (found.name, found.has) == ("hf", ("train", "val", "test"))
    pairs = load("hf", **found.settings, **SMALL, cache=str(tmp_path / "cache"))
    assert [len(getattr(pairs, split).images) for split in found.has] == [16, 4, 4]
    assert len(pairs.train.captions) == 80


def test_inspect_prints_a_config_that_reads_the_data(root, capsys):
    inspect_command([str(root / "numbered" / "t.csv"), str(root / "numbered" / "images")])
    printed = capsys.readouterr().out
    settings = dict(re.findall(r"c\.data\.(\w+) = '?([^'\n]*)'?", printed))
    assert settings["file_pattern"] == "{:012d}.jpg" and "left out:  nothing" in printed
    numbers = {key: int(value) for key, value in settings.items() if value.isdigit()}
    pairs = load(settings.pop("name"), **{**settings, **numbers}, **SMALL)
    assert len(_all(pairs)) == forms.N
    inspect_command([str(root / "kaggle_flickr8k" / "captions_missing.csv"), str(root / "kaggle_flickr8k" / "Images")])
    printed = capsys.readouterr().out
    assert "left out:  2 captions with a missing value" in printed and "c.data.on_error = 'skip'" in printed
    assert "c.data.max_skipped = 0.13" in printed  # 3 of 24
