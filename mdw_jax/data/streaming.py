"""Computing over rows that stay on the host (`LazyImages`, `stored_rows`), on one device or many.

Images are decoded, and rows of files read, in the background while the devices work on those before. With several
devices the rows of one step are spread over all of them, and each process decodes only those of its own devices.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.prefetch import LoaderStats, batches
from mdw_jax.data.stored_rows import stays_on_host
from mdw_jax.errors import UserError
from mdw_jax.runtime.mesh import DATA, REPLICA, jitted, mesh_for, shard, to_host, vmapped_jit
from mdw_jax.runtime.processes import raise_if_any_failed
from mdw_jax.runtime.pytree import stack, unstack

STEPS_PER_TRANSFER = 8  # steps of an epoch whose pixels are on the devices at the same time
_TRANSFER_BYTES, _MOST_STEPS = 2**26, 64  # at most, of steps that take other rows than pixels


def map_batches(function: Callable, rows, size: int = 500, start: int = 0) -> Iterator[Any]:
    """Yield `function` of the rows from `start` on, `size` at a time.

    Args:
        function: jitted, or it calls jitted functions. Its result is a pytree of arrays with one row per row of the
            batch. With several devices and streamed rows, arrays that it closes over are best `replicated`.
        rows: an array, or rows that stay on the host.
        size: rows in a batch; the last batch may be shorter.
        start: the first row.
    """
    slices = [np.arange(i, min(i + size, len(rows))) for i in range(start, len(rows), size)]
    if not stays_on_host(rows):
        yield from (function(rows[part[0] : part[-1] + 1]) for part in slices)
    elif len(jax.devices()) == 1:
        yield from map(function, batches(rows, slices))
    else:
        mesh = mesh_for(1)
        # Every device needs as many rows: the last row is repeated in place of missing ones.
        padded = [np.pad(part, (0, -len(part) % mesh.size), "edge") for part in slices]
        sharded = _ShardedRows(rows, mesh, PartitionSpec(DATA))
        for part, batch in zip(slices, sharded.batches(padded), strict=True):
            with jax.set_mesh(mesh):
                result = to_host(function(batch))
            yield jax.tree.map(lambda x, n=len(part): x[:n], result)


def concat_map(function: Callable, rows, size: int = 500, start: int = 0) -> jax.Array:
    """The results of `map_batches`, concatenated."""
    return jnp.concatenate(list(map_batches(function, rows, size, start)))


def streamed_epochs(epoch: Callable, networks: list, images, texts, common_teacher, *, unrelated: bool = False
                    ) -> tuple[list, list[LoaderStats]]:
    """One epoch of several networks on rows that stay on the host, a few steps at a time, each with those it needs.

    The steps and the pairs are the same as from memory; how far ahead images are decoded changes the time alone. One
    device trains network after network. Several devices train all networks together, and the statistics count the pairs
    of all. What the devices hold does not grow with what stays on the host (`stored_rows.stays_on_host`): of images,
    texts and teachers each, that may be all, some or none.

    Args:
        epoch: `method.expert_step.ExpertSteps.epoch`.
        networks: `method.expert_step.EpochInputs` of each network.
        images: all training images.
        texts: all training texts.
        common_teacher: as `epoch` takes it.
        unrelated: whether the steps use `EpochBatches.unrelated`.

    Returns:
        What `epoch` returns for each network, and the loader's statistics for each.

    Raises:
        UserError: in all processes, where one of them cannot read its images.
    """
    wanted = _Wanted(images, texts, common_teacher, unrelated)
    if len(jax.devices()) == 1:
        stats = [LoaderStats() for _ in networks]
        return [_streamed_epoch(epoch, network, wanted, own_stats)
                for network, own_stats in zip(networks, stats, strict=True)], stats
    shared_stats = LoaderStats()
    return _streamed_epochs_on_mesh(epoch, networks, wanted, shared_stats), [shared_stats] * len(networks)


class _Wanted(NamedTuple):
    """What the steps of an epoch take rows of; see `streamed_epochs`."""

    images: Any
    texts: Any
    teacher: Any
    unrelated: bool

    def on_host(self, own_teacher) -> dict[str, tuple]:
        """{field of `EpochBatches`: (the array on the host, field of its rows)}; of a teacher two, as a tuple."""
        teacher = own_teacher or self.teacher
        found: dict[str, tuple] = {"pixels": (self.images, "images")} if stays_on_host(self.images) else {}
        if stays_on_host(self.texts):
            found["texts"] = (self.texts, "captions")
            if self.unrelated:
                found["unrelated_texts"] = (self.texts, "unrelated")
        if teacher is not None and stays_on_host(teacher[0]):
            found["teacher_images"], found["teacher_texts"] = (teacher[0], "images"), (teacher[1], "captions")
        return found

    def on_devices(self) -> tuple:
        """Images, texts and the common teacher as arguments of `epoch`: None where they stay on the host."""
        teacher = None if self.teacher is None or stays_on_host(self.teacher[0]) else self.teacher
        return (*(None if stays_on_host(rows) else rows for rows in (self.images, self.texts)), teacher)

    def steps_at_a_time(self, batch: int, own_teacher) -> int:
        """Steps whose rows are on the devices at the same time."""
        if isinstance(self.images, LazyImages):
            return STEPS_PER_TRANSFER
        size = sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array, _ in self.on_host(own_teacher).values())
        return min(max(_TRANSFER_BYTES // max(batch * size, 1), 1), _MOST_STEPS)


class _Steps:
    """`batches` asks for the rows of these steps; `size` is what it counts, pairs."""

    def __init__(self, part):
        self.part, self.size = part, part.images.size


class _HostRows:
    """The rows that steps take from arrays on the host, {field of `EpochBatches`: rows}: `[_Steps]`."""

    def __init__(self, arrays: dict[str, tuple]):
        self._arrays = arrays

    def __getitem__(self, steps: _Steps) -> dict[str, np.ndarray]:
        return {name: array[getattr(steps.part, rows)] for name, (array, rows) in self._arrays.items()}


def _parts(all_batches, axis: int, steps: int) -> list[_Steps]:
    """The batches of an epoch, so many steps each; steps lie on this axis."""
    count = all_batches.images.shape[axis]
    cut = lambda x, start: x[(slice(None),) * axis + (slice(start, start + steps),)]
    return [_Steps(jax.tree.map(functools.partial(cut, start=start), all_batches)) for start in range(0, count, steps)]


def _streamed_epoch(epoch, network, wanted: _Wanted, stats: LoaderStats):
    """One network on one device."""
    all_batches = jax.tree.map(np.asarray, network.batches)
    arrays = wanted.on_host(network.teacher)
    parts = _parts(all_batches, 0, wanted.steps_at_a_time(all_batches.images.shape[1], network.teacher))
    teacher = None if "teacher_images" in arrays else network.teacher
    run = jitted(epoch)
    state, losses, correct, done = network.state, [], [], 0
    for steps, rows in zip(parts, batches(_HostRows(arrays), parts, stats=stats), strict=True):
        end = done + len(steps.part.images)
        inputs = network._replace(state=state, batches=steps.part._replace(**rows), keys=network.keys[done:end],
                                  teacher=teacher)
        state, part_losses, part_correct = run(inputs, *wanted.on_devices())
        losses.append(np.asarray(part_losses))  # waits for the device: its time is not the loader's
        correct.append(np.asarray(part_correct))
        done = end
    return state, np.concatenate(losses), np.concatenate(correct)


def _streamed_epochs_on_mesh(epoch, networks: list, wanted: _Wanted, stats: LoaderStats) -> list[tuple]:
    """All networks together, spread over all devices."""
    mesh = mesh_for(len(networks))
    teachers = [network.teacher for network in networks]
    stored = teachers[0] is not None and stays_on_host(teachers[0][0])
    stacked = stack([network._replace(teacher=None) for network in networks] if stored else networks)
    all_batches = jax.tree.map(np.asarray, stacked.batches)
    state, teacher = (shard(mesh, PartitionSpec(REPLICA), tree) for tree in (stacked.state, stacked.teacher))
    shared = shard(mesh, PartitionSpec(), wanted.on_devices())
    parts = _parts(all_batches, 1, wanted.steps_at_a_time(len(networks) * all_batches.images.shape[2], teachers[0]))
    divides = all_batches.images.shape[2] % mesh.shape[DATA] == 0  # else all on each device, as in `mesh.shard_rows`
    spec = PartitionSpec(REPLICA, None, DATA if divides else None)
    arrays = [wanted.on_host(own) for own in teachers]
    own = ("teacher_images", "teacher_texts") if stored else ()
    sharded = _ShardedSteps({name: ([one[name][0] for one in arrays] if name in own else array, rows)
                             for name, (array, rows) in arrays[0].items()}, mesh, spec)
    run = vmapped_jit(epoch, 3)
    losses, correct, done = [], [], 0
    for steps, rows in zip(parts, sharded.batches(parts, stats), strict=True):
        end = done + steps.part.images.shape[1]
        part, keys = (shard(mesh, PartitionSpec(REPLICA), tree) for tree in (steps.part, stacked.keys[:, done:end]))
        inputs = stacked._replace(state=state, batches=part._replace(**rows), keys=keys, teacher=teacher)
        with jax.set_mesh(mesh):
            state, part_losses, part_correct = run(inputs, *shared)
        losses.append(np.asarray(to_host(part_losses)))
        correct.append(np.asarray(to_host(part_correct)))
        done = end
    states = unstack(to_host(state), len(networks))
    return list(zip(states, np.concatenate(losses, 1), np.concatenate(correct, 1), strict=True))


class _ShardedRows:
    """Rows on the host spread over a mesh: `[rows]`, row numbers of any shape, is a global array of these rows.

    Only the process that asked for an image learns that it cannot be read, and the others would wait forever for the
    pixels it has to send. `batches` therefore compares notes between all processes before each batch.

    Args:
        array: `LazyImages` or another array that stays on the host; a list: one for each entry of the first axis of
            `rows`.
        mesh: the devices.
        spec: how the axes of `rows` lie on the mesh.
    """

    def __init__(self, array, mesh, spec: PartitionSpec):
        self._array, self._sharding, self.error = array, NamedSharding(mesh, spec), None
        one = array[0] if isinstance(array, list) else array
        self._row_shape, self._dtype = one.shape[1:], one.dtype

    def batches(self, index_batches, stats: LoaderStats | None = None) -> Iterator[jax.Array]:
        """`prefetch.batches` of these rows. Raises UserError in all processes if any could not read an image."""
        return _checked_batches(self, index_batches, stats)

    def __getitem__(self, rows):
        @functools.cache  # for devices that hold the same rows
        def read(*bounds):
            part = tuple(slice(*bound) for bound in bounds)
            own_rows = rows[part]
            try:
                if isinstance(self._array, list):
                    return np.stack([one[own] for one, own in zip(self._array[part[0]], own_rows, strict=True)])
                return self._array[own_rows]
            except UserError as error:
                self.error = error
                return np.zeros((*own_rows.shape, *self._row_shape), self._dtype)

        def of_device(index):
            return read(*((part.start, part.stop) for part in index[: rows.ndim]))

        return jax.make_array_from_callback((*rows.shape, *self._row_shape), self._sharding, of_device)


class _ShardedSteps:
    """`_HostRows` of several networks, spread over a mesh: `[_Steps]` is {field: global array}.

    Args:
        arrays: {field: (the array of all networks, or a list of theirs; field of its rows)}.
        mesh, spec: as in `_ShardedRows`.
    """

    def __init__(self, arrays: dict[str, tuple], mesh, spec: PartitionSpec):
        self._fields = {name: (_ShardedRows(array, mesh, spec), rows) for name, (array, rows) in arrays.items()}

    @property
    def error(self) -> UserError | None:
        return next((sharded.error for sharded, _ in self._fields.values() if sharded.error), None)

    def batches(self, index_batches, stats: LoaderStats | None = None) -> Iterator[dict]:
        """As `_ShardedRows.batches`."""
        return _checked_batches(self, index_batches, stats)

    def __getitem__(self, steps: _Steps) -> dict[str, jax.Array]:
        return {name: sharded[getattr(steps.part, rows)] for name, (sharded, rows) in self._fields.items()}


def _checked_batches(source, index_batches, stats: LoaderStats | None) -> Iterator[Any]:
    for batch in batches(source, index_batches, to_device=lambda batch: batch, stats=stats):
        raise_if_any_failed(source.error)
        yield batch
