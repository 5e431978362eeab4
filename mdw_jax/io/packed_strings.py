"""`PackedStrings`: millions of strings in as many bytes as they have, and twelve more each."""

import itertools
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

_ERRORS = "surrogatepass"  # names of files may hold half a pair of surrogates


class PackedStrings(Sequence[str]):
    """Strings that index, compare and iterate like a tuple of str, made anew at each access.

    A str of Python takes some 50 bytes beside its characters, and a million tuples of them take half a gigabyte.

    Args:
        data: the UTF-8 of all strings, in any order.
        starts: (N,) int64, where each begins in `data`.
        lengths: (N,) int32, its bytes.
    """

    def __init__(self, data: bytes | bytearray, starts: np.ndarray, lengths: np.ndarray):
        self._data, self._starts, self._lengths = data, starts, lengths

    @classmethod
    def of(cls, strings: Iterable[str]) -> "PackedStrings":
        """Pack some strings."""
        packer = StringPacker()
        for string in strings:
            packer.append(string)
        return packer.packed()

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> "PackedStrings": ...

    def __getitem__(self, index):
        """A string; or, of a slice or an array of rows, those strings, which share their bytes with these."""
        starts, lengths = self._starts[index], self._lengths[index]
        if starts.ndim:
            return PackedStrings(self._data, starts, lengths)
        return self._data[starts:starts + lengths].decode(errors=_ERRORS)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), 4096):  # numbers of Python, a few thousand at a time: numpy's are slow
            block = slice(first, first + 4096)
            for start, length in zip(self._starts[block].tolist(), self._lengths[block].tolist(), strict=True):
                yield self._data[start:start + length].decode(errors=_ERRORS)

    def __eq__(self, other) -> bool:
        if not isinstance(other, (PackedStrings, tuple, list)):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.tolist(), dtype)

    def tolist(self) -> list[str]:
        """All of them as a list."""
        return list(self)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, itertools.islice(self, 3)))
        return f"PackedStrings({shown}{', ...' * (len(self) > 3)}; {len(self)} in all)"


class StringPacker:
    """Collects strings, one after another, into `PackedStrings`."""

    def __init__(self):
        self._data, self._ends = bytearray(), array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, string: str) -> None:
        """Add one at the end."""
        self._data += string.encode(errors=_ERRORS)
        self._ends.append(len(self._data))

    def packed(self) -> PackedStrings:
        """All that were added. The packer is not used afterwards."""
        ends = np.frombuffer(self._ends, np.int64)
        return PackedStrings(self._data, ends[:-1], np.diff(ends).astype(np.int32))
