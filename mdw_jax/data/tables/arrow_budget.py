"""What Parquet and Arrow files unpack to, found out before they are: a page of some bytes may stand for gigabytes.

Three things expand: compressed pages and buffers; dictionaries, of which a row holds only the number of its value; and
rows that are counted and not stored. pyarrow bounds none of them.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mdw_jax.data.tables import parquet_footer
from mdw_jax.data.tables.budget import most_held, most_unpacked, too_much
from mdw_jax.errors import UserError

_REMEDY = "if you trust it, write its captions as CSV or JSON lines"


def dictionary_columns(path: Path, where: str, columns: Sequence[str], closer: int) -> list[str]:
    """The columns of a Parquet file whose values may be many times what is stored, to be read as dictionaries.

    Args:
        path, where: the file, and what to call it.
        columns: those that will be read; of a nested one the first part of its path.
        closer: bytes; a column that cannot become more needs no closer look.

    Returns:
        Their full paths, as `read_dictionary` takes them.

    Raises:
        UserError: the pages unpack to too much, or there are far more rows than the file can hold.
        ValueError: the footer is damaged.
    """
    size, unpacked, most = path.stat().st_size, 0, {}
    rows, chunks = parquet_footer.chunks_of(path)
    if 8 * rows > most_held(size):
        raise too_much(where, size, most_held(size), f"counts {rows:,} rows, which take", _REMEDY)
    for chunk in chunks:
        if chunk.root not in columns:
            continue
        unpacked += max(chunk.unpacked, chunk.width)
        if unpacked > most_unpacked(size):
            raise too_much(where, size, most_unpacked(size), f"unpacks, up to its column '{chunk.path}', to", _REMEDY)
        most[chunk.path] = most.get(chunk.path, 0) + chunk.values * chunk.width
        if chunk.kind == parquet_footer.FIXED_LENGTH and most[chunk.path] > most_held(size):
            raise too_much(where, size, most_held(size), f"holds in its column '{chunk.path}'", _REMEDY)
    return [name for name, taken in most.items() if taken > closer]


def check_messages(source, size: int, where: str, first: int) -> None:
    """Raises UserError if the buffers of an Arrow file unpack to too much.

    Args:
        source: the open file, mapped into memory; its place is changed.
        size: its bytes.
        where: what to call it.
        first: the place of its first message.
    """
    import pyarrow  # an optional dependency, and slow to import

    source.seek(first)
    unpacked = 0
    for message in iter(pyarrow.ipc.MessageReader.open_stream(source)):
        unpacked += _unpacked(message.metadata.to_pybytes(), message.body)
        if unpacked > most_unpacked(size):
            raise too_much(where, size, most_unpacked(size), "unpacks to", _REMEDY)


def _unpacked(header: bytes, body) -> int:
    """The bytes of a message's buffers once unpacked; 0 if they are not compressed. ValueError for a damaged one.

    The header is a FlatBuffer: Message (1: kind of header, 2: header), whose header is a RecordBatch (2: buffers,
    3: compression) or a DictionaryBatch (1: RecordBatch).
    """
    try:
        message = struct.unpack_from("<I", header, 0)[0]
        kind = header[_field(header, message, 1)]
        batch = _target(header, message, 2)
        if kind == 2:  # DictionaryBatch
            batch = _target(header, batch, 1)
        if kind not in (2, 3) or not _field(header, batch, 3):
            return 0
        buffers = _target(header, batch, 2)
        spans = [struct.unpack_from("<qq", header, buffers + 4 + 16 * number)
                 for number in range(struct.unpack_from("<I", header, buffers)[0])]
        # A compressed buffer begins with its length when unpacked; -1: it is stored as it is.
        return sum(max(struct.unpack_from("<q", body, place)[0], length) for place, length in spans if length >= 8)
    except (struct.error, IndexError) as error:
        raise ValueError(f"a damaged message ({error})") from None


def _field(data: bytes, table: int, number: int) -> int:
    """The place of a field of a FlatBuffer's table; 0: it is not there."""
    names = table - struct.unpack_from("<i", data, table)[0]
    place = 4 + 2 * number
    if place >= struct.unpack_from("<H", data, names)[0]:
        return 0
    offset = struct.unpack_from("<H", data, names + place)[0]
    return table + offset if offset else 0


def _target(data: bytes, table: int, number: int) -> int:
    """The place to which a field of a FlatBuffer's table points."""
    place = _field(data, table, number)
    if not place:
        raise IndexError("a field is missing")
    return place + struct.unpack_from("<I", data, place)[0]


class Expanded:
    """Counts what the values of batches take once each row has its own, as they are read."""

    def __init__(self, path: Path, where: str):
        self._size, self._where, self._taken = path.stat().st_size, where, 0

    def add(self, batch) -> None:
        """One batch more. UserError if all so far take too much, or a column is of a kind that expands without bounds."""
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            for leaf in _leaves(column, f"{self._where} has a column '{name}'"):
                self._taken += leaf
                if self._taken > most_held(self._size):
                    raise too_much(self._where, self._size, most_held(self._size), f"holds, up to its column '{name}',",
                                   _REMEDY)


def _leaves(array, column: str) -> Iterator[int]:
    """The bytes that the values of a nested array's parts take, where they are more than what is stored."""
    import pyarrow
    from pyarrow import compute

    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        values = array.dictionary
        yield from _leaves(values, column)
        if str(values.type) in ("string", "large_string", "binary", "large_binary"):
            lengths = compute.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False)
            rows = array.indices.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
            yield int(lengths[rows].sum(dtype=np.int64))
        elif not pyarrow.types.is_primitive(values.type):
            raise UserError(f"{column} of {kind}, which is not read; write it without dictionaries of nested values.")
    elif str(kind) in ("string_view", "binary_view"):
        views = np.frombuffer(array.buffers()[1], np.int32).reshape(-1, 4)[array.offset:array.offset + len(array)]
        yield int(views[:, 0].sum(dtype=np.int64))
    elif pyarrow.types.is_struct(kind):
        for part in array.flatten():
            yield from _leaves(part, column)
    elif pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        yield from _leaves(array.flatten(), column)
    elif "list_view" in str(kind) or pyarrow.types.is_run_end_encoded(kind) or pyarrow.types.is_union(kind):
        raise UserError(f"{column} of {kind}, which is not read; write it as text or lists of text.")
