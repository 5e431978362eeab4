"""Caches on disk: files that carry the key of what they were computed from.

A cache that is missing, damaged or of another key is no error: the caller computes its contents again. For records
that must not be replaced silently, see `mdw_jax.io.records.complete`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mdw_jax.io.checksums import read_verified_json
from mdw_jax.io.files import digest, parse_json, write_atomically

_METADATA = "mdw_jax.io.keyed"  # one entry: safetensors orders several at random, and equal caches should be equal files


def read_keyed_json(path, key: str, key_name: str = "key") -> dict | None:
    """Read a JSON object that carries its key.

    Args:
        path: the file, as `write_listed_json` leaves it.
        key: what the object must hold under `key_name`.
        key_name: the entry that holds the key.

    Returns:
        The whole object; None if the file is missing, unreadable or of another key.
    """
    try:
        value = read_verified_json(path)
    except (OSError, ValueError):
        return None
    return value if value.get(key_name) == key else None


def write_keyed_arrays(path, arrays: Mapping[str, np.ndarray], key: str) -> Path:
    """Write named arrays with their key and their sha256 as one safetensors file, atomically.

    Args:
        path: the file.
        arrays: any shapes, of dtypes that safetensors has.
        key: sha256 of everything the arrays depend on.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    about = json.dumps({"key": key, "sha256": digest_of_arrays(arrays)}, sort_keys=True)
    return write_atomically(path, save(arrays, {_METADATA: about}))


def read_keyed_arrays(path, key: str) -> dict[str, np.ndarray] | None:
    """Read what `write_keyed_arrays` wrote under `key`; None if it is missing, damaged or of another key."""
    try:
        with safe_open(path, "np") as file:
            about = parse_json(file.metadata()[_METADATA])
            if about["key"] != key:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        return arrays if about["sha256"] == digest_of_arrays(arrays) else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def digest_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 (hex) over name, dtype, shape and bytes of all arrays."""
    return digest(*(part for name in sorted(arrays) for part in (name, arrays[name])))
