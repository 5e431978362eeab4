"""What stands in the footer of a Parquet file and in the header of a page.

It is read here because pyarrow, asked for it, ends the process where some of it is damaged.
Both are structs of Thrift's compact protocol: https://github.com/apache/parquet-format, parquet.thrift.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BYTE_ARRAY, FIXED_LENGTH = 6, 7  # physical types
_DICTIONARY_PAGE = 2
_MAGIC = b"PAR1"
_DEEPEST = 32
_PAGE_HEADER = 64  # bytes that are read of one: its first fields tell its kind and length


class Chunk(NamedTuple):
    """A column of a row group.

    Attributes:
        path: its name, or that of the innermost part of a nested column, joined by dots.
        root: the column itself.
        kind: its physical type.
        values: how many, nulls included.
        unpacked: bytes of its pages.
        width: bytes that one value stands for beside what is stored: those of its whole dictionary.
    """

    path: str
    root: str
    kind: int
    values: int
    unpacked: int
    width: int


def chunks_of(path: Path) -> tuple[int, Iterator[Chunk]]:
    """(number of rows, the chunks) of a Parquet file.

    Raises:
        OSError: it cannot be read.
        ValueError: its footer is damaged; also while the chunks are gone through.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        file.seek(max(size - 8, 0))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > size:
            raise ValueError("no Parquet footer; the file is cut off, damaged or encrypted")
        file.seek(size - 8 - length)
        footer = _Reader(file.read(length)).struct()
    try:
        return footer[3], _chunks(path, footer)
    except KeyError as error:
        raise ValueError(f"a Parquet footer without field {error}") from None


def _chunks(path: Path, footer: dict[int, Any]) -> Iterator[Chunk]:
    try:
        lengths = [leaf.get(2, 0) for leaf in footer[2] if not leaf.get(5)]
        with open(path, "rb") as file:
            for group in footer.get(4, []):
                for chunk, length in zip(group[1], lengths, strict=True):
                    about = chunk[3]
                    names = [name.decode() for name in about[3]]
                    yield Chunk(".".join(names), names[0], about[1], about[5], about[6], _width(file, about, length))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"a damaged Parquet footer ({type(error).__name__}: {error})") from None


def _width(file, about: dict[int, Any], length: int) -> int:
    """See `Chunk.width`."""
    if about[1] != BYTE_ARRAY:
        return length if about[1] == FIXED_LENGTH else 0
    file.seek(min(about[9], about.get(11) or about[9]))
    try:
        header = _Reader(file.read(_PAGE_HEADER))
        kind, unpacked = header.field(5), header.field(5)
    except ValueError:
        return about[6]  # in another order, or in long form: all of it may be a dictionary
    return unpacked if kind == _DICTIONARY_PAGE else 0


class _Reader:
    """Values of the compact protocol, one after another. All methods raise ValueError where there are no more."""

    def __init__(self, data: bytes):
        self._data, self._place = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """{number of the field: value}."""
        if depth > _DEEPEST:
            raise ValueError("structs within structs")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            fields[number] = head & 15 == 1 if head & 15 in (1, 2) else self._value(head & 15, depth)
        return fields

    def field(self, kind: int) -> int:
        """The number in the next field, which is the one behind the last, of this kind."""
        if self._byte() != 0x10 | kind:
            raise ValueError("another field")
        return self._signed()

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 8:
            return self._bytes(self._unsigned())
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            return [self._value(head & 15, depth) for _ in range(count)]
        if kind == 11:
            count = self._unsigned()
            kinds = self._byte() if count else 0
            return [(self._value(kinds >> 4, depth), self._value(kinds & 15, depth)) for _ in range(count)]
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (1, 2, 3):
            return self._byte()
        if kind == 7:
            return self._bytes(8)
        raise ValueError(f"no value of kind {kind}")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        data = self._data[self._place:self._place + count]
        if len(data) < count:
            raise ValueError("it ends early")
        self._place += count
        return data

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a number without an end")

    def _signed(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)
