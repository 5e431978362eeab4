"""Batches of pictures for the device, decoded while it works on the ones before.

Plain threads do it: Pillow and zlib let go of the interpreter lock, so decoding needs no processes, and `LazyImages`
decodes the rows of one batch in parallel. The order is the caller's and the whole state is how many batches were taken,
so there is nothing here to checkpoint: a run resumes by passing the index batches that are left. Grain would bring its
own samplers, workers and iterator state to keep in step with ours, for the same rows at the same speed.
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


@dataclasses.dataclass
class LoaderStats:
    """What `batches` measures, in seconds from the first request on.

    pairs: rows handed over. elapsed: until the latest request ended, the consumer's own work included. waited: of that,
    in `batches`.
    A consumer that only dispatches work and never waits for its results waits here instead: the device may be busy.
    """

    pairs: int = 0
    elapsed: float = 0.0
    waited: float = 0.0

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / self.elapsed if self.elapsed else 0.0

    @property
    def waiting(self) -> float:
        """The fraction of the time that the consumer waited, in [0, 1]."""
        return self.waited / self.elapsed if self.elapsed else 0.0


def batches(images, index_batches: Iterable[np.ndarray], *, prefetch: int = 2,
            to_device: Callable[[np.ndarray], Any] = jax.device_put, meter: LoaderStats | None = None) -> Iterator[Any]:
    """Yield `to_device(images[rows])` for each `rows` of `index_batches`, in that order.

    images: an array or `LazyImages`. index_batches: arrays of rows; may be endless.
    prefetch: at most this many batches are decoded, or being decoded, that were not asked for yet.
    to_device: puts uint8 pixels (B, H, W, C) where they are used; it runs in the background too.
    meter: filled while batches are taken.

    The thread behind it starts with the first batch and ends with the last, with an error, which is raised where its
    batch would have come, or when the iterator is closed or dropped. Raises UserError for a prefetch under 1.
    """
    if prefetch < 1:
        raise UserError(f"prefetch must be at least 1 batch, not {prefetch}.")
    return _batches(images, index_batches, prefetch, to_device, meter or LoaderStats())


def _batches(images, index_batches, prefetch, to_device, meter):
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
        except BaseException as error:  # whatever it is, the consumer must not wait for ever
            ready.put((0, end, error))

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    began = time.perf_counter()
    try:
        while True:
            asked = time.perf_counter()
            count, batch, error = ready.get()
            now = time.perf_counter()
            meter.pairs += count
            meter.waited += now - asked
            meter.elapsed = now - began
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
