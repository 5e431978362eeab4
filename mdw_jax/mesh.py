"""Devices: one mesh, one rule for the leading axis of things that are many and independent."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def spread(tree):
    """Lay the leading axis of every leaf over all devices where it divides among them; elsewhere leave `tree` as it is.

    Experts and students are independent, so under `jit` each device then trains its own.
    """
    devices = jax.devices()
    leading = {leaf.shape[0] for leaf in jax.tree.leaves(tree)}
    if len(devices) == 1 or len(leading) != 1 or leading.pop() % len(devices):
        return tree
    return jax.device_put(tree, NamedSharding(Mesh(np.array(devices), ("each",)), PartitionSpec("each")))


def stack(trees):
    """A list of pytrees -> one pytree with a new leading axis."""
    return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *trees)


def unstack(tree, count: int):
    """The inverse of `stack`."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]
