import os
import tracemalloc

import numpy as np
import pytest

from mdw_jax.io.file_rows import FileRows

WHOLE = np.random.default_rng(0).normal(size=(9, 2, 3)).astype(np.float32)


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "rows.npy", WHOLE)
    return FileRows.open(tmp_path / "rows.npy")


@pytest.mark.parametrize("index", [
    slice(2, 5), slice(None), slice(5, 2), slice(-3, None), slice(None, None, 2), slice(None, None, -1), 4, -1,
    np.array([5, 0, 5, -2]), [3, 1], np.array([[1, 2], [6, 0]]), np.array([[2, 3], [4, 5]]), np.arange(3, 8),
    np.array([], int), [], np.arange(9) % 2 == 0, np.zeros(9, bool)])
def test_it_indexes_like_the_array_in_memory(rows, index):
    found = rows[index]
    assert type(found) is np.ndarray and found.dtype == np.float32
    np.testing.assert_array_equal(found, WHOLE[index if index != [] else np.array([], int)] if isinstance(index, list)
                                  else WHOLE[index], strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_row_numbers_of_few_bits_choose_among_more_rows_than_they_reach(tmp_path, dtype):
    whole = np.arange(300, dtype=np.float32)[:, None]
    np.save(tmp_path / "rows.npy", whole)
    index = np.array([100, 2, -1]).astype(dtype)
    np.testing.assert_array_equal(FileRows.open(tmp_path / "rows.npy")[index], whole[index])


def test_a_part_is_read_from_its_place(rows):
    part = rows.part(2, 8)
    assert part.shape == (6, 2, 3) and len(part) == 6 and part.nbytes == 6 * 24 and part.ndim == 3
    np.testing.assert_array_equal(part, WHOLE[2:8])
    np.testing.assert_array_equal(part.part(1, 3)[[-1, 0]], WHOLE[[4, 3]])
    with pytest.raises(IndexError, match="from 0 to 6, of 6 rows"):
        part[[0, 6]]  # which the file has


@pytest.mark.parametrize("index", [[0.5], np.zeros(4, bool), [9], [-10]])
def test_what_chooses_no_rows_is_refused(rows, index):
    with pytest.raises(IndexError):
        rows[index]


def test_what_is_set_is_read_as_where_one_array_is_copied_to_another(tmp_path):
    expected = np.zeros((9, 4), np.float16)
    with open(tmp_path / "new", "x+b") as file:
        file.write(b"header")
        file.truncate(6 + expected.nbytes)
        rows = FileRows(file, np.float16, expected.shape, 6)
    (tmp_path / "new").unlink()  # it stays open
    for part in (slice(0, 5), slice(5, 9)):
        values = np.random.default_rng(part.start).normal(size=(part.stop - part.start, 4)).astype(np.float32)
        rows[part], expected[part] = values, values
    rows[3:4] = expected[3:4] = 7
    finished = rows.read_only()
    rows.flush()
    np.testing.assert_array_equal(finished, expected)
    with pytest.raises(ValueError, match="read-only"):
        finished[0:1] = 0


def test_it_holds_no_more_than_the_rows_that_were_asked_for(tmp_path):
    np.save(tmp_path / "large.npy", np.zeros((40_000, 100), np.float32))
    tracemalloc.start()
    try:
        rows = FileRows.open(tmp_path / "large.npy")
        for start in range(0, 40_000, 1000):
            rows[start:start + 1000]
        assert tracemalloc.get_traced_memory()[1] < 2e6  # of 16 MB
    finally:
        tracemalloc.stop()


def test_a_file_that_became_shorter_is_no_row_of_zeros(tmp_path, rows):
    os.truncate(tmp_path / "rows.npy", 128 + 24 * 4 + 5)
    np.testing.assert_array_equal(rows[[3, 0]], WHOLE[[3, 0]])
    for index in ([4, 0], slice(3, 6)):
        with pytest.raises(OSError, match="shorter"):
            rows[index]


def test_other_files_are_refused(tmp_path):
    np.save(tmp_path / "columns.npy", np.asfortranarray(WHOLE[:, 0]))
    with pytest.raises(ValueError, match="does not hold the rows"):
        FileRows.open(tmp_path / "columns.npy")
    (tmp_path / "text.npy").write_bytes(b"no array at all")
    with pytest.raises(ValueError):
        FileRows.open(tmp_path / "text.npy")
    with pytest.raises(ValueError, match="without a copy"):
        np.save(tmp_path / "rows.npy", WHOLE)
        np.asarray(FileRows.open(tmp_path / "rows.npy"), copy=False)


def test_the_file_is_closed_with_the_last_array_that_reads_it(tmp_path):
    np.save(tmp_path / "rows.npy", WHOLE)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    rows = FileRows.open(tmp_path / "rows.npy")
    part = rows.part(0, 2)
    del rows
    np.testing.assert_array_equal(part, WHOLE[:2])
    del part
    assert len(os.listdir("/proc/self/fd")) == before
