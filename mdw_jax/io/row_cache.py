"""Rows of a large array that are computed once: kept on disk as they come, and read back from there.

`NAME.npy` is a plain file of numpy. `NAME.json` beside it has its key, its shape, and the sha256 of each chunk of rows that
is on disk; it is written after the chunk, so that a process that is killed loses only the rows that came after it.
"""

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from mdw_jax.io.file_rows import FileRows
from mdw_jax.io.files import write_json
from mdw_jax.io.keyed import read_keyed_json
from mdw_jax.io.locks import locked
from mdw_jax.runtime import preemption
from mdw_jax.runtime.processes import barrier, broadcast_from_main, is_main

CHUNK_SECONDS, CHUNK_BYTES = 20.0, 2**26
"""Rows are written after so much time or so many bytes, whichever comes first: what a process loses that is killed."""
IN_MEMORY = 2**26
"""Bytes of an array that is read as a whole and not mapped."""
ON_DEVICES = 2**30
"""Bytes of an array that may be copied to devices as a whole. Of a larger one the rows stay in the file until a computation
takes them, and it is no map of all of it: `io.file_rows.FileRows`."""


def cached_rows(path, key: str, count: int, dtype: str, compute: Callable[[int], Iterable[np.ndarray]]
                ) -> np.ndarray | FileRows:
    """The rows that `compute` gives: from the cache, or computed, from the first one on that the cache lacks.

    What is damaged, or of another key, is computed again. With several processes all compute, and process 0 writes. Of
    several runs that want the same rows one computes them, and the others wait for it (`NAME.lock`).

    Args:
        path: the file without its suffix; None: no cache.
        key: sha256 of everything the rows depend on.
        count: how many rows there are, 1 or more.
        dtype: in which they are kept: "float32", "float16", ...
        compute: called with the first row that is missing; gives the rows from there on, (n, d) at a time.

    Returns:
        (count, d) of `dtype`; a large one is mapped from the file, and read-only (`IN_MEMORY`), a larger one is read from
        it row by row (`ON_DEVICES`).
    """
    if path is None:
        return np.concatenate([np.asarray(rows, dtype) for rows in compute(0)])
    file = _RowFile(Path(path), key, count, dtype)
    if broadcast_from_main(file.verified) < count:
        with locked(Path(path).with_name(f"{Path(path).name}.lock")):
            done = broadcast_from_main(file.usable)
            if done < count:
                _extend(file, done, compute(done))
    barrier()
    return file.read()


def _extend(file: "_RowFile", done: int, blocks: Iterable[np.ndarray]) -> None:
    """Compute and write the rows from `done` on; when interrupted, those that are there are written first."""
    pending: list[np.ndarray] = []
    since = time.monotonic()

    def flush():
        if pending and is_main():
            file.append(done - sum(map(len, pending)), np.concatenate(pending))
        pending.clear()

    with preemption.save_on_interrupt(flush):
        for block in blocks:
            pending.append(np.ascontiguousarray(block, file.dtype))
            done += len(block)
            if time.monotonic() - since > CHUNK_SECONDS or sum(rows.nbytes for rows in pending) > CHUNK_BYTES:
                flush()
                since = time.monotonic()
            preemption.raise_if_interrupted()
    flush()


class _RowFile:
    """The two files of one array."""

    def __init__(self, path: Path, key: str, count: int, dtype: str):
        self._data, self._mark = path.with_name(f"{path.name}.npy"), path.with_name(f"{path.name}.json")
        self._key, self._count, self.dtype = key, count, np.dtype(dtype)
        self._chunks: list[list] = []  # [rows, sha256] of each
        self._whole = False  # whether the file is as long as all rows are

    def verified(self) -> int:
        """How many rows are there, from the first one on, and undamaged."""
        mark = read_keyed_json(self._mark, self._key) or {}
        self._chunks, self._whole = [], False
        try:
            header, row = self._header(int(mark["width"])), int(mark["width"]) * self.dtype.itemsize
            with open(self._data, "rb", buffering=0) as data:
                self._whole = os.fstat(data.fileno()).st_size >= len(header) + self._count * row
                if data.read(len(header)) != header:
                    return 0
                for rows, digest in mark["chunks"]:
                    if _digest(data, rows * row) != digest:
                        break
                    self._chunks.append([rows, digest])
        except (OSError, KeyError, TypeError, ValueError):
            self._chunks = []
        return sum(rows for rows, _ in self._chunks)

    def usable(self) -> int:
        """`verified`; what cannot be added to is removed."""
        done = self.verified()
        if done < self._count and (self._whole or not done):
            # Other programs may have mapped a file that was complete: a new one takes its place.
            self._chunks, done = [], 0
            self._mark.unlink(missing_ok=True)
            self._data.unlink(missing_ok=True)
        return done

    def append(self, first: int, rows: np.ndarray) -> None:
        """Write the rows from number `first` on: the data, then the mark."""
        self._data.parent.mkdir(parents=True, exist_ok=True)
        start, content = len(self._header(rows.shape[1])), rows.reshape(-1).view(np.uint8).data
        with open(self._data, "r+b" if first else "wb", buffering=0) as data:
            if not first:
                data.write(self._header(rows.shape[1]))
            data.seek(start + first * rows.nbytes // len(rows))
            data.truncate()  # what a process wrote that was killed before its mark
            try:
                written = 0
                while written < len(content):
                    written += data.write(content[written:])
                os.fsync(data.fileno())
            except OSError as error:
                error.filename = str(self._data)  # the system does not name the file when a disk is full
                raise
        self._chunks.append([len(rows), hashlib.sha256(content).hexdigest()])
        write_json(self._mark, {"key": self._key, "width": rows.shape[1], "start": start, "chunks": self._chunks})

    def read(self) -> np.ndarray | FileRows:
        """The array."""
        size = self._data.stat().st_size
        if size > ON_DEVICES:
            return FileRows.open(self._data)
        return np.asarray(np.load(self._data, mmap_mode="r" if size > IN_MEMORY else None, allow_pickle=False))

    def _header(self, width: int) -> bytes:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self._count, width)})
        return header.getvalue()


def _digest(file, size: int) -> str:
    """sha256 of the next bytes of a file, "" if there are fewer; not by mapping them, which would count as memory."""
    sha = hashlib.sha256()
    for piece in _pieces(file, size):
        size -= len(piece)
        sha.update(piece)
    return "" if size else sha.hexdigest()


def _pieces(file, size: int) -> Iterator[bytes]:
    while size and (piece := file.read(min(size, 2**22))):
        yield piece
        size -= len(piece)
