"""Computing over images that do not fit into memory (`LazyImages`), on one device or many.

Images are decoded in the background while the devices work on those before. With several devices the images of one step
are spread over all of them, and each process decodes only the rows of its own devices.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

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

STEPS_PER_TRANSFER = 8  # steps of an epoch whose pixels are on the devices at the same time


def map_batches(function: Callable, rows, size: int = 500, start: int = 0) -> Iterator[Any]:
    """Yield `function` of the rows from `start` on, `size` at a time.

    Args:
        function: jitted, or it calls jitted functions. Its result is a pytree of arrays with one row per row of the
            batch. With several devices and streamed rows, arrays that it closes over are best `replicated`.
        rows: an array or `LazyImages`.
        size: rows in a batch; the last batch may be shorter.
        start: the first row.
    """
    slices = [np.arange(i, min(i + size, len(rows))) for i in range(start, len(rows), size)]
    if not isinstance(rows, LazyImages):
        yield from (function(rows[part[0] : part[-1] + 1]) for part in slices)
    elif len(jax.devices()) == 1:
        yield from map(function, batches(rows, slices))
    else:
        mesh = mesh_for(1)
        # Every device needs as many rows: the last row is repeated in place of missing ones.
        padded = [np.pad(part, (0, -len(part) % mesh.size), "edge") for part in slices]
        sharded = _ShardedImages(rows, mesh, PartitionSpec(DATA))
        for part, pixels in zip(slices, sharded.batches(padded), strict=True):
            with jax.set_mesh(mesh):
                result = to_host(function(pixels))
            yield jax.tree.map(lambda x, n=len(part): x[:n], result)


def concat_map(function: Callable, rows, size: int = 500, start: int = 0) -> jax.Array:
    """The results of `map_batches`, concatenated."""
    return jnp.concatenate(list(map_batches(function, rows, size, start)))


def streamed_epochs(epoch: Callable, networks: list, images: LazyImages, texts,
                    common_teacher) -> tuple[list, list[LoaderStats]]:
    """One epoch of several networks on streamed images, a few steps at a time, each with the pixels that it needs.

    The steps and the pairs are the same as from memory; how far ahead images are decoded changes the time alone. One
    device trains network after network. Several devices train all networks together, and the statistics count the pairs
    of all.

    Args:
        epoch: `method.expert_step.ExpertSteps.epoch`.
        networks: `method.expert_step.EpochInputs` of each network.
        images: all training images.
        texts: all training texts.
        common_teacher: as `epoch` takes it.

    Returns:
        What `epoch` returns for each network, and the loader's statistics for each.

    Raises:
        UserError: in all processes, where one of them cannot read its images.
    """
    if len(jax.devices()) == 1:
        stats = [LoaderStats() for _ in networks]
        return [_streamed_epoch(epoch, network, images, texts, common_teacher, own_stats)
                for network, own_stats in zip(networks, stats, strict=True)], stats
    shared_stats = LoaderStats()
    results = _streamed_epochs_on_mesh(epoch, networks, images, texts, common_teacher, shared_stats)
    return results, [shared_stats] * len(networks)


def _streamed_epoch(epoch, network, images: LazyImages, texts, common_teacher, stats: LoaderStats):
    """One network on one device."""
    rows = np.asarray(network.batches.images)
    transfers = [slice(i, i + STEPS_PER_TRANSFER) for i in range(0, len(rows), STEPS_PER_TRANSFER)]
    run = jitted(epoch)
    state, losses, correct = network.state, [], []
    for steps, pixels in zip(transfers, batches(images, (rows[part] for part in transfers), stats=stats), strict=True):
        part = jax.tree.map(lambda x: x[steps], network.batches)._replace(pixels=pixels)
        inputs = network._replace(state=state, batches=part, keys=network.keys[steps])
        state, part_losses, part_correct = run(inputs, None, texts, common_teacher)
        losses.append(np.asarray(part_losses))  # waits for the device: its time is not the loader's
        correct.append(np.asarray(part_correct))
    return state, np.concatenate(losses), np.concatenate(correct)


def _streamed_epochs_on_mesh(epoch, networks: list, images: LazyImages, texts, common_teacher,
                             stats: LoaderStats) -> list[tuple]:
    """All networks together, spread over all devices."""
    mesh = mesh_for(len(networks))
    stacked = stack(networks)
    all_batches = jax.tree.map(np.asarray, stacked.batches)
    state, teacher = (shard(mesh, PartitionSpec(REPLICA), tree) for tree in (stacked.state, stacked.teacher))
    texts, common_teacher = (shard(mesh, PartitionSpec(), tree) for tree in (texts, common_teacher))
    rows = all_batches.images  # (networks, steps, B)
    transfers = [slice(i, i + STEPS_PER_TRANSFER) for i in range(0, rows.shape[1], STEPS_PER_TRANSFER)]
    divides = rows.shape[2] % mesh.shape[DATA] == 0  # else each device has the whole batch, as in `mesh.shard_rows`
    sharded = _ShardedImages(images, mesh, PartitionSpec(REPLICA, None, DATA if divides else None))
    run = vmapped_jit(epoch, 3)
    losses, correct = [], []
    for steps, pixels in zip(transfers, sharded.batches((rows[:, part] for part in transfers), stats), strict=True):
        part, keys = (shard(mesh, PartitionSpec(REPLICA), tree) for tree in (
            jax.tree.map(lambda x: x[:, steps], all_batches), stacked.keys[:, steps]))
        inputs = stacked._replace(state=state, batches=part._replace(pixels=pixels), keys=keys, teacher=teacher)
        with jax.set_mesh(mesh):
            state, part_losses, part_correct = run(inputs, None, texts, common_teacher)
        losses.append(np.asarray(to_host(part_losses)))
        correct.append(np.asarray(to_host(part_correct)))
    states = unstack(to_host(state), len(networks))
    return list(zip(states, np.concatenate(losses, 1), np.concatenate(correct, 1), strict=True))


class _ShardedImages:
    """`LazyImages` spread over a mesh: `[rows]`, rows of any shape, is a global array of the pixels of those rows.

    Only the process that asked for an image learns that it cannot be read, and the others would wait forever for the
    pixels it has to send. `batches` therefore compares notes between all processes before each batch.

    Args:
        images: all images.
        mesh: the devices.
        spec: how the axes of `rows` lie on the mesh.
    """

    def __init__(self, images: LazyImages, mesh, spec: PartitionSpec):
        self._images, self._sharding, self._error = images, NamedSharding(mesh, spec), None

    def batches(self, index_batches, stats: LoaderStats | None = None) -> Iterator[jax.Array]:
        """`prefetch.batches` of these images. Raises UserError in all processes if any could not read an image."""
        for pixels in batches(self, index_batches, to_device=lambda pixels: pixels, stats=stats):
            raise_if_any_failed(self._error)
            yield pixels

    def __getitem__(self, rows):
        @functools.cache  # for devices that hold the same rows
        def decode(*bounds):
            own_rows = rows[tuple(slice(*bound) for bound in bounds)]
            try:
                return self._images[own_rows]
            except UserError as error:
                self._error = error
                return np.zeros((*own_rows.shape, *self._images.shape[1:]), np.uint8)

        def pixels(index):
            return decode(*((part.start, part.stop) for part in index[: rows.ndim]))

        return jax.make_array_from_callback((*rows.shape, *self._images.shape[1:]), self._sharding, pixels)
