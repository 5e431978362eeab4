"""Pictures that do not fit into memory (`LazyImages`), on one device or many.

They are decoded in the background while the devices work on those before. With several devices, what one step needs
lies across all of them, and each process decodes the rows of its own devices and no others.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.prefetch import LoaderStats, batches
from mdw_jax.errors import UserError
from mdw_jax.runtime.mesh import DATA, REPLICA, jitted, mesh_for, shard, to_host, vmapped_jit
from mdw_jax.runtime.processes import raise_if_any_failed
from mdw_jax.runtime.pytree import stack, unstack

STEPS_PER_TRANSFER = 8  # steps of an epoch whose pixels are on the devices together


def map_batches(function, rows, size: int = 500, start: int = 0):
    """Yield `function` of the rows from `start` on, `size` at a time.

    function: jitted, or a few of them; its result is a pytree of arrays with a row for each of those that came. With
    several devices and streamed rows, what else it takes is best `replicated`.
    """
    slices = [np.arange(i, min(i + size, len(rows))) for i in range(start, len(rows), size)]
    if not isinstance(rows, LazyImages):
        yield from (function(rows[part[0] : part[-1] + 1]) for part in slices)
    elif len(jax.devices()) == 1:
        yield from map(function, batches(rows, slices))
    else:
        mesh = mesh_for(1)
        # Every device needs as many rows: the last one stands in for those that are missing.
        full = [np.pad(part, (0, -len(part) % mesh.size), "edge") for part in slices]
        spread = _Spread(rows, mesh, PartitionSpec(DATA))
        for part, pixels in zip(slices, batches(spread, full, to_device=_there), strict=True):
            spread.check()
            with jax.set_mesh(mesh):
                found = to_host(function(pixels))
            yield jax.tree.map(lambda x, n=len(part): x[:n], found)


def concat_map(function, rows, size: int = 500, start: int = 0):
    """What `map_batches` yields, put together."""
    return jnp.concatenate(list(map_batches(function, rows, size, start)))


def streamed_epochs(epoch, networks: list, images: LazyImages, texts, common_teacher) -> tuple[list, list[LoaderStats]]:
    """`epoch` of each network, as `experts.make_expert_steps` has it, in slabs of a few steps, each with the pixels that it needs.

    networks: (carry, plan, keys, own teacher) each. The same steps on the same pairs as from memory: what is decoded
    ahead is a matter of time alone, which the meters measure. One device takes network after network; several take all
    of them together, and the one meter counts the pairs of all. Returns (what `epoch` returns, of each; the meter of
    each). Raises UserError in all processes where one of them cannot read its pictures.
    """
    if len(jax.devices()) == 1:
        meters = [LoaderStats() for _ in networks]
        return [_alone(epoch, one, images, texts, common_teacher, meter)
                for one, meter in zip(networks, meters, strict=True)], meters
    meter = LoaderStats()
    return _together(epoch, networks, images, texts, common_teacher, meter), [meter] * len(networks)


def _alone(epoch, one, images, texts, common_teacher, meter: LoaderStats):
    carry, plan, keys, own_teacher = one
    wanted = np.asarray(plan.images)
    starts = range(0, len(wanted), STEPS_PER_TRANSFER)
    run = jitted(epoch)
    losses, right = [], []
    for start, pixels in zip(starts, batches(images, (wanted[i : i + STEPS_PER_TRANSFER] for i in starts), meter=meter), strict=True):
        part = jax.tree.map(lambda x: x[start : start + STEPS_PER_TRANSFER], plan)._replace(pixels=pixels)
        carry, loss, found = run((carry, part, keys[start : start + STEPS_PER_TRANSFER], own_teacher), None, texts, common_teacher)
        losses.append(np.asarray(loss))  # waits for the device, so that the meter tells whose time it is
        right.append(np.asarray(found))
    return carry, np.concatenate(losses), np.concatenate(right)


def _together(epoch, networks, images, texts, common_teacher, meter: LoaderStats):
    mesh = mesh_for(len(networks))
    carry, plan, keys, own_teacher = stack(networks)
    plan = jax.tree.map(np.asarray, plan)
    carry, own_teacher = (shard(mesh, PartitionSpec(REPLICA), tree) for tree in (carry, own_teacher))
    texts, common_teacher = (shard(mesh, PartitionSpec(), tree) for tree in (texts, common_teacher))
    wanted = plan.images
    starts = range(0, wanted.shape[1], STEPS_PER_TRANSFER)
    shared = wanted.shape[2] % mesh.shape[DATA] == 0  # or each device has the whole batch, as `mesh.shard_rows` has it
    spread = _Spread(images, mesh, PartitionSpec(REPLICA, None, DATA if shared else None))
    run = vmapped_jit(epoch, 3)
    losses, right = [], []
    slabs = batches(spread, (wanted[:, i : i + STEPS_PER_TRANSFER] for i in starts), to_device=_there, meter=meter)
    for start, pixels in zip(starts, slabs, strict=True):
        spread.check()
        part = jax.tree.map(lambda x: x[:, start : start + STEPS_PER_TRANSFER], plan)
        part, now = (shard(mesh, PartitionSpec(REPLICA), tree) for tree in (part, keys[:, start : start + STEPS_PER_TRANSFER]))
        with jax.set_mesh(mesh):
            carry, loss, found = run((carry, part._replace(pixels=pixels), now, own_teacher), None, texts,
                                     common_teacher)
        losses.append(np.asarray(to_host(loss)))
        right.append(np.asarray(to_host(found)))
    losses, right = np.concatenate(losses, 1), np.concatenate(right, 1)
    return list(zip(unstack(to_host(carry), len(networks)), losses, right, strict=True))


def _there(array):
    """What `_Spread` gives is on the devices already."""
    return array


class _Spread:
    """`LazyImages` whose `[rows]` are laid over a mesh: rows of any shape -> a global array of that shape's pixels.

    A picture that cannot be read is known to the process alone that wanted it, and the others would wait for ever for
    what it has to send: `check` is where all of them stop.
    """

    def __init__(self, images: LazyImages, mesh, spec: PartitionSpec):
        self._images, self._sharding, self._error = images, NamedSharding(mesh, spec), None

    def check(self) -> None:
        """Raises UserError in all processes if a picture that was asked for could not be read in any of them."""
        raise_if_any_failed(self._error)

    def __getitem__(self, rows):
        @functools.cache  # for devices that hold the same rows
        def decoded(*places):
            mine = rows[tuple(slice(*place) for place in places)]
            try:
                return self._images[mine]
            except UserError as error:
                self._error = error
                return np.zeros((*mine.shape, *self._images.shape[1:]), np.uint8)

        def pixels(index):
            return decoded(*((part.start, part.stop) for part in index[: rows.ndim]))

        return jax.make_array_from_callback((*rows.shape, *self._images.shape[1:]), self._sharding, pixels)
