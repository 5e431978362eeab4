"""`EncodedColumns`: millions of encoded images as a few arrays, each made into an `Encoded` when it is asked for."""

import dataclasses
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import overload

import numpy as np

from mdw_jax.data.decoding import DIGEST, Decoder, Encoded, Reader, content_digests, examined
from mdw_jax.io.packed_strings import PackedStrings, StringPacker

_BLOCK = 4096  # digests that exist as text at the same time


@dataclasses.dataclass(frozen=True, eq=False)
class _Reads:
    """What reads the bytes of N images, in columns: calls of few functions with two numbers, or with a name.

    Attributes:
        functions: what the calls of several images share; None: the call of each is in `others`.
        function: (N,) int32, which of them.
        first, second: (N,) int64, numbers to call it with (as many as it takes); `first` also counts `others`.
        names: (N,) the name to call it with.
        others: calls of any other form.
    """

    functions: list[tuple[Callable | None, int]]
    function: np.ndarray
    first: np.ndarray
    second: np.ndarray
    names: PackedStrings
    others: list[Reader]

    def take(self, rows) -> "_Reads":
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in (
            "function", "first", "second", "names")})

    def __getitem__(self, row: int) -> Reader:
        function, form = self.functions[self.function[row]]
        if function is None:
            return self.others[self.first[row]]
        if form == _NAME:
            return partial(function, self.names[row])
        return partial(function, *(int(self.first[row]), int(self.second[row]))[:form])


_NAME = -1  # in place of how many numbers a function is called with


class _ReadsBuilder:
    """Collects `Encoded.read` of images, one after another."""

    def __init__(self):
        self._functions: list[tuple[Callable | None, int]] = [(None, 0)]
        self._known: dict[tuple, int] = {}
        self._function, self._first, self._second = array("i"), array("q"), array("q")
        self._names, self._others = StringPacker(), []

    def append(self, read: Reader) -> None:
        shared, numbers, name = _parts(read)
        function = 0
        if shared is not None:
            # By identity, for functions hold what has no hash; `_functions` keeps all of it alive.
            key = (id(shared.func), *map(id, shared.args), name is None, len(numbers))
            function = self._known.get(key, 0)
            if not function:
                function = self._known[key] = len(self._functions)
                self._functions.append((shared, len(numbers) if name is None else _NAME))
        else:
            numbers = len(self._others),
            self._others.append(read)
        self._function.append(function)
        for column, value in zip((self._first, self._second), (*numbers, 0, 0), strict=False):
            column.append(value)
        self._names.append(name or "")

    def built(self) -> _Reads:
        return _Reads(self._functions, np.frombuffer(self._function, np.int32), np.frombuffer(self._first, np.int64),
                      np.frombuffer(self._second, np.int64), self._names.packed(), self._others)


def _parts(read: Reader) -> tuple[partial | None, tuple[int, ...], str | None]:
    """(what many reads share, the numbers at the end of the call, or the name there); (None, (), None): neither."""
    if not isinstance(read, partial) or read.keywords or not read.args:
        return None, (), None
    args = read.args
    if type(args[-1]) is str:
        return partial(read.func, *args[:-1]), (), args[-1]
    count = 2 if len(args) > 1 and type(args[-1]) is type(args[-2]) is int else 1 if type(args[-1]) is int else 0
    return (partial(read.func, *args[:-count]), args[-count:], None) if count else (None, (), None)


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedColumns(Sequence[Encoded]):
    """N images as they are stored, in columns.

    Attributes:
        keys: `Encoded.key` of each.
        reads: `Encoded.read` of each.
        lengths, checksums: (N,) int64 and uint32, `Encoded.sum` of each; a length of -1: not known.
        contents: (N,) uint64, `Encoded.content` of each, a hexadecimal number; 0: not known.
    """

    keys: PackedStrings
    reads: _Reads
    lengths: np.ndarray
    checksums: np.ndarray
    contents: np.ndarray

    @classmethod
    def of(cls, images: Sequence[Encoded]) -> "EncodedColumns":
        """Images in columns; those that are in columns already as they are."""
        if isinstance(images, EncodedColumns):
            return images
        builder = EncodedBuilder()
        for image in images:
            builder.append(image)
        return builder.built()

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> "EncodedColumns": ...

    def __getitem__(self, index):
        """An image; or, of a slice or an array of rows, those images in columns."""
        if isinstance(index, (int, np.integer)):
            length, content = int(self.lengths[index]), int(self.contents[index])
            return Encoded(self.keys[index], self.reads[index],
                           None if length < 0 else (length, int(self.checksums[index])),
                           f"{content:0{DIGEST}x}" if content else None)
        return EncodedColumns(self.keys[index], self.reads.take(index), self.lengths[index], self.checksums[index],
                              self.contents[index])

    def validated(self, check: bool, pool: ThreadPoolExecutor, decoder: Decoder) -> tuple["EncodedColumns", dict[int, str]]:
        """As `decoding.validate_images`: the images with what was found out, and {row: why it cannot be used}."""
        if not check and (self.lengths >= 0).all():
            return self, {}
        lengths, checksums, contents = self.lengths.copy(), self.checksums.copy(), self.contents.copy()
        failures: dict[int, str] = {}
        for row, (image, failure) in enumerate(examined(self, check, pool, decoder)):
            lengths[row], checksums[row] = image.sum or (-1, 0)
            contents[row] = _number(image.content)
            if failure:
                failures[row] = failure
        return dataclasses.replace(self, lengths=lengths, checksums=checksums, contents=contents), failures

    def with_contents(self, pool: ThreadPoolExecutor, decoder: Decoder) -> "EncodedColumns":
        """The images with their contents, decoded once where these are not known (`decoding.content_digests`)."""
        contents, unknown = self.contents.copy(), np.flatnonzero(self.contents == 0)
        for first in range(0, len(unknown), _BLOCK):
            rows = unknown[first:first + _BLOCK]
            contents[rows] = [_number(content) for content in content_digests(self[rows], pool, decoder)]
        return dataclasses.replace(self, contents=contents)


def _number(content: str | None) -> int:
    return int(content, 16) if content else 0


def content_numbers(contents: Sequence[str | None]) -> np.ndarray:
    """Contents as in `EncodedColumns.contents`."""
    return np.fromiter(map(_number, contents), np.uint64, len(contents))


class EncodedBuilder:
    """Collects images, one after another, into `EncodedColumns`."""

    def __init__(self):
        self._keys, self._reads = StringPacker(), _ReadsBuilder()
        self._lengths, self._checksums, self._contents = array("q"), array("I"), array("Q")

    def append(self, image: Encoded) -> None:
        """Add one at the end."""
        self._keys.append(image.key)
        self._reads.append(image.read)
        length, checksum = image.sum or (-1, 0)
        self._lengths.append(length)
        self._checksums.append(checksum)
        self._contents.append(_number(image.content))

    def built(self) -> EncodedColumns:
        """All that were added. The builder is not used afterwards."""
        return EncodedColumns(self._keys.packed(), self._reads.built(), np.frombuffer(self._lengths, np.int64),
                              np.frombuffer(self._checksums, np.uint32), np.frombuffer(self._contents, np.uint64))
