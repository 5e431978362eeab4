"""How much a table may unpack to and hold: a stranger's small file must not fill the memory.

Text that is not compressed has no such limits: what it takes grows with the file that is there already.
"""

import gzip
import io
import os
from collections.abc import Sequence
from pathlib import Path

from mdw_jax.errors import UserError

UNPACKED, PACKED_TIMES = 2**28, 100
"""A compressed file may unpack to so many bytes, and a larger one to so many times its size: text shrinks to a tenth."""
HELD, HELD_TIMES = 2**30, 50
"""Likewise what the rows of a compressed file may take of the memory."""
_GUNZIP = "if you trust it, unpack it with gunzip and name the file that comes out"
_BLOCK = 2**20
_PER_IMAGE, _PER_CAPTION = 500, 70  # what Python's objects take beside the characters, in bytes


def most_unpacked(size: int) -> int:
    """The bytes to which a compressed file of `size` bytes may unpack."""
    return max(UNPACKED, PACKED_TIMES * size)


def most_held(size: int) -> int:
    """The bytes of memory that the rows of a compressed file of `size` bytes may take."""
    return max(HELD, HELD_TIMES * size)


def too_much(where: str, size: int, most: int, what: str, remedy: str) -> UserError:
    """What to say of a file that is refused.

    Args:
        where: the file, in words.
        size, most: its bytes, and those that it may become.
        what: what becomes of it: "unpacks to", "holds in its column 'caption'".
        remedy: how it is read if it is what its owner says.
    """
    return UserError(f"{where} has {size:,} bytes and {what} more than {most:,}, as no table of captions does; {remedy}.")


def unzipped(path: Path) -> io.BufferedReader:
    """A gzipped file, unpacked as it is read. Reading raises UserError where it unpacks to too much."""
    return io.BufferedReader(_Unzipped(path), 2**17)


def check_unzipped(path: Path) -> None:
    """Unpack a gzipped table once, which takes a second for some hundred megabytes, before its lines are looked at.

    Raises:
        OSError, EOFError, zlib.error: it is damaged.
        UserError: it unpacks to too much, or has more lines than may be held.
    """
    size, lines = os.stat(path).st_size, 0
    with unzipped(path) as file:
        while block := file.read(_BLOCK):
            lines += block.count(b"\n")
            if _PER_CAPTION * lines > most_held(size):
                raise too_much(f"'{path}'", size, most_held(size), f"has over {lines:,} lines, which take of the memory",
                               _GUNZIP)


class _Unzipped(io.RawIOBase):
    def __init__(self, path: Path):
        self._file, self._path = gzip.open(path, "rb"), path
        self._size = os.stat(path).st_size
        self._most = most_unpacked(self._size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._file.readinto(buffer)
        if self._file.tell() > self._most:
            raise too_much(f"'{self._path}'", self._size, self._most, "unpacks to",
                           _GUNZIP)
        return count

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


class Held:
    """Counts what the rows of a compressed file take while they are collected; of other files, nothing.

    Args:
        path: the table.
        packed: whether it is compressed.
    """

    def __init__(self, path: Path, packed: bool):
        self._path, self._packed, self._held = path, packed, 0
        self._size = os.stat(path).st_size
        self._most = most_held(self._size)

    def add(self, line: int, new_image: bool, texts: Sequence) -> None:
        """One row more.

        Args:
            line: its number.
            new_image: whether its image is in no row before.
            texts: what is kept of it.

        Raises:
            UserError: all rows so far take too much.
        """
        if not self._packed:
            return
        self._held += _PER_IMAGE * new_image + _PER_CAPTION * len(texts) + sum(
            len(text) for text in texts if isinstance(text, (str, bytes)))
        if self._held > self._most:
            raise too_much(f"'{self._path}'", self._size, self._most, f"with row {line} takes of the memory",
                           "if you trust it, write it as CSV or JSON lines that are not compressed")
