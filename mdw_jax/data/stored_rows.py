"""Rows that stay on the host, in files: only those that are asked for come into memory.

All classes index like an (N, ...) array: `array[rows]` with a slice, an array of row numbers or of N bools gives a numpy
array of these rows.
"""

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.errors import UserError
from mdw_jax.io.file_rows import FileRows

MAPPED = 2**29
"""Bytes of a file of teachers' embeddings that is memory-mapped; what is larger is read (`io.file_rows`)."""


class SideBySide:
    """The rows of several (N, D) arrays, perhaps memory-mapped, side by side, times a factor: (N, n D) float32.

    The embeddings of n networks, with the factor `n**-0.5`, are those of their ensemble
    (`models.embedding.ensemble_embeddings`): dot products of rows are the mean of the networks'.

    Args:
        parts: n arrays of N rows each, or `FileRows`.
        factor: of all numbers.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, parts: Sequence[np.ndarray | FileRows], factor: float = 1.0):
        self._parts, self._factor = tuple(parts), np.float32(factor)
        self.shape = (len(self._parts[0]), sum(part.shape[1] for part in self._parts))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        found = np.concatenate([part[rows] for part in self._parts], -1, dtype=np.float32)
        return found if self._factor == 1 else np.multiply(found, self._factor, out=found)

    def unscaled(self, rows) -> np.ndarray:
        """These rows without the factor, as they are stored."""
        return np.concatenate([part[rows] for part in self._parts], -1)


class SelectedRows:
    """Some rows of an array that stays on the host, as an array of their own.

    Args:
        array: (N, ...), memory-mapped, `FileRows` or one of the classes of this module.
        rows: (n,) rows of it.
    """

    def __init__(self, array, rows: np.ndarray):
        self._array, self._rows = array, np.asarray(rows)
        self.shape, self.dtype, self.ndim = (len(self._rows), *array.shape[1:]), array.dtype, array.ndim

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows) -> np.ndarray:
        return self._array[self._rows[rows]]

    def unscaled(self, rows) -> np.ndarray:
        """These rows of a `SideBySide` without its factor; of another array, as they are."""
        wanted = self._rows[rows]
        return self._array.unscaled(wanted) if isinstance(self._array, SideBySide) else self._array[wanted]


def stays_on_host(array) -> bool:
    """Whether the rows of an array are fetched when a computation needs them: streamed images and rows in files."""
    return isinstance(array, (LazyImages, np.memmap, FileRows, SideBySide, SelectedRows))


def select_rows(array, rows: np.ndarray) -> Any:
    """`array[rows]` for (n,) rows in order: the array itself where these are all its rows, and no copy where it stays on
    the host."""
    if len(rows) == len(array):
        return array
    return SelectedRows(array, rows) if stays_on_host(array) else array[rows]


def create_rows(path: Path, shape: tuple[int, ...], dtype=np.float16) -> np.memmap | FileRows:
    """A new .npy file to be filled, slice by slice; mapped up to `MAPPED` bytes. An older file of that name is let go, also
    where it is still used.

    Its room is taken at once: a process that fills a mapped file on a full disk is killed without a word.

    Raises:
        UserError: the file system has no room for it.
    """
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    with _new_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape})
        file.flush()
        free = shutil.disk_usage(path.parent).free
        if needed > free or not _room_taken(file.fileno(), file.tell() + needed):
            path.unlink(missing_ok=True)
            raise UserError(f"'{path.parent}' needs {needed / 2**30:.1f} GiB for '{path.name}', and its file system has "
                            f"{free / 2**30:.1f} GiB free; make room there, or set run.dir to a directory elsewhere.")
        if needed > MAPPED:
            return FileRows(file, dtype, shape, file.tell())
        return np.memmap(file, dtype, "r+", file.tell(), shape)


def _new_file(path: Path) -> BinaryIO:
    """A new file, open; another process that works beside this one may remove or make it, or the directory, meanwhile."""
    for _ in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            return open(path, "x+b")
    raise UserError(f"'{path}' cannot be made: other processes remove or make it all the time; give them another run.dir.")


def _room_taken(file: int, size: int) -> bool:
    """Reserve room for a file; False if there is none, True also where the system cannot reserve it."""
    try:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return True


def finished_rows(rows: np.memmap | FileRows) -> np.memmap | FileRows:
    """A file of `create_rows` that is filled, written to the disk, for reading. It stays open, and is not opened by its
    name again, under which another process may have made its own."""
    rows.flush()
    if isinstance(rows, FileRows):
        return rows.read_only()
    rows.flags.writeable = False
    return rows
