"""Named random streams: one name under one seed is always the same stream, whatever was drawn before."""

import hashlib

import jax
import numpy as np


def _number(name: str | int) -> int:
    """A stable 32-bit number for a name; an int stands for itself."""
    if isinstance(name, (int, np.integer)):
        return int(name)
    return int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:4], "big")


def named_key(seed: int, *path: str | int) -> jax.Array:
    """The `jax.random` key of a stream.

    Args:
        seed: of the run.
        *path: the name of the stream, in parts: `named_key(0, "experts", 3)`.
    """
    key = jax.random.key(seed)
    for name in path:
        key = jax.random.fold_in(key, _number(name))
    return key


def named_generator(seed: int, *path: str | int) -> np.random.Generator:
    """The numpy generator of a stream, for draws on the host; arguments as in `named_key`."""
    return np.random.default_rng([int(seed), *(_number(name) for name in path)])
