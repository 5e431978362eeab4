"""Damaged .npy and .npz files are one kind of error."""

import io

import numpy as np
import pytest
from fuzz_mutations import mutated

from mdw_jax.io import numpy_files
from mdw_jax.io.numpy_files import numpy_file


def as_bytes(save, *arrays, **named):
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def test_files_are_read():
    with numpy_file(io.BytesIO(as_bytes(np.save, np.arange(5)))) as array:
        np.testing.assert_array_equal(array, np.arange(5))
    with numpy_file(io.BytesIO(as_bytes(np.savez, a=np.arange(5)))) as arrays:
        np.testing.assert_array_equal(arrays["a"], np.arange(5))


@pytest.mark.parametrize("save", [lambda buffer: np.save(buffer, np.arange(20.0).reshape(4, 5)),
                                  lambda buffer: np.savez(buffer, a=np.arange(20.0)),
                                  lambda buffer: np.savez_compressed(buffer, a=np.zeros(2000))])
def test_damage_is_a_value_error(save):
    whole, refused = as_bytes(save), 0
    for n in range(400):
        try:
            with numpy_file(io.BytesIO(mutated(whole, f"numpy {n}"))) as stored:
                _ = stored["a"] if not isinstance(stored, np.ndarray) else stored.shape
        except (OSError, ValueError) as error:
            assert "\n" not in str(error) and len(str(error)) < 300
            refused += 1
    assert refused > 50


def test_pickles_missing_arrays_and_bombs_are_refused(tmp_path, monkeypatch):
    pickled = as_bytes(lambda buffer: np.save(buffer, np.array([{}], object), allow_pickle=True))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"), numpy_file(io.BytesIO(pickled)):
        pass
    with pytest.raises(ValueError, match="KeyError"):
        with numpy_file(io.BytesIO(as_bytes(np.savez, a=np.arange(5)))) as arrays:
            _ = arrays["b"]
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(1 << 22, np.uint8))
    with numpy_file(tmp_path / "bomb.npz") as arrays:
        assert len(arrays["a"]) == 1 << 22
    monkeypatch.setattr(numpy_files, "_LARGE", 1 << 20)
    with pytest.raises(ValueError, match="would unpack to 4,194,432 bytes, .* times its size"):
        with numpy_file(tmp_path / "bomb.npz"):
            pass
