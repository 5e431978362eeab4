"""`text_features`: the encoders by name, the key, and the cache."""

import dataclasses

import numpy as np
import pytest

from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.errors import UserError
from mdw_jax.io import row_cache
from mdw_jax.models.text import features as module
from mdw_jax.models.text.bow import bow_features
from mdw_jax.models.text.features import text_features


def _split(captions, first):
    k = len(captions)
    return Split(np.zeros((k, 2, 2, 3), np.uint8), tuple(captions), np.arange(k), first + np.arange(k))


@pytest.fixture
def pairs():
    return Pairs("tiny", _split(["a dog", "two dogs", "a man climbs"], 0), _split(["a red shirt"], 3),
                 _split(["snow", "a rock"], 4))


@pytest.fixture
def rows(tmp_path):
    """A precomputed file for the six captions: (its path, its rows)."""
    rows = np.arange(18, dtype=np.float32).reshape(6, 3)
    np.save(tmp_path / "rows.npy", rows)
    return tmp_path / "rows.npy", rows


def _recorded(monkeypatch):
    """Replaces the bow encoder's work by itself plus a note that it ran."""
    runs = []
    monkeypatch.setattr(module, "bow_features", lambda *args: runs.append(args) or bow_features(*args))
    return runs


def test_every_split_gets_the_features_of_its_captions(pairs, rows):
    bow = text_features(pairs, "bow", dim=16, seed=3)
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(bow, name), bow_features(getattr(pairs, name).captions, 16, 3))
    path, expected = rows
    stored = text_features(pairs, "precomputed", path=path)
    np.testing.assert_array_equal(np.concatenate([stored.train, stored.val, stored.test]), expected)


def test_the_key_follows_captions_and_the_encoders_own_settings_only(pairs, rows):
    path, _ = rows
    key = text_features(pairs, "bow").key
    assert len(key) == 64
    assert text_features(pairs, "bow", path=path, pooling="cls", max_tokens=9).key == key
    other_caption = dataclasses.replace(pairs, val=_split(["a blue shirt"], 3))
    moved = dataclasses.replace(pairs, val=_split(["a red shirt", "snow"], 3), test=_split(["a rock"], 5))
    keys = {key, text_features(pairs, "bow", dim=17).key, text_features(pairs, "bow", seed=1).key,
            text_features(other_caption, "bow").key, text_features(moved, "bow").key,
            text_features(pairs, "precomputed", path=path).key}
    assert len(keys) == 6


def test_the_key_of_a_precomputed_file_follows_its_contents_and_the_caption_numbers(pairs, rows, tmp_path):
    path, values = rows
    key = text_features(pairs, "precomputed", path=path).key
    np.save(tmp_path / "copy.npy", values)
    assert text_features(pairs, "precomputed", path=tmp_path / "copy.npy").key == key
    np.save(path, values + 1)
    assert text_features(pairs, "precomputed", path=path).key != key
    renumbered = dataclasses.replace(pairs, val=_split(pairs.val.captions, 2))
    assert text_features(renumbered, "precomputed", path=tmp_path / "copy.npy").key != key


def test_the_cache_is_written_once_and_read_back(pairs, tmp_path, monkeypatch):
    runs = _recorded(monkeypatch)
    first = text_features(pairs, "bow", cache_dir=tmp_path / "cache", dim=8)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {f"text-{first.key[:16]}.{kind}" for kind in (
        "npy", "json", "lock")}
    again = text_features(pairs, "bow", cache_dir=tmp_path / "cache", dim=8)
    assert len(runs) == 1 and again.key == first.key
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    text_features(pairs, "bow", cache_dir=tmp_path / "cache", dim=9)
    assert len(runs) == 2


@pytest.mark.parametrize("harm", ["truncated", "another kind", "a flipped bit", "another key"])
def test_a_cache_that_cannot_be_trusted_is_computed_again(pairs, tmp_path, monkeypatch, harm):
    runs = _recorded(monkeypatch)
    first = text_features(pairs, "bow", cache_dir=tmp_path, dim=8)
    path = tmp_path / f"text-{first.key[:16]}.{'json' if harm == 'another key' else 'npy'}"
    whole = path.read_bytes()
    harmed = {"truncated": whole[:-7], "another kind": b"hello", "a flipped bit": whole[:-1] + bytes([whole[-1] ^ 1]),
              "another key": whole.replace(first.key.encode(), first.key[:16].encode() + b"0" * 48)}[harm]
    assert harmed != whole
    path.write_bytes(harmed)
    for _ in range(2):  # the second time from the rewritten cache
        again = text_features(pairs, "bow", cache_dir=tmp_path, dim=8)
        assert len(runs) == 2 and again.key == first.key
        np.testing.assert_array_equal(again.test, first.test)


def test_captions_are_encoded_in_chunks_and_a_killed_call_goes_on(pairs, rows, tmp_path, monkeypatch):
    runs = _recorded(monkeypatch)
    whole = text_features(pairs, "bow", dim=8)
    stored = text_features(pairs, "precomputed", path=rows[0])
    monkeypatch.setattr(module, "chunk_size", lambda: 2)
    monkeypatch.setattr(row_cache, "CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(module, "bow_features", lambda captions, *args: runs.append(captions) or (
        bow_features(captions, *args) if len(runs) < 4 else None))
    with pytest.raises(AttributeError):  # in the third chunk
        text_features(pairs, "bow", cache_dir=tmp_path, dim=8)
    monkeypatch.setattr(module, "bow_features",
                        lambda captions, *args: runs.append(captions) or bow_features(captions, *args))
    again = text_features(pairs, "bow", cache_dir=tmp_path, dim=8)
    assert runs[1:] == [["a dog", "two dogs"], ["a man climbs", "a red shirt"], ["snow", "a rock"], ["snow", "a rock"]]
    for one, other in ((whole, again), (stored, text_features(pairs, "precomputed", path=rows[0]))):
        for name in ("train", "val", "test"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_half_precision_is_another_cache_and_refused_where_it_overflows(pairs, tmp_path):
    exact, half = (text_features(pairs, "bow", cache_dir=tmp_path, dim=8, dtype=dtype) for dtype in ("float32", "float16"))
    assert half.key != exact.key and half.train.dtype == np.float16 and len(list(tmp_path.glob("*.npy"))) == 2
    np.testing.assert_array_equal(half.val, exact.val.astype(np.float16))
    np.save(tmp_path / "large.npy", np.full((6, 3), 7e4, np.float32))
    with pytest.raises(UserError, match="reach 7e[+]04, too large for float16; set text.dtype to float32"):
        text_features(pairs, "precomputed", path=tmp_path / "large.npy", dtype="float16")
    with pytest.raises(UserError, match="kept in float32 or float16, not in 'int8'"):
        text_features(pairs, "bow", dtype="int8")


def test_mistakes_are_told(pairs, tmp_path):
    with pytest.raises(UserError, match="unknown text encoder 'clip'; set text.encoder to one of bow, precomputed, tra"):
        text_features(pairs, "clip")
    for encoder in ("precomputed", "transformer"):
        with pytest.raises(UserError, match=f"'{encoder}' needs a .*set text.path to"):
            text_features(pairs, encoder)
    with pytest.raises(UserError, match="no text feature file"):
        text_features(pairs, "precomputed", path=tmp_path / "none.npy")
