"""Rows of Parquet and Arrow files, by pyarrow."""

from collections.abc import Iterator
from pathlib import Path

from mdw_jax.data.decoding import reason
from mdw_jax.data.tables import arrow_budget
from mdw_jax.data.tables.budget import most_held
from mdw_jax.errors import UserError

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
"""The first bytes of these files."""
_DAMAGED = (OSError, ValueError, NotImplementedError, LookupError)  # what pyarrow raises on damaged files
_CLOSER = 2**26  # bytes that a column of Parquet may become without being watched
_ROWS = 4096  # that exist as objects of Python at a time


def column_types(path: Path, where: str) -> dict[str, str]:
    """{column: its type, as Arrow spells it} of a Parquet or Arrow file."""
    try:
        with _open(path, where) as batches:
            return {field.name: str(field.type) for field in batches.schema}
    except _DAMAGED as error:
        raise _unreadable(where, error) from None


def rows(path: Path, where: str, *columns: str) -> Iterator[tuple[int, dict]]:
    """(number of the row from 1, {column: value}); `columns`: names or paths into nested ones; none: all.

    Raises:
        UserError: it is damaged, or pyarrow is missing.
    """
    number = 0
    try:
        with _open(path, where) as batches:
            names = batches.schema.names
            roots = [name for name in names
                     if any(column == name or column.startswith(f"{name}/") for column in columns)] or names
            for batch in batches.read(roots):
                for first in range(0, batch.num_rows, _ROWS):
                    for row in batch.slice(first, _ROWS).to_pylist():
                        number += 1
                        yield number, row
    except _DAMAGED as error:
        raise _unreadable(where, error) from None


def check(path: Path, where: str) -> None:
    """Go through what of a file may be far more than is stored, for those who read it by other means.

    Raises:
        UserError: it is too much (`arrow_budget`), the file is damaged, or pyarrow is missing.
    """
    try:
        with _open(path, where) as batches:
            for _ in batches.read(batches.schema.names, expanding=True):
                pass
    except _DAMAGED as error:
        raise _unreadable(where, error) from None


def _unreadable(where: str, error: Exception) -> UserError:
    return UserError(f"{where} is not a readable Parquet or Arrow file ({reason(error)}); fetch it again.")


class _open:
    """The batches of a file, whichever of the three forms it has."""

    def __init__(self, path: Path, where: str):
        try:
            import pyarrow  # an optional dependency, and slow to import
            import pyarrow.parquet
        except ImportError as error:
            raise UserError(f"{where} is a Parquet or Arrow file, which needs pyarrow: pip install 'mdw-jax[parquet]', or "
                            "give a CSV file.") from error
        with open(path, "rb") as file:
            start = file.read(6)
        self._path, self._where = path, where
        self._parquet = start[:4] == PARQUET
        if self._parquet:
            self._file = pyarrow.parquet.ParquetFile(path)
            self.schema = self._file.schema_arrow
        else:
            self._source = pyarrow.memory_map(str(path))
            # An Arrow file is a stream behind eight bytes, and an index. Read as the stream, it holds what was checked.
            first = 8 if start == ARROW_FILE else 0
            arrow_budget.check_messages(self._source, path.stat().st_size, where, first)
            self._source.seek(first)
            self._file = pyarrow.ipc.open_stream(self._source)
            self.schema = self._file.schema

    def read(self, columns: list[str], expanding: bool = False) -> Iterator:
        """Record batches of these columns, or of those among them that may be far more than is stored.

        Raises:
            UserError: what they hold is too much (`arrow_budget`).
        """
        expanded = arrow_budget.Expanded(self._path, self._where)
        for batch in self._batches(columns, expanding):
            expanded.add(batch)
            yield batch

    def _batches(self, columns: list[str], expanding: bool) -> Iterator:
        if self._parquet:
            # Images, which are not gone through twice, have small dictionaries, if any.
            closer = most_held(self._path.stat().st_size) if expanding else _CLOSER
            packed = arrow_budget.dictionary_columns(self._path, self._where, columns, closer)
            if packed:
                import pyarrow.parquet

                self._file.close()
                self._file = pyarrow.parquet.ParquetFile(self._path, read_dictionary=packed)
            if packed or not expanding:
                yield from self._file.iter_batches(_ROWS, columns=packed if expanding else columns)
        else:
            for batch in self._file:
                chosen = batch.select(columns)
                for column in chosen.columns:  # offsets of a damaged file lead anywhere in the memory
                    column.view(_of_bytes(column.type)).validate(full=True)
                yield chosen

    def __enter__(self) -> "_open":
        return self

    def __exit__(self, *error) -> None:
        (self._file if self._parquet else self._source).close()


def _of_bytes(kind):
    """An Arrow type with bytes for texts: one that is no Unicode is a broken row, and not a broken file."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([kind.field(n).with_type(_of_bytes(kind.field(n).type)) for n in range(kind.num_fields)])
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        make = pyarrow.list_ if pyarrow.types.is_list(kind) else pyarrow.large_list
        return make(kind.value_field.with_type(_of_bytes(kind.value_type)))
    return {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}.get(kind, kind)
