"""Devices: one mesh with two named axes, and where arrays lie on it.

Axis `each` (`REPLICA`): independent things of one kind (networks, trajectories, students) lie next to each other on it.
Axis `data` (`DATA`): the remaining devices share the rows of each batch. Both come from `jit` over `NamedSharding`; XLA
inserts the collectives. On one device, none of this changes anything.

With several processes (`jax.distributed`), all run the same program. Host arrays and decisions of the host are the same
in all of them; only what goes through `map_replicas` or `replicated` lies on the devices of all.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mdw_jax.runtime.processes import several_processes
from mdw_jax.runtime.pytree import stack, unstack

REPLICA, DATA = "each", "data"  # names of the mesh axes


def mesh_for(count: int) -> Mesh:
    """All devices as a mesh (REPLICA, DATA) for `count` replicas.

    The replica axis has the greatest common divisor of `count` and the number of devices.
    """
    devices = np.array(jax.devices())
    replicas = math.gcd(count, len(devices))
    return Mesh(devices.reshape(replicas, -1), (REPLICA, DATA))


def map_replicas(function: Callable, trees: list, *shared) -> list:
    """[function(tree, *shared) for tree in trees], compiled as one program and spread over all devices.

    Args:
        function: (pytree, *shared) -> pytree. It must be the same object in every call, or it is compiled again.
        trees: pytrees of one structure.
        *shared: pytrees; large ones should be put on all devices beforehand (`replicated`), or every call sends them.

    Returns:
        A pytree for each of `trees`; with several processes, of numpy arrays.
    """
    run = vmapped_jit(function, len(shared))
    if len(jax.devices()) == 1:
        return unstack(run(stack(trees), *shared), len(trees))
    mesh = mesh_for(len(trees))
    with jax.set_mesh(mesh):
        results = run(shard(mesh, PartitionSpec(REPLICA), stack(trees)), *shared)
    return unstack(to_host(results), len(trees))


jitted = functools.lru_cache(maxsize=64)(jax.jit)  # one jitted function for each function: nothing is traced twice


@functools.lru_cache(maxsize=64)
def vmapped_jit(function: Callable, shared: int) -> Callable:
    """`function` jitted and mapped over the leading axis of its first argument, which lies on the replica axis.

    Args:
        function: (pytree, *shared) -> pytree.
        shared: the number of arguments that are not mapped.
    """
    name = REPLICA if len(jax.devices()) > 1 else None
    return jax.jit(jax.vmap(function, in_axes=(0, *[None] * shared), spmd_axis_name=name))


def devices_along(axes: str | tuple[str, ...]) -> int:
    """Inside `jit`: how many devices lie along mesh axes; 1 without a mesh."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(sizes.get(name, 1) for name in ((axes,) if isinstance(axes, str) else axes))


def shard_rows(x: jax.Array, axes: str | tuple[str, ...] = DATA) -> jax.Array:
    """Inside `jit`: lay the rows of `x` (n, ...) over mesh axes; as it is if their size does not divide n."""
    parts = devices_along(axes)
    return x if parts == 1 or len(x) % parts else jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def shard(mesh: Mesh, spec: PartitionSpec, tree) -> Any:
    """Lay a pytree over a mesh.

    Args:
        mesh: the mesh.
        spec: the partition of every leaf.
        tree: arrays that are the same in all processes, or `jax.ShapeDtypeStruct`s, which get the sharding.
    """
    sharding = NamedSharding(mesh, spec)
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree)):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
    if not several_processes():
        return jax.device_put(tree, sharding)

    def place(x):
        if not x.is_fully_addressable:
            return x  # it is on the mesh already
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x)))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(lambda x: place(x if isinstance(x, jax.Array) else jnp.asarray(x)), tree)


def replicated(tree) -> Any:
    """A pytree on every device; with one device, as it is."""
    return tree if len(jax.devices()) == 1 else shard(mesh_for(1), PartitionSpec(), tree)


def to_host(tree) -> Any:
    """Results of a computation over all processes, complete in each of them: numpy arrays if there are several."""

    def fetch(x):
        if x.is_fully_addressable:
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(fetch(jax.random.key_data(x))))
        return np.asarray(x if x.is_fully_replicated else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)
