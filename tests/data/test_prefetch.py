"""The loader is run against slow images, failing images, and consumers that walk away."""

import gc
import itertools
import threading
import time

import jax
import numpy as np
import pytest

from mdw_jax.data.prefetch import LoaderStats, batches
from mdw_jax.errors import UserError


class Slow:
    """Images whose row r is all r; remembers what was asked and fails where told."""

    def __init__(self, seconds=0.0, broken=None):
        self.seconds, self.broken, self.asked = seconds, broken, []

    def __getitem__(self, rows):
        self.asked.append(list(rows))
        time.sleep(self.seconds)
        if self.broken in rows:
            raise UserError(f"image {self.broken} is broken.")
        return np.broadcast_to(np.asarray(rows, np.uint8)[:, None, None, None], (len(rows), 2, 2, 3))


def _threads():
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_the_callers_order_on_the_device_and_resuming():
    order = np.random.default_rng(0).permutation(60).reshape(10, 6)
    stats = LoaderStats()
    got = list(batches(Slow(), order, stats=stats))
    assert all(isinstance(batch, jax.Array) and batch.dtype == np.uint8 for batch in got)
    np.testing.assert_array_equal(np.stack(got)[..., 0, 0, 0], order)
    np.testing.assert_array_equal(np.stack(list(batches(Slow(), order[4:], prefetch=5))), np.stack(got[4:]))
    assert stats.pairs == 60 and stats.pairs_per_second > 0 and _threads() == 0


def test_decoding_overlaps_with_work():
    measured = LoaderStats(), LoaderStats()
    for stats, work in zip(measured, (0.05, 0.0)):
        for _ in batches(Slow(0.04), np.arange(20).reshape(10, 2), stats=stats):
            time.sleep(work)
    busy, idle = measured
    assert 0.5 < busy.elapsed < 0.8  # 10 * 0.05 and the first decode; one after the other would be 0.9
    assert busy.wait_fraction < 0.3 and idle.wait_fraction > 0.8
    assert idle.waited <= idle.elapsed and LoaderStats().wait_fraction == LoaderStats().pairs_per_second == 0.0


def test_no_more_than_prefetch_ahead():
    images = Slow()
    stream = batches(images, (np.array([i]) for i in itertools.count()), prefetch=3)
    for taken in (1, 2):
        next(stream)
        time.sleep(0.1)
        assert len(images.asked) == taken + 3
    stream.close()
    assert _threads() == 0 and len(images.asked) <= 6


def test_an_error_comes_where_its_batch_would():
    stream = batches(Slow(broken=5), np.arange(8).reshape(4, 2))
    assert [int(next(stream)[0, 0, 0, 0]) for _ in range(2)] == [0, 2]
    with pytest.raises(UserError, match="image 5"):
        next(stream)
    assert _threads() == 0 and next(stream, "over") == "over"


def test_an_error_in_the_order_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(batches(Slow(), (np.array([1 // i]) for i in (1, 0))))


def test_a_dropped_iterator_stops_its_thread():
    stream = batches(Slow(), itertools.repeat(np.arange(2)))
    next(stream)
    assert _threads() == 1
    del stream
    gc.collect()
    assert _threads() == 0


def test_prefetch_is_positive():
    with pytest.raises(UserError, match="prefetch must be at least 1 batch, not 0"):
        batches(Slow(), [], prefetch=0)
