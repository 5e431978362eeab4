"""A cache is used only if it is whole and of the key asked for; anything else is no error."""

import numpy as np
import pytest

from mdw_jax.io.files import write_json
from mdw_jax.io.keyed import read_keyed_arrays, read_keyed_json, write_keyed_arrays

ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a": np.array([True, False])}


def test_arrays_come_back_under_their_key_alone(tmp_path):
    path = write_keyed_arrays(tmp_path / "cache", ARRAYS, "key")
    arrays = read_keyed_arrays(path, "key")
    assert set(arrays) == {"a", "b"}
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(array, ARRAYS[name])
    assert read_keyed_arrays(path, "other") is None and read_keyed_arrays(tmp_path / "none", "key") is None
    again = write_keyed_arrays(tmp_path / "again", dict(reversed(ARRAYS.items())), "key")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("damage", [
    lambda whole: b"", lambda whole: b"hello", lambda whole: whole[:-1], lambda whole: whole[:20],
    lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
    lambda whole: whole.replace(b'"a":{', b'"c":{'),  # the arrays of other names
])
def test_damaged_arrays_are_as_good_as_none(tmp_path, damage):
    path = write_keyed_arrays(tmp_path / "cache", ARRAYS, "key")
    whole = path.read_bytes()
    assert damage(whole) != whole
    path.write_bytes(damage(whole))
    assert read_keyed_arrays(path, "key") is None


def test_json_comes_back_under_its_key_alone(tmp_path):
    path = write_json(tmp_path / "a.json", {"key": "k", "rows": [1]})
    assert read_keyed_json(path, "k") == {"key": "k", "rows": [1]}
    assert read_keyed_json(path, "other") is None and read_keyed_json(path, "k", "sha256") is None
    assert read_keyed_json(tmp_path / "none.json", "k") is None and read_keyed_json(tmp_path, "k") is None
    for damaged in ("", "[]", "{"):
        path.write_text(damaged)
        assert read_keyed_json(path, "k") is None
