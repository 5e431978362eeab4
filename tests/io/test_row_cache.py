"""Rows that are computed once: in chunks, after a kill from the last chunk on, and never from a damaged file."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mdw_jax.data.stored_rows import stays_on_host
from mdw_jax.io import row_cache
from mdw_jax.io.row_cache import cached_rows

ROWS = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
KILLED = """
import os, signal, sys
import numpy as np
from mdw_jax.io import row_cache
row_cache.CHUNK_SECONDS = 0.0
rows = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
def compute(start):
    for first in range(start, 50, 10):
        if first == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        yield rows[first:first + 10]
row_cache.cached_rows(sys.argv[1], "key", 50, "float32", compute)
"""


def _computed(starts):
    def compute(start):
        starts.append(start)
        yield from (ROWS[first:first + 10] for first in range(start, 50, 10))
    return compute


def test_rows_are_computed_once(tmp_path):
    starts = []
    for _ in range(2):
        np.testing.assert_array_equal(cached_rows(tmp_path / "x", "key", 50, "float32", _computed(starts)), ROWS)
    assert starts == [0]
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), ROWS)
    np.testing.assert_array_equal(cached_rows(None, "key", 50, "float16", _computed(starts)), ROWS.astype(np.float16))
    assert cached_rows(tmp_path / "half", "key", 50, "float16", _computed(starts)).dtype == np.float16
    cached_rows(tmp_path / "x", "other key", 50, "float32", _computed(starts))
    assert starts == [0, 0, 0, 0]


def test_large_arrays_are_mapped_and_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr(row_cache, "IN_MEMORY", 100)
    rows = cached_rows(tmp_path / "x", "key", 50, "float32", _computed([]))
    np.testing.assert_array_equal(rows, ROWS)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0
    assert not stays_on_host(rows)
    monkeypatch.setattr(row_cache, "ON_DEVICES", 100)  # now so large that its rows stay in the file
    rows = cached_rows(tmp_path / "x", "key", 50, "float32", _computed([]))
    np.testing.assert_array_equal(rows, ROWS)
    assert stays_on_host(rows)


def test_after_a_kill_it_goes_on_at_the_last_chunk(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "x"], env=environment)
    assert process.returncode == -signal.SIGKILL
    with open(tmp_path / "x.npy", "ab") as file:
        file.write(b"half a chunk")  # that was written before its mark
    starts = []
    np.testing.assert_array_equal(cached_rows(tmp_path / "x", "key", 50, "float32", _computed(starts)), ROWS)
    assert starts == [30]
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), ROWS)


def test_a_damaged_chunk_and_those_after_it_are_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(row_cache, "CHUNK_SECONDS", 0.0)

    def fails(start):
        yield from (ROWS[first:first + 10] for first in range(0, 40, 10))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached_rows(tmp_path / "x", "key", 50, "float32", fails)
    mark = json.loads((tmp_path / "x.json").read_bytes())
    assert [rows for rows, _ in mark["chunks"]] == [10] * 4
    data = bytearray((tmp_path / "x.npy").read_bytes())
    data[mark["start"] + 25 * 12] ^= 1
    (tmp_path / "x.npy").write_bytes(data)
    starts = []
    np.testing.assert_array_equal(cached_rows(tmp_path / "x", "key", 50, "float32", _computed(starts)), ROWS)
    assert starts == [20]


@pytest.mark.parametrize("harm", ["bit", "cut", "gone", "mark cut", "mark of lists"])
def test_a_complete_file_that_is_damaged_is_replaced_and_not_written_into(tmp_path, monkeypatch, harm):
    monkeypatch.setattr(row_cache, "IN_MEMORY", 100)
    held = cached_rows(tmp_path / "x", "key", 50, "float32", _computed([]))
    path, whole = tmp_path / "x.npy", (tmp_path / "x.npy").read_bytes()
    if "mark" in harm:
        (tmp_path / "x.json").write_bytes(b'{"key": "ke' if harm == "mark cut" else b'{"key": "key", "width": []}')
    else:
        path.unlink()  # what is mapped stays as it is
        if harm != "gone":
            path.write_bytes(whole[:-5] if harm == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    starts = []
    np.testing.assert_array_equal(cached_rows(tmp_path / "x", "key", 50, "float32", _computed(starts)), ROWS)
    np.testing.assert_array_equal(held, ROWS)
    assert starts == [0]


def test_any_flipped_bit_is_computed_again(tmp_path):
    cached_rows(tmp_path / "x", "key", 50, "float32", _computed([]))
    for name in ("x.npy", "x.json"):
        good = (tmp_path / name).read_bytes()
        for place in range(0, len(good), 7 if name == "x.json" else 1 + len(good) // 200):
            (tmp_path / name).write_bytes(good[:place] + bytes([good[place] ^ 2]) + good[place + 1:])
            np.testing.assert_array_equal(cached_rows(tmp_path / "x", "key", 50, "float32", _computed([])), ROWS)


@pytest.mark.parametrize("before, after", [(b"<f4", b">f4"), (b"<f4", b"<i4"), (b"(50, 3)", b"(50, 1)"),
                                           (b"False", b"True "), (b"    \n", b"   !\n")])
def test_a_damaged_header_is_found(tmp_path, before, after):
    cached_rows(tmp_path / "x", "key", 50, "float32", _computed([]))
    whole = (tmp_path / "x.npy").read_bytes()
    assert before in whole[:128]
    (tmp_path / "x.npy").write_bytes(whole.replace(before, after, 1))
    starts = []
    np.testing.assert_array_equal(cached_rows(tmp_path / "x", "key", 50, "float32", _computed(starts)), ROWS)
    assert starts == [0]


def test_of_two_that_want_the_same_rows_one_computes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(row_cache, "CHUNK_SECONDS", 0.0)
    starts, results, both = [], [], threading.Barrier(2)

    def compute(start):
        starts.append(start)
        for first in range(start, 50, 2):
            time.sleep(0.005)
            yield ROWS[first:first + 2]

    def want():
        both.wait()
        results.append(np.array(cached_rows(tmp_path / "x", "key", 50, "float32", compute)))

    threads = [threading.Thread(target=want) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert starts == [0] and len(results) == 2
    for rows in results:
        np.testing.assert_array_equal(rows, ROWS)


def test_rows_that_are_there_are_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    cached_rows(tmp_path / "x", "key", 50, "float32", _computed([]))
    (tmp_path / "x.lock").unlink()
    monkeypatch.setattr(row_cache, "locked", lambda path: pytest.fail("a lock needs a folder that can be written to"))
    np.testing.assert_array_equal(cached_rows(tmp_path / "x", "key", 50, "float32", _computed([])), ROWS)
