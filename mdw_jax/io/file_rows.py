"""`FileRows`: the rows of an array in a file that are read when they are asked for, where a map of it would be too large.

Pages of a memory-mapped file count as memory of the process that has touched them, until it ends: after one pass over a
file all of it. What is read instead is a copy, of the rows that were asked for alone; the system's own cache of the file
belongs to no process. A row that is picked by its number costs about 2 microseconds more than from a map.
"""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np


class FileRows:
    """An (N, ...) array in a file. Indexes by slices, row numbers of any shape or N bools; each gives an array in memory.

    Args:
        file: open for reading, and for writing where rows are set. It may be closed and its name removed.
        dtype, shape: of the array.
        offset: bytes of the file before it.
    """

    def __init__(self, file: BinaryIO, dtype, shape: tuple[int, ...], offset: int = 0):
        self._file, self._offset = _Descriptor(file.fileno()), offset
        self.dtype, self.shape = np.dtype(dtype), tuple(shape)
        self._writable = file.writable()
        self._row_bytes = self.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))

    @classmethod
    def open(cls, path: Path) -> "FileRows":
        """The array of a .npy file, to be read.

        Raises:
            ValueError: it is no such file, or holds objects or columns of an array.
        """
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(file)
            if by_columns or dtype.hasobject:
                raise ValueError(f"'{path}' does not hold the rows of numbers.")
            return cls(file, dtype, shape, file.tell())

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return len(self) * self._row_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows of a file cannot be had without a copy.")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def __getitem__(self, rows) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._run(start, max(stop, start))
            rows = np.arange(start, stop, step)
        rows = np.asarray(rows)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"{rows.shape} bools do not choose among {len(self)} rows.")
            rows = np.flatnonzero(rows)
        elif rows.size and not np.issubdtype(rows.dtype, np.integer):
            raise IndexError(f"rows are chosen by integers, bools or slices, not by {rows.dtype}.")
        flat = rows.ravel().astype(np.int64, copy=False)  # of 8 bits, the number of rows could not be added
        if flat.size and not -len(self) <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"row numbers reach from {flat.min()} to {flat.max()}, of {len(self)} rows.")
        flat = np.where(flat < 0, flat + len(self), flat)
        if len(flat) and int(flat[-1]) - int(flat[0]) == len(flat) - 1 and (np.diff(flat) == 1).all():
            values = self._run(int(flat[0]), int(flat[-1]) + 1)
        else:
            values = self._picked(flat)
        return values.reshape(*rows.shape, *self.shape[1:])

    def __setitem__(self, rows: slice, values) -> None:
        """Write rows that follow one another; as where one array is copied to another, values take its type."""
        if not self._writable:
            raise ValueError("these rows are read-only.")
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise IndexError("rows are written in order.")
        content = np.ascontiguousarray(np.broadcast_to(np.asarray(values, self.dtype), (stop - start, *self.shape[1:])))
        left, at = memoryview(content.reshape(-1).view(np.uint8)), self._offset + start * self._row_bytes
        while left:
            written = os.pwrite(self._file.number, left, at)
            left, at = left[written:], at + written

    def part(self, start: int, stop: int) -> "FileRows":
        """The rows from `start` to `stop` as an array of their own; none of them is read."""
        rows = object.__new__(FileRows)
        rows.__dict__ |= self.__dict__ | {"shape": (stop - start, *self.shape[1:]),
                                          "_offset": self._offset + start * self._row_bytes}
        return rows

    def read_only(self) -> "FileRows":
        """The same rows, which cannot be set."""
        rows = self.part(0, len(self))
        rows._writable = False
        return rows

    def flush(self) -> None:
        """Have the system write what was set to the disk."""
        os.fsync(self._file.number)

    def _run(self, start: int, stop: int) -> np.ndarray:
        """The rows of a slice."""
        values = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self._read(memoryview(values.reshape(-1).view(np.uint8)), start)
        return values

    def _picked(self, rows: np.ndarray) -> np.ndarray:
        """(n, ...) the rows of these numbers."""
        values = np.empty((len(rows), *self.shape[1:]), self.dtype)
        into, size = memoryview(values.reshape(-1).view(np.uint8)), self._row_bytes
        file, offset = self._file.number, self._offset
        for place, row in enumerate(rows.tolist()):
            one = into[place * size:(place + 1) * size]
            if os.preadv(file, [one], offset + row * size) != size:
                self._read(one, row)
        return values

    def _read(self, into: memoryview, row: int) -> None:
        """Fill a buffer with what follows from a row on; a call to the system may give less than was asked for."""
        at = self._offset + row * self._row_bytes
        while into:
            count = os.preadv(self._file.number, [into], at)
            if not count:
                raise OSError("a file of rows is shorter than it was; nothing else may write to a run's folder.")
            into, at = into[count:], at + count


class _Descriptor:
    """An open file of one's own, closed with the last array that reads it."""

    def __init__(self, number: int):
        self.number = os.dup(number)
        self._close = os.close  # which may be gone first when Python ends

    def __del__(self):
        self._close(self.number)
