"""Shards are written with tarfile (and once by the webdataset library), read at random, cached, and damaged."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from miniature import encoded, same

from mdw_jax.data.decoding import decode
from mdw_jax.data.readers.webdataset import shard_paths, webdataset
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


def test_broken_samples_are_counted_and_the_others_keep_their_captions(shards):
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
    _tar(shards / "train-001.tar", *samples.values())
    want = {"broken image": 2, "no image": 1, "empty caption": 1, "no caption": 2, "unreadable json": 1}
    for settings in ({}, {"stream": True}, {"check": False}):
        pairs = _read(shards, **settings)
        assert pairs.skipped == want
        assert pairs.train.captions[4:] == ("Photo 26.", "Sub.", "Photo 29.")
        for row, i in ((4, 26), (5, 27), (6, 29)):
            np.testing.assert_array_equal(pairs.train.images[row], decode(encoded(i), 16))
        assert pairs.train.attributes["key"][5] == "train-001/sub/00027"
    lax = _read(shards, stream=True, check=False)  # the broken are there until they are asked for
    assert len(lax.train.images) == 9 and "broken image" not in lax.skipped
    with pytest.raises(UserError, match="2 of 9 images cannot be decoded, the first is 'train-001/00020'"):
        lax.train.images[:]


def test_captions_of_the_json(shards):
    assert _read(shards, caption_columns="url").val.captions == ("https://x.test/7", "https://x.test/8")
    several = _sample(0)
    several["00000.json"] = json.dumps({"url": ["One.", " ", "Two."]}).encode()
    _tar(shards / "test-000.tar", several, _sample(1))
    test = _read(shards, caption_columns="url").test
    assert test.captions == ("One.", "Two.", "https://x.test/1") and test.image_of.tolist() == [0, 0, 1]
    assert _read(shards).test.captions == ("Photo 0.", "Photo 1.")


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


@pytest.mark.parametrize("settings, message", [
    ({"train_shards": "{dir}/train-{{000..004}}.tar"}, r"3 of the shards .* missing, the first is '.*train-002\.tar'"),
    ({"train_shards": "https://x.test/{{0..3}}.tar"}, "'https://x.test/0.tar' is not a local file"),
    ({"train_shards": "pipe:cat x.tar"}, "not a local file"),
    ({"train_shards": ""}, "no shards are given for split 'train'; set train_shards"),
    ({"val_shards": ""}, "no shards are given for split 'val'; set val_shards or holdout_val"),
    ({"val_shards": "{dir}/train-000.tar"}, "1 names of shards occur more than once, the first is 'train-000.tar'"),
    ({"caption_columns": "alt"}, r"no sample of .* is usable \(7 no caption\)"),
    ({"val_shards": "{dir}/torn.tar"}, "'.*torn.tar' is not a readable tar file"),
    ({"val_shards": "{dir}/torn-header.tar"}, r"torn-header.tar' is not a readable tar .*no header and no end mark"),
    ({"val_shards": "{dir}/torn-between.tar"}, "torn-between.tar' is not a readable tar file"),
    ({"val_shards": "{dir}/damaged.tar"}, "damaged.tar' is not a readable tar file"),
    ({"val_shards": "{dir}/text.tar"}, "'.*text.tar' is not a readable tar file"),
    ({"val_shards": "{dir}/zipped.tar.gz"}, "'.*zipped.tar.gz' is not a plain .tar file"),
    ({"val_shards": "{dir}/zipped.tar"}, "'.*zipped.tar' is not a readable tar file"),
])
def test_bad_shards(shards, settings, message):
    whole = (shards / "val-000.tar").read_bytes()
    (shards / "torn.tar").write_bytes(whole[:1000])
    (shards / "torn-header.tar").write_bytes(whole[:whole.index(b"00007.txt") + 100])
    (shards / "torn-between.tar").write_bytes(whole[:whole.index(b"00008.jpg")])
    (shards / "damaged.tar").write_bytes(whole.replace(b"00007.json", b"00009.json"))
    (shards / "text.tar").write_bytes(b"This is no archive. " * 100)
    for name in ("zipped.tar", "zipped.tar.gz"):
        with tarfile.open(shards / name, "w:gz") as archive:
            archive.add(shards / "text.tar", "x.jpg")
    with pytest.raises(UserError, match=message):
        _read(shards, **{key: value.format(dir=shards) for key, value in settings.items()})
