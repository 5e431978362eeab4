"""Named random keys: the same name under the same seed is the same stream, whatever ran before it."""

import hashlib

import jax
import numpy as np


def _number(name) -> int:
    """A stable 32-bit number for a name (an int stands for itself)."""
    if isinstance(name, (int, np.integer)):
        return int(name)
    return int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:4], "big")


def named_key(seed: int, *path) -> jax.Array:
    """A typed `jax.random` key for `path` (strings or ints) under `seed`: `named_key(0, "experts", 3)`."""
    key = jax.random.key(seed)
    for name in path:
        key = jax.random.fold_in(key, _number(name))
    return key


def named_generator(seed: int, *path) -> np.random.Generator:
    """The host-side twin of `named_key`: a numpy generator for `path` under `seed`."""
    return np.random.default_rng([int(seed), *(_number(name) for name in path)])
