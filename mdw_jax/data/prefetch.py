"""Batches of images for the device, decoded while it works on the ones before.

Plain threads are enough: Pillow and zlib release the interpreter lock, so decoding needs no processes, and `LazyImages`
decodes the rows of one batch in parallel. The caller decides the order, and the whole state is the number of batches
taken, so there is nothing to checkpoint: a run resumes by passing the index batches that remain. Grain was measured beside
it (docs/data.md): its processes decode no faster, and its iterator's state would have to be kept in step with this
program's.
"""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.runtime.freed_memory import give_back


@dataclasses.dataclass
class LoaderStats:
    """What `batches` measures, in seconds from the first request on.

    A consumer that only dispatches work and never waits for its results waits here instead: the device may be busy.

    Attributes:
        pairs: rows handed over.
        elapsed: until the latest request was answered, the consumer's own work included.
        waited: the part of `elapsed` that the consumer waited for batches.
    """

    pairs: int = 0
    elapsed: float = 0.0
    waited: float = 0.0

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / self.elapsed if self.elapsed else 0.0

    @property
    def wait_fraction(self) -> float:
        """The fraction of the time that the consumer waited, in [0, 1]."""
        return self.waited / self.elapsed if self.elapsed else 0.0


def batches(images, index_batches: Iterable[Any], *, prefetch: int = 2,
            to_device: Callable[[np.ndarray], Any] = jax.device_put, stats: LoaderStats | None = None) -> Iterator[Any]:
    """Yield `to_device(images[rows])` for each `rows` of `index_batches`, in that order.

    The thread behind it starts with the first batch. It ends with the last one, with an error (which is raised where
    its batch would have come), or when the iterator is closed or dropped.

    Args:
        images: an array or `LazyImages`.
        index_batches: arrays of rows, or what `images` takes in their place and has a `size`; may be endless.
        prefetch: at most this many batches are decoded, or being decoded, ahead of the consumer.
        to_device: moves uint8 pixels (B, H, W, C) to where they are used; it also runs in the background.
        stats: updated while batches are taken.

    Raises:
        UserError: prefetch is under 1.
    """
    if prefetch < 1:
        raise UserError(f"prefetch must be at least 1 batch, not {prefetch}.")
    return _batches(images, index_batches, prefetch, to_device, stats or LoaderStats())


def _batches(images, index_batches, prefetch, to_device, stats):
    ready, room, closed = queue.SimpleQueue(), threading.Semaphore(prefetch), threading.Event()
    end = object()

    def work():
        try:
            for rows in index_batches:
                room.acquire()
                if closed.is_set():
                    return
                ready.put((rows.size, to_device(images[rows]), None))
            ready.put((0, end, None))
        except BaseException as error:  # of any kind: the consumer must not wait forever
            ready.put((0, end, error))

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    start = time.perf_counter()
    try:
        while True:
            asked = time.perf_counter()
            count, batch, error = ready.get()
            now = time.perf_counter()
            stats.pairs += count
            stats.waited += now - asked
            stats.elapsed = now - start
            if error is not None:
                raise error
            if batch is end:
                return
            room.release()
            yield batch
    finally:
        closed.set()
        room.release()
        thread.join()
        give_back()
