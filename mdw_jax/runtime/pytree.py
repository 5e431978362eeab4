"""Pytrees: stacked, unstacked, and restored from named arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def stack(trees: Sequence) -> Any:
    """Pytrees of one structure -> one pytree whose leaves have a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree, count: int) -> list:
    """The inverse of `stack` for `count` pytrees."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


def named_leaves(tree) -> dict[str, Any]:
    """{name: leaf}, named by `jax.tree_util.keystr` of the leaf's path."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def restore(arrays: Mapping[str, np.ndarray], like) -> Any:
    """Put named arrays into the structure of a pytree.

    Args:
        arrays: {name: array}, named as in `named_leaves`.
        like: a pytree of that structure and those shapes.

    Returns:
        The pytree: jax arrays on the device, and numpy arrays where `like` has numpy arrays.

    Raises:
        ValueError: the names or shapes differ.
    """
    expected = named_leaves(like)
    if {n: np.shape(x) for n, x in expected.items()} != {n: x.shape for n, x in arrays.items()}:
        raise ValueError("the arrays are not those of this pytree.")
    leaves = [arrays[name] if isinstance(leaf, np.ndarray) else jnp.asarray(arrays[name])
              for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
