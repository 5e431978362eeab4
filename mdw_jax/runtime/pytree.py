"""Pytrees stacked, taken apart, and put back from arrays by name."""

import jax
import jax.numpy as jnp
import numpy as np


def stack(trees):
    """A list of pytrees -> one pytree with a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree, count: int):
    """The inverse of `stack`."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


def _named(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def restore(arrays: dict[str, np.ndarray], like):
    """Arrays by name in the structure of `like`: on the device, and as they are where `like` has numpy arrays.

    Raises ValueError if they are others, or of other shapes.
    """
    wanted = _named(like)
    if {n: np.shape(x) for n, x in wanted.items()} != {n: x.shape for n, x in arrays.items()}:
        raise ValueError("other tensors than were asked for.")
    leaves = [arrays[name] if isinstance(leaf, np.ndarray) else jnp.asarray(arrays[name])
              for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
