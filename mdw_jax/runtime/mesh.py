"""Devices and processes: one mesh with two named axes, and where things lie on it.

`each`: what is many and independent (networks, trajectories, students) lies side by side on it; `data`: the devices
that are left over share the rows of each batch. Both come from `jit` over `NamedSharding`; XLA puts the collectives in.
With one device none of this does anything.

With several processes (`jax.distributed`) each runs the same program. Host arrays, and what the host decides, are the
same in all of them; only what goes through `map_replicas` or `replicated` lies on the devices of all. Process 0 alone
writes, and says what is already there (`agree`).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mdw_jax.runtime.processes import several_processes
from mdw_jax.runtime.pytree import stack, unstack

REPLICA, DATA = "each", "data"


def mesh_for(count: int) -> Mesh:
    """All devices as (each, data): as many along `each` as `count` divides among, the others along `data`."""
    devices = np.array(jax.devices())
    each = math.gcd(count, len(devices))
    return Mesh(devices.reshape(each, -1), (REPLICA, DATA))


def map_replicas(function, trees: list, *shared) -> list:
    """[function(tree, *shared) for tree in trees], compiled as one, spread over all devices: pytrees, on the host's.

    `function` must be one object from call to call, or it is compiled again. shared: what is large is put on all
    devices beforehand (`replicated`), or it is sent there at every call.
    """
    run = vmapped_jit(function, len(shared))
    if len(jax.devices()) == 1:
        return unstack(run(stack(trees), *shared), len(trees))
    mesh = mesh_for(len(trees))
    with jax.set_mesh(mesh):
        found = run(shard(mesh, PartitionSpec(REPLICA), stack(trees)), *shared)
    return unstack(to_host(found), len(trees))


jitted = functools.lru_cache(maxsize=64)(jax.jit)  # one a function, so that nothing is traced twice


@functools.lru_cache(maxsize=64)
def vmapped_jit(function, shared: int):
    """The jitted function(trees, *shared) of trees stacked on their leading axis, which lies on the axis `each`."""
    name = REPLICA if len(jax.devices()) > 1 else None
    return jax.jit(jax.vmap(function, in_axes=(0, *[None] * shared), spmd_axis_name=name))


def shard_rows(x, axes=DATA):
    """Inside `jit`: the leading axis of x laid over the mesh's `data` devices (or `axes`), where it divides."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    share = math.prod(sizes.get(name, 1) for name in ((axes,) if isinstance(axes, str) else axes))
    return x if share == 1 or len(x) % share else jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def shard(mesh: Mesh, spec: PartitionSpec, tree):
    """A pytree of host or local arrays, the same in all processes, laid over the mesh; or of their shapes."""
    sharding = NamedSharding(mesh, spec)
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree)):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
    if not several_processes():
        return jax.device_put(tree, sharding)

    def place(x):
        if not x.is_fully_addressable:
            return x  # there already
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x)))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(lambda x: place(x if isinstance(x, jax.Array) else jnp.asarray(x)), tree)


def replicated(tree):
    """The tree on every device; with one device, as it is."""
    return tree if len(jax.devices()) == 1 else shard(mesh_for(1), PartitionSpec(), tree)


def to_host(tree):
    """Results of a computation over all processes, whole in each: numpy arrays where there are several processes."""

    def fetch(x):
        if x.is_fully_addressable:
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(fetch(jax.random.key_data(x))))
        return np.asarray(x if x.is_fully_replicated else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)


