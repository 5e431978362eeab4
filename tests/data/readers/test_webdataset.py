"""Shards are written with tarfile (and once by the webdataset library), read at random, cached, and damaged."""

import io
import json
import os
import re
import tarfile

import numpy as np
import pytest
from miniature import encoded, same

from mdw_jax.data.decoding import decode
from mdw_jax.data.readers.webdataset import shard_paths, webdataset
from mdw_jax.data.tables.cells import LIST, TURNS
from mdw_jax.errors import UserError


def _sample(i, kind="jpg"):
    document = {"caption": f"Photo {i}.", "url": f"https://x.test/{i}", "similarity": i / 10, "key": f"{i:05}"}
    return {f"{i:05}.{kind}": encoded(i, "PNG" if kind == "png" else "JPEG"), f"{i:05}.txt": f"Photo {i}.\n".encode(),
            f"{i:05}.json": json.dumps(document).encode()}


def _tar(path, *samples, form=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in (item for sample in samples for item in sample.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "mini"
    for shard, rows in {"train-000": range(4), "train-001": range(4, 7), "val-000": [7, 8], "test-000": [9]}.items():
        _tar(folder / f"{shard}.tar", *(_sample(i, "png" if i == 5 else "jpg") for i in rows))
    return folder


def _read(folder, **settings):
    return webdataset(**{"train_shards": f"{folder}/train-{{000..001}}.tar", "val_shards": f"{folder}/val-*.tar",
                         "test_shards": f"{folder}/test-000.tar", "size": 16, **settings})


def test_everything_of_the_shards(shards):
    pairs = _read(shards, attribute_columns="similarity,url")
    assert pairs.name == "mini" and pairs.skipped == {}
    for split, rows in {"train": range(7), "val": [7, 8], "test": [9]}.items():
        got = getattr(pairs, split)
        np.testing.assert_array_equal(got.images, [decode(encoded(i, "PNG" if i == 5 else "JPEG"), 16) for i in rows])
        assert got.captions == tuple(f"Photo {i}." for i in rows)
        assert got.caption_ids.tolist() == list(rows)
        assert got.attributes["similarity"].tolist() == [i / 10 for i in rows]
    assert pairs.train.attributes["key"].tolist()[3:5] == ["train-000/00003", "train-001/00004"]


def test_lazy_is_eager_at_random(shards):
    lazy, eager = _read(shards, stream=True), _read(shards)
    same(lazy, eager)
    rows = np.random.default_rng(0).permutation(7)
    np.testing.assert_array_equal(lazy.train.images[rows], eager.train.images[rows])
    same(_read(shards, stream=True, holdout_val=2, val_shards=""), _read(shards, holdout_val=2, val_shards=""))


def test_the_index_is_kept_and_made_again(shards, tmp_path):
    cache = tmp_path / "cache"
    first = _read(shards, cache=cache, stream=True)
    kept = sorted(cache.iterdir())
    assert len(kept) == 4 and sorted(path.suffix for path in shards.iterdir()) == [".tar"] * 4  # nothing beside them
    stamps = [path.stat().st_mtime_ns for path in kept]
    kept[1].write_bytes(kept[1].read_bytes()[:100])
    again = _read(shards, cache=cache, stream=True)
    assert again.fingerprint == first.fingerprint == _read(shards, stream=True).fingerprint
    assert [path.stat().st_mtime_ns == old for path, old in zip(kept, stamps)] == [True, False, True, True]
    _tar(shards / "train-001.tar", *(_sample(i) for i in (4, 15, 6)))
    os.utime(shards / "train-001.tar", ns=(0, 12345))
    changed = _read(shards, cache=cache, stream=True)
    assert changed.train.captions[5] == "Photo 15." and changed.fingerprint != first.fingerprint
    assert len(list(cache.iterdir())) == 5
    _read(shards, cache=cache, caption_columns="url")
    assert len(list(cache.iterdir())) == 9


def test_a_shard_rewritten_under_a_run_is_noticed(shards):
    pairs = _read(shards, stream=True)
    data = bytearray((shards / "train-000.tar").read_bytes())
    data[data.index(encoded(2)) + 400] ^= 255
    (shards / "train-000.tar").write_bytes(data)
    assert pairs.train.images[np.array([0, 1, 3])].shape == (3, 16, 16, 3)
    with pytest.raises(UserError, match=r"'train-000/00002' \(its bytes have changed"):
        pairs.train.images[2]
    (shards / "train-000.tar").write_bytes(data[:2000])
    with pytest.raises(UserError, match=r"'train-000/00003' \(OSError: the shard ends early"):
        pairs.train.images[3]


def _broken():
    """Samples 20 to 29, of which 26, 27 and 29 are whole."""
    samples = {i: _sample(i) for i in range(20, 30)}
    samples[20]["00020.jpg"] = encoded(20)[:300]
    samples[21]["00021.jpg"] = b""
    del samples[22]["00022.jpg"]
    samples[23]["00023.txt"] = b" \n"
    del samples[24]["00024.txt"], samples[24]["00024.json"]
    del samples[25]["00025.txt"]
    samples[25]["00025.json"] = b"{"
    del samples[26]["00026.txt"]
    samples[27] = {"__meta__": b"x", ".hidden": b"x", "sub/00027.jpeg": encoded(27), "sub/00027.txt": b"Sub."}
    del samples[28]["00028.txt"]
    samples[28]["00028.json"] = json.dumps({"caption": None}).encode()
    return samples


BROKEN = {"broken image": 2, "no image": 1, "empty caption": 1, "no caption": 2, "unreadable json": 1}
SKIP = {"on_error": "skip", "max_skipped": 0.9}


@pytest.mark.parametrize("settings", [{}, {"stream": True}, {"check": False}])
def test_broken_samples_are_counted_and_the_others_keep_their_captions(shards, settings):
    _tar(shards / "train-001.tar", *_broken().values())
    pairs = _read(shards, **SKIP, **settings)
    assert pairs.skipped == BROKEN
    assert pairs.train.captions[4:] == ("Photo 26.", "Sub.", "Photo 29.")
    assert pairs.train.caption_ids[4:].tolist() == [7, 8, 9]  # the captions of two broken images and an empty one count
    assert pairs.val.caption_ids.tolist() == [10, 11]
    for row, i in ((4, 26), (5, 27), (6, 29)):
        np.testing.assert_array_equal(pairs.train.images[row], decode(encoded(i), 16))
    assert pairs.train.attributes["key"][5] == "train-001/sub/00027"


def test_unchecked_images_are_there_until_they_are_asked_for(shards):
    _tar(shards / "train-001.tar", *_broken().values())
    lax = _read(shards, stream=True, check=False, **SKIP)
    assert len(lax.train.images) == 9 and "broken image" not in lax.skipped
    with pytest.raises(UserError, match="2 of 9 images cannot be decoded, the first is 'train-001/00020'"):
        lax.train.images[:]


def test_what_cannot_be_used_stops_or_is_left_out_by_policy_also_from_the_index(shards, tmp_path):
    _tar(shards / "train-001.tar", *_broken().values())
    for _ in range(2):  # from the shards, then from their index
        for stream in (False, True):
            where = {"cache": tmp_path / "cache", "stream": stream}
            with pytest.raises(UserError) as stopped:
                _read(shards, **where)
            for words in (r"2 broken images \(the first: '00020' of '.*train-001.tar', 00020.jpg: \w+",
                          r"'00022' of '.*train-001.tar', which has .txt, .json", "'00024' of '.*', which has .jpg",
                          r"empty caption \('train-001/00023'\)", r"JSON \('00025' of '.*', JSONDecodeError: Expecting",
                          "data.on_error=skip"):
                assert re.search(words, str(stopped.value)), words
            with pytest.raises(UserError, match=r"6 of 16 images of '.*mini' cannot be used \(37.5 %\).*max_skipped"):
                _read(shards, on_error="skip", **where)
            assert _read(shards, **SKIP, **where).skipped == BROKEN
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_samples_of_failed_downloads(shards):
    rows = [_sample(i) for i in range(4)]
    for i, (status, error) in enumerate([("success", None), ("failed_to_download", "HTTP Error 404"), ("success", None)]):
        document = {"caption": "", "status": status, "error_message": error, "width": 32}
        rows[i][f"{i:05}.json"] = json.dumps(document).encode()
    rows[3]["00003.json"] = json.dumps({"status": "published"}).encode()  # of another kind of data: the image is there
    _tar(shards / "train-000.tar", *rows)
    with pytest.raises(UserError, match="1 failed download .*'00001' of '.*', whose status is 'failed_to_download'"):
        _read(shards)
    pairs = _read(shards, **SKIP)
    assert pairs.skipped == {"failed download": 1} and pairs.train.captions[:3] == ("Photo 0.", "Photo 2.", "Photo 3.")


def test_what_img2dataset_counted_is_said(shards):
    assert not any("fetched" in note for note in _read(shards).notes)
    for shard, stats in {"train-000": {"count": 10, "successes": 4, "failed_to_download": 6}, "train-001": [1, 2],
                         "val-000": {"count": 5, "successes": "many"}, "test-000": {"count": 3, "successes": 1}}.items():
        (shards / f"{shard}_stats.json").write_text(json.dumps(stats))
    assert "8 of 13 addresses could not be fetched when these shards were made." in _read(shards).notes
    (shards / "train-000_stats.json").write_text("{")
    assert "2 of 3 addresses could not be fetched when these shards were made." in _read(shards).notes


def test_captions_of_the_json(shards):
    assert _read(shards, caption_columns="url").val.captions == ("https://x.test/7", "https://x.test/8")
    several = _sample(0)
    several["00000.json"] = json.dumps({"url": ["One.", " ", "Two.", "None", 3]}).encode()
    _tar(shards / "test-000.tar", several, _sample(1))
    pairs = _read(shards, caption_columns="url", **SKIP)
    assert pairs.test.captions == ("One.", "Two.", "https://x.test/1") and pairs.test.image_of.tolist() == [0, 0, 1]
    assert pairs.test.caption_ids.tolist() == [9, 11, 14]
    assert pairs.skipped == {"empty caption": 1, "missing value as caption": 1, "broken row": 1}
    assert _read(shards).test.captions == ("Photo 0.", "Photo 1.")


def test_nested_fields_of_the_json(tmp_path):
    nested = {"caption": {"en": ["A photo."], "de": "Ein Foto."}, "a/b": "Slash."}

    def sample(i):
        return {f"{i}.jpg": encoded(i), f"{i}.json": json.dumps(nested).encode()}
    with pytest.raises(UserError, match="field 'caption' .*nested values with en, de; .*data.caption_columns=caption/en"):
        _form(tmp_path, sample)
    assert _form(tmp_path, sample, caption_columns="caption/en,a/b").val.captions == ("A photo.", "Slash.")
    with pytest.raises(UserError, match="4 images without a caption"):
        _form(tmp_path, sample, caption_columns="caption/fr")


CONVERSATION = [{"from": "human", "value": "<image>\nWhat is here?"}, {"from": "gpt", "value": "A photo."}]


@pytest.mark.parametrize("document, captions, note", [
    ({"caption": " A photo. ", "title": "Other."}, ["A photo."], "6 samples were read from the field 'caption'"),
    ({"text": "A photo."}, ["A photo."], "6 samples were read from the field 'text' of their JSON"),
    ({"url": "x", "TEXT": "A photo."}, ["A photo."], "6 samples were read from the field 'TEXT'"),
    ({"txt": "A photo."}, ["A photo."], "field 'txt'"),
    ({"prompt": "A photo.", "seed": 3}, ["A photo."], "field 'prompt'"),
    ({"captions": ["One.", "Two."]}, ["One.", "Two."], "field 'captions'"),
    ({"text": '["One.", "Two."]'}, ["One.", "Two."], f"6 captions {LIST}."),
    ({"id": "7", "conversations": CONVERSATION}, ["A photo."], f"6 captions {TURNS}."),
    (["One.", "Two."], ["One.", "Two."], None),
    ("A photo.", ["A photo."], None),
])
def test_the_field_of_the_captions_is_found(tmp_path, document, captions, note):
    pairs = _form(tmp_path, lambda i: {f"{i}.jpg": encoded(i), f"{i}.json": json.dumps(document).encode("utf-8-sig")})
    assert pairs.train.captions == tuple(captions) * 4
    assert note is None or any(note in said for said in pairs.notes)


def _form(folder, make, **settings):
    """Shards of samples `make(i)`: 0 to 3 for train, 4 for val, 5 for test."""
    paths = {f"{split}_shards": _tar(folder / f"{split}.tar", *map(make, rows))
             for split, rows in {"train": range(4), "val": [4], "test": [5]}.items()}
    return webdataset(**paths, size=16, **settings)


def _of(i, image, text, kind="JPEG"):
    return {image.format(i): encoded(i, kind), text.format(i): f"Photo {i}.".encode()}


FORMS = {
    "upper case": lambda i: _of(i, "./{:06}.JPG", "./{:06}.TXT"),
    ".img and .cap": lambda i: _of(i, "{:06}.img", "{:06}.cap"),
    ".caption": lambda i: _of(i, "{:06}.jfif", "{:06}.caption"),
    "bmp": lambda i: _of(i, "{:06}.bmp", "{:06}.txt", "BMP"),
    "png under gif": lambda i: _of(i, "{:06}.gif", "{:06}.txt", "PNG"),
    "tiff": lambda i: _of(i, "{:06}.tif" if i % 2 else "{:06}.tiff", "{:06}.txt", "TIFF"),
    "webp": lambda i: _of(i, "{:06}.webp", "{:06}.txt", "WEBP"),
    "two-part extensions": lambda i: _of(i, "sample{:08}.input.jpg", "sample{:08}.outputs.txt"),
    "directories with dots": lambda i: _of(i, "train.v1/{:06}.jpg", "train.v1/{:06}.txt"),
    "keys with spaces": lambda i: _of(i, "a photo {}.jpg", "a photo {}.txt"),
    "keys with dots": lambda i: _of(i, "photo no. {}.jpg", "photo no. {}.txt"),
    "some keys with dots": lambda i: _of(i, "St. {}.jpg" if i % 2 else "{}.jpg", "St. {}.txt" if i % 2 else "{}.txt"),
    "members of a Mac": lambda i: {f"./._{i}.jpg": bytes(104), f"__MACOSX/{i}.jpg": bytes(9), ".DS_Store": b"x",
                                   **_of(i, "./{}.jpg", "./{}.txt")},
    "classes and features": lambda i: {**_of(i, "{}.jpg", "{}.txt"), f"{i}.cls": b"3", f"{i}.text.npy": b"x",
                                       f"only{i}.npy": b"x"},
    "a mask beside the image": lambda i: {f"{i}.seg.png": encoded(90, "PNG"), **_of(i, "{}.jpg", "{}.txt"),
                                          f"{i}.alt.txt": b"Other."},
    "several JSONs that are not needed": lambda i: {**_of(i, "{}.jpg", "{}.txt"), f"{i}.boxes.json": b"[",
                                                    f"{i}.faces.json": b"{}"},
    "a mark of UTF-8": lambda i: {f"{i}.jpg": encoded(i), f"{i}.txt": f"Photo {i}.".encode("utf-8-sig")},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form):
    pairs = _form(tmp_path, FORMS[form])
    for split, rows in {"train": range(4), "val": [4], "test": [5]}.items():
        assert getattr(pairs, split).captions == tuple(f"Photo {i}." for i in rows)
        stored = [next(data for name, data in FORMS[form](i).items()
                       if len(data) > 200 and ".seg" not in name) for i in rows]
        np.testing.assert_array_equal(getattr(pairs, split).images, [decode(data, 16) for data in stored])
    assert pairs.skipped == {}
    said = {"keys with dots": "in 1 of the shards .*last dot", "some keys with dots": "in 1 of the shards .*last dot",
            "a mask beside the image": r"12 members \(.seg.png, .alt.txt\) were not read"}
    assert bool(pairs.notes) == (form in said) and re.search(said.get(form, ""), " ".join(pairs.notes))


def test_gif_is_read(tmp_path):
    pairs = _form(tmp_path, lambda i: {f"{i}.gif": encoded(i, "GIF"), f"{i}.txt": b"Photo."})
    np.testing.assert_array_equal(pairs.val.images[0], decode(encoded(4, "GIF"), 16))


def test_keys_end_at_the_last_dot_only_where_the_first_one_does_not_serve(tmp_path):
    dotted = _form(tmp_path / "a", FORMS["keys with dots"])
    assert dotted.train.attributes["key"].tolist() == [f"train/photo no. {i}" for i in range(4)]
    two_part = _form(tmp_path / "b", FORMS["two-part extensions"])
    assert two_part.train.attributes["key"].tolist() == [f"train/sample{i:08}" for i in range(4)]


@pytest.mark.parametrize("names, message", [
    (["{0}.input.jpg", "{0}.target.jpg", "{0}.txt"],
     "2 members of sample '0' of '.*train.tar' could be its image, '0.input.jpg' and '0.target.jpg'"),
    (["{0}.jpg", "{0}.png", "{0}.txt"], "could be its image, '0.jpg' and '0.png'"),
    (["{0}.jpg", "{0}.txt", "{0}.cap"], "could be its text, '0.txt' and '0.cap'"),
    (["{0}.jpg", "{0}.a.json", "{0}.b.json"], "could be its json, '0.a.json' and '0.b.json'"),
    (["{0}.foo", "{0}.bar"], r"train.tar' holds 4 samples, with extensions .foo, .bar; expected an image \(.jpg, .*"
                             r"and a text \(.txt,.* .json\)"),
    (["{0}.jpg", "{0}.cls"], "holds 4 samples, with extensions .jpg, .cls; expected an image"),
    (["{0}.mp4", "{0}.txt", "{0}.json"], "holds 4 samples, with extensions .mp4, .txt, .json; expected an image"),
    (["{0}.jpg", "caption {0}.txt"], "holds 8 samples, with extensions .jpg, .txt; .* of the same name"),
])
def test_shards_of_which_nobody_knows_what_belongs_together(tmp_path, names, message):
    contents = {"jpg": encoded(1), "png": encoded(2, "PNG"), "txt": b"Photo.", "cap": b"Photo.", "json": b"{}"}
    with pytest.raises(UserError, match=message):
        _form(tmp_path, lambda i: {name.format(i): contents.get(name[-3:], b"{}") for name in names}, **SKIP)


def test_hard_links_stand_for_their_member_and_other_links_for_nothing(tmp_path):
    path = _tar(tmp_path / "train.tar", *(_of(i, "{}.jpg", "{}.txt") for i in range(2)))
    with tarfile.open(path, "a") as archive:
        for name, kind in (("2.jpg", tarfile.LNKTYPE), ("3.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "1.jpg"
            archive.addfile(member)
        for name in ("2.txt", "3.txt"):
            member = tarfile.TarInfo(name)
            member.size = 6
            archive.addfile(member, io.BytesIO(b"Again."))
    paths = [_tar(tmp_path / f"{split}.tar", _of(i, "{}.jpg", "{}.txt")) for i, split in ((4, "val"), (5, "test"))]
    pairs = webdataset(path, *paths, size=16, **SKIP)
    assert pairs.train.captions == ("Photo 0.", "Photo 1.", "Again.") and pairs.skipped == {"no image": 1}
    np.testing.assert_array_equal(pairs.train.images[2], pairs.train.images[1])


def _five(i):
    return {f"s{i:07}.jpg": encoded(i), f"s{i:07}.txt": "\n".join(f"Caption {k} of {i}." for k in range(5)).encode()}


@pytest.fixture
def clip_benchmark(tmp_path):
    """As CLIP-benchmark has data sets: a directory for each split, shards from 0, one caption a line."""
    for split, rows in {"train": range(4), "test": [5, 6]}.items():
        _tar(tmp_path / "wds" / split / "0.tar", *map(_five, rows))
        (tmp_path / "wds" / split / "nshards.txt").write_text("1")
    return tmp_path / "wds"


def test_shards_of_one_name_in_two_directories(clip_benchmark, tmp_path):
    for _ in range(2):
        pairs = webdataset(clip_benchmark / "train", "", clip_benchmark / "test", holdout_val=1, size=16, stream=True,
                           cache=tmp_path / "cache")
        assert pairs.name == "wds" and len(list((tmp_path / "cache").iterdir())) == 2
        assert pairs.test.attributes["key"].tolist() == ["test/0/s0000005", "test/0/s0000006"]
        held, = (int(key[-1]) for key in pairs.val.attributes["key"])
        rows = [i for i in range(4) if i != held]
        assert pairs.train.attributes["key"].tolist() == [f"train/0/s000000{i}" for i in rows]
        for part, members in ((pairs.train, rows), (pairs.val, [held]), (pairs.test, [5, 6])):
            assert part.captions == tuple(f"Caption {k} of {i}." for i in members for k in range(5))
            np.testing.assert_array_equal(part.images[:], [decode(encoded(i), 16) for i in members])
        assert pairs.test.caption_ids.tolist() == list(range(20, 30))
        assert any("4 texts of train have several lines" in note and "caption_lines=join" in note for note in pairs.notes)


def test_as_many_directories_as_it_takes(tmp_path):
    paths = [_tar(tmp_path / f"{outer}/{inner}/0.tar", _sample(i)) for i, (outer, inner) in enumerate(
        [("a", "x"), ("b", "x"), ("a", "y")])]
    pairs = webdataset(*paths, size=16)
    assert [part.attributes["key"][0] for part in (pairs.train, pairs.val, pairs.test)] == [
        "a/x/0/00000", "b/x/0/00001", "a/y/0/00002"]


@pytest.mark.parametrize("several, mode, captions, said", [
    (4, "", 20, "4 texts of train .*each line is a caption; with data.caption_lines=join"),
    (3, "", 4, "3 texts of train .*their lines are one caption, joined by spaces; with data.caption_lines=split"),
    (3, "split", 16, "3 texts of train .*each line is a caption"),
    (4, "join", 4, "4 texts of train .*joined by spaces"),
    (0, "", 4, None),
])
def test_lines_of_texts(tmp_path, several, mode, captions, said):
    def sample(i):
        return _five(i) if i < several else {f"s{i}.jpg": encoded(i), f"s{i}.txt": b"One.\r\n \r\n"}
    for _ in range(2):
        pairs = _form(tmp_path, sample, caption_lines=mode, cache=tmp_path / "cache")
        assert len(pairs.train.captions) == captions and pairs.train.caption_ids.tolist() == list(range(captions))
        assert pairs.val.captions == ("One.",) and pairs.val.caption_ids.tolist() == [captions]
        if captions == 4 and several:
            assert pairs.train.captions[0] == " ".join(f"Caption {k} of 0." for k in range(5))
        lines = [note for note in pairs.notes if "several lines" in note]
        assert len(lines) == bool(said) and (not said or re.search(said, lines[0]))


def test_the_first_shard_of_a_split_tells_what_lines_are(tmp_path):
    wrapped = {"9.jpg": encoded(9), "9.txt": b"A caption\nin two lines."}
    train = [_tar(tmp_path / "a-0.tar", _sample(0), _sample(1)), _tar(tmp_path / "a-1.tar", wrapped)]
    val, test = _tar(tmp_path / "val.tar", _five(2)), _tar(tmp_path / "test.tar", _sample(3))
    pairs = webdataset(train, val, test, size=16)
    assert pairs.train.captions[2] == "A caption in two lines." and len(pairs.val.captions) == 5
    pairs = webdataset(train[::-1], val, test, size=16)
    assert pairs.train.captions[:2] == ("A caption", "in two lines.")


def test_unknown_caption_lines(shards):
    with pytest.raises(UserError, match="no caption_lines 'lines'; set data.caption_lines to split .* or join"):
        _read(shards, caption_lines="lines")


def test_long_names_and_odd_ones_are_only_names(shards, tmp_path):
    long, data = "d" * 150 + "/" + "n" * 150, encoded(3)
    odd = {f"{long}.jpg": data, f"{long}.txt": b"Long.", "caf\u00e9.jpg": data, "caf\u00e9.txt": "Café.".encode()}
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        _tar(shards / "test-000.tar", odd, form=form)
        test = _read(shards).test
        assert test.captions == ("Long.", "Café.")
        np.testing.assert_array_equal(test.images, [decode(data, 16)] * 2)
    for name in ("../../up", "/root"):  # only names too, but nothing that anybody should unpack
        _tar(shards / "test-000.tar", {f"{name}.jpg": data, f"{name}.txt": b"Up."})
        with pytest.raises(UserError, match=f"test-000.tar' holds '{name}.jpg', a name that leads out"):
            _read(shards)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_the_format_is_that_of_the_webdataset_library(tmp_path):
    library = pytest.importorskip("webdataset")
    with library.TarWriter(str(tmp_path / "a-0.tar")) as writer:
        for i in range(4):
            writer.write({"__key__": f"{i:05}", "jpg": encoded(i), "txt": f"Photo {i}.", "json": {"caption": "other"}})
    pairs = webdataset(tmp_path / "a-0.tar", size=16, holdout_val=1, holdout_test=1)
    by_key = {key: (text, pixels) for split in (pairs.train, pairs.val, pairs.test)
              for key, text, pixels in zip(split.attributes["key"], split.captions, split.images)}
    assert by_key.keys() == {f"a-0/{i:05}" for i in range(4)}
    for i in range(4):
        assert by_key[f"a-0/{i:05}"][0] == f"Photo {i}."
        np.testing.assert_array_equal(by_key[f"a-0/{i:05}"][1], decode(encoded(i), 16))


def test_patterns(tmp_path):
    names = [*(f"s-{i:03}.tar" for i in range(8, 12)), "s-7.tar", "b-x.tar", "b-y.tar"]
    for name in names:
        _tar(tmp_path / name, {"0.txt": b"x"})

    def found(*patterns):
        paths = shard_paths(patterns[0] if len(patterns) == 1 else list(patterns))
        return [os.path.basename(path) for path in paths]
    assert found(f"{tmp_path}/s-{{008..011}}.tar") == names[:4]
    assert found(f"{tmp_path}/b-{{y,x}}.tar::{tmp_path}/s-{{7..7}}.tar") == ["b-y.tar", "b-x.tar", "s-7.tar"]
    assert found(f"{tmp_path}/b-*.tar", tmp_path / "s-7.tar") == ["b-x.tar", "b-y.tar", "s-7.tar"]
    assert found(f"{tmp_path}/{{s-{{7..7}},b-x}}.tar") == ["s-7.tar", "b-x.tar"]
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    assert found(tmp_path) == sorted(names)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="directory '.*empty' has no .tar files"):
        found(tmp_path / "empty")


@pytest.mark.parametrize("settings, message", [
    ({"train_shards": "{dir}/train-{{000..004}}.tar"}, r"3 of the shards .* missing, the first is '.*train-002\.tar'"),
    ({"train_shards": "https://x.test/{{0..3}}.tar"}, "'https://x.test/0.tar' is not a local file"),
    ({"train_shards": "pipe:cat x.tar"}, "not a local file"),
    ({"train_shards": ""}, "no shards are given for split 'train'; set train_shards"),
    ({"val_shards": ""}, "no shards are given for split 'val'; set val_shards or holdout_val"),
    ({"val_shards": "{dir}/train-000.tar"}, "^1 shard is given more than once, the first is '.*/train-000.tar'"),
    ({"val_shards": "{dir}/link.tar"}, "^1 shard is given more than once"),
    ({"caption_columns": "alt"}, r"no sample of .*train.* can be used \(7 images without a caption \(the first: '00000' "
                                 "of '.*train-000.tar', which has .jpg, .txt, .json and in its JSON caption, url"),
    ({"val_shards": "{dir}/empty.tar"}, r"no sample of '.*empty.tar' can be used \(they are empty\)"),
    ({"val_shards": "{dir}/no.tar"}, "no.tar' holds 1 sample, with extensions .txt; expected an image"),
    ({"val_shards": "{dir}/torn.tar"}, "'.*torn.tar' is not a readable tar file"),
    ({"val_shards": "{dir}/torn-header.tar"}, r"torn-header.tar' is not a readable tar .*no header and no end mark"),
    ({"val_shards": "{dir}/torn-between.tar"}, "torn-between.tar' is not a readable tar file"),
    ({"val_shards": "{dir}/damaged.tar"}, "damaged.tar' is not a readable tar file"),
    ({"val_shards": "{dir}/text.tar"}, "'.*text.tar' is not a readable tar file"),
    ({"val_shards": "{dir}/zipped.tar.gz"}, "'.*zipped.tar.gz' is not a plain .tar file.*gunzip -c '.*/zipped.tar.gz' > "
                                            "'.*/zipped.tar'`.$"),
    ({"val_shards": "{dir}/packed"}, "packed/x.tgz' is not a plain .tar file.*gunzip -c '.*/x.tgz' > '.*/x.tar'`.$"),
    ({"val_shards": "{dir}/zipped.tar"}, "zipped.tar' is compressed.*gunzip -c '.*/zipped.tar' > '.*zipped-unpacked.tar'"),
    ({"val_shards": "{dir}/0.parquet"}, "0.parquet' is not a plain .tar file.*give only tar files"),
])
def test_bad_shards(shards, settings, message):
    whole = (shards / "val-000.tar").read_bytes()
    (shards / "torn.tar").write_bytes(whole[:1000])
    (shards / "torn-header.tar").write_bytes(whole[:whole.index(b"00007.txt") + 100])
    (shards / "torn-between.tar").write_bytes(whole[:whole.index(b"00008.jpg")])
    (shards / "damaged.tar").write_bytes(whole.replace(b"00007.json", b"00009.json"))
    (shards / "text.tar").write_bytes(b"This is no archive. " * 100)
    (shards / "0.parquet").write_bytes(b"PAR1")
    (shards / "link.tar").symlink_to(shards / "train-000.tar")
    (shards / "packed").mkdir()
    _tar(shards / "no.tar", {"0.txt": b"x"})
    _tar(shards / "empty.tar")
    for name in ("zipped.tar", "zipped.tar.gz", "packed/x.tgz"):
        with tarfile.open(shards / name, "w:gz") as archive:
            archive.add(shards / "text.tar", "x.jpg")
    with pytest.raises(UserError, match=message):
        _read(shards, **{key: value.format(dir=shards) for key, value in settings.items()})
