import errno
import os
import shutil

import numpy as np
import pytest

from mdw_jax.data import stored_rows
from mdw_jax.data.stored_rows import SelectedRows, SideBySide, create_rows, finished_rows, select_rows, stays_on_host
from mdw_jax.errors import UserError
from mdw_jax.io.file_rows import FileRows


def files(tmp_path, count=3, rows=7, width=4):
    made = []
    for n in range(count):
        file = create_rows(tmp_path / f"{n}.npy", (rows, width))
        file[:] = np.random.default_rng(n).normal(size=(rows, width))
        made.append(finished_rows(file))
    return made


@pytest.mark.parametrize("rows", [slice(2, 5), np.array([5, 0, 5]), np.array([[1, 2], [6, 0]]), np.arange(7) % 2 == 0])
def test_side_by_side_indexes_like_the_array_in_memory(tmp_path, rows):
    parts = files(tmp_path)
    whole = np.concatenate(parts, 1).astype(np.float32) * np.float32(0.5)
    stored = SideBySide(parts, 0.5)
    assert stored.shape == whole.shape == (len(stored), 12) and stored[rows].dtype == np.float32
    np.testing.assert_array_equal(stored[rows], whole[rows])
    assert stored.unscaled(rows).dtype == np.float16
    np.testing.assert_array_equal(stored.unscaled(rows), np.concatenate(parts, 1)[rows])


def test_selected_rows_are_those_of_the_array(tmp_path):
    stored, rows = SideBySide(files(tmp_path), 2.0), np.array([1, 4, 6])
    selected = select_rows(stored, rows)
    assert isinstance(selected, SelectedRows) and selected.shape == (3, 12)
    np.testing.assert_array_equal(selected[1:], stored[[4, 6]])
    np.testing.assert_array_equal(selected.unscaled(np.array([2, 0])), stored.unscaled(np.array([6, 1])))
    assert select_rows(stored, np.arange(7)) is stored
    np.testing.assert_array_equal(select_rows(np.arange(7), rows), rows)  # a copy, as ever
    assert stays_on_host(stored) and stays_on_host(selected) and stays_on_host(files(tmp_path)[0])
    assert not stays_on_host(np.zeros(3))


def test_a_file_that_is_made_anew_leaves_the_mapped_one_as_it_was(tmp_path):
    old = create_rows(tmp_path / "rows.npy", (2, 2))
    old[:] = 1
    old = finished_rows(old)
    create_rows(tmp_path / "rows.npy", (2, 2))[:] = 2
    assert (old == 1).all() and (np.load(tmp_path / "rows.npy") == 2).all()


@pytest.mark.parametrize("mapped", [True, False])
def test_large_files_are_read_and_not_mapped(tmp_path, monkeypatch, mapped):
    monkeypatch.setattr(stored_rows, "MAPPED", 10**6 if mapped else 20)
    parts = files(tmp_path)
    assert all(isinstance(part, np.memmap if mapped else FileRows) and stays_on_host(part) for part in parts)
    for n, part in enumerate(parts):
        expected = np.random.default_rng(n).normal(size=(7, 4)).astype(np.float16)
        np.testing.assert_array_equal(part, expected)
        np.testing.assert_array_equal(np.load(tmp_path / f"{n}.npy"), expected)
        with pytest.raises(ValueError, match="read-only"):
            part[:] = 0
    rows = np.array([[6, 2], [2, 0]])
    np.testing.assert_array_equal(SideBySide(parts, 0.5)[rows], 0.5 * np.concatenate(list(map(np.asarray, parts)), 1)[rows])


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_rows.shutil, "disk_usage", lambda path: stored_rows.shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(UserError, match="GiB free; make room there, or set run.dir"):
        create_rows(tmp_path / "rows.npy", (5, 2))
    assert not list(tmp_path.iterdir())


def test_room_is_taken_when_a_file_is_made(tmp_path, monkeypatch):
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("the system cannot reserve room")
    made = create_rows(tmp_path / "rows.npy", (1000, 500))
    assert (tmp_path / "rows.npy").stat().st_blocks * 512 >= made.nbytes

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stored_rows.os, "posix_fallocate", full)  # as where other files were promised the same room
    with pytest.raises(UserError, match="make room there"):
        create_rows(tmp_path / "more.npy", (1000, 500))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npy"]


def test_two_processes_that_make_a_file_of_one_name_each_have_their_own(tmp_path):
    one = create_rows(tmp_path / "deep" / "rows.npy", (2, 2))
    other = create_rows(tmp_path / "deep" / "rows.npy", (2, 2))
    one[:], other[:] = 1, 2
    one = finished_rows(one)
    shutil.rmtree(tmp_path / "deep")
    other = finished_rows(other)
    assert (one == 1).all() and (other == 2).all() and isinstance(one, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 0
