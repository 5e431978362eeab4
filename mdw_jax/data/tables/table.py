"""A table of captions: its form, found by what is in the file, its columns and its rows."""

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mdw_jax.data.decoding import reason
from mdw_jax.data.problems import Problems
from mdw_jax.data.tables import arrow_rows, budget, delimited, json_rows
from mdw_jax.data.tables.lines import check_encoding, head, is_gzipped, lines_of
from mdw_jax.errors import UserError


class Options(NamedTuple):
    """What a user may say of a text table: `data.delimiter`, `data.quoting`, `data.encoding`; "" is found out."""

    delimiter: str = ""
    quoting: str = ""
    encoding: str = ""


class Table(NamedTuple):
    """A table that is open.

    Attributes:
        form: what it is, in words.
        columns: names of its columns; of JSON those of the first row.
        read: names of columns (none: all) -> (line or number of the row, {column: value}) of each row; called once. Only
            Parquet and Arrow save by reading some columns alone.
        place: where a row is, with "{}" for its number, for messages.
        of_first_row: whether `columns` are those of the first row, and others may differ, as in JSON.
        read_as: counts captions by how they were read where they are odd; complete when the rows are at their end.
        packed: whether the file is compressed, so that its rows may be far more than it is.
    """

    form: str
    columns: tuple[str, ...]
    read: Callable[..., Iterator[tuple[int, dict]]]
    place: str = "row {}"
    of_first_row: bool = False
    read_as: Counter = Counter()
    packed: bool = False


def open_table(path: Path, problems: Problems, options: Options = Options()) -> Table:
    """Open a table of captions.

    Args:
        path: CSV, text separated by tabs, pipes or semicolons, JSON lines, a JSON array or object, each also gzipped;
            Parquet, Arrow.
        problems: gets what cannot be used while the rows are gone through.
        options: what is known of a text table.

    Raises:
        UserError: it is missing, damaged, empty, or of no form that is known; also while the rows are gone through.
    """
    where = f"'{path}'"
    check_encoding(options.encoding)
    if not path.is_file():
        raise UserError(f"there is no table {where}; give the path of the captions.")
    try:
        gzipped = is_gzipped(path)
        if gzipped:
            budget.check_unzipped(path)
        start = head(path)
        if start[:4] == arrow_rows.PARQUET or start[:6] == arrow_rows.ARROW_FILE or start[:4] == arrow_rows.ARROW_STREAM:
            kind = "Parquet" if start[:4] == arrow_rows.PARQUET else "Arrow"
            _refuse_unused(where, kind, options)
            return Table(kind, tuple(arrow_rows.column_types(path, where)), partial(arrow_rows.rows, path, where),
                         packed=True)
        if magic := _foreign(start):
            raise UserError(f"{where} is {magic}, not a table; give the table of the captions.")
        text = start.decode(options.encoding or "utf-8-sig", errors="replace").lstrip("\ufeff \t\r\n")
        if text.startswith(("{", "[")) and not options.delimiter:
            table = _json(path, text, options, where, problems)
        else:
            table = _delimited(path, options, where, problems)
        return table._replace(packed=gzipped)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where} cannot be read ({reason(error)}); fetch it again.") from None


def _json(path: Path, text: str, options: Options, where: str, problems: Problems) -> Table:
    kind = json_rows.kind_of(path, text)
    _refuse_unused(where, "JSON lines" if kind == "lines" else "JSON in UTF-8", options,
                   ("encoding",) if kind == "lines" else ())
    if kind == "array":
        form, rows = "a JSON array", json_rows.array_rows(path, where)
    elif kind == "lines":
        form, rows = "JSON lines", json_rows.line_rows(path, options.encoding, where, problems)
    else:
        form, rows = json_rows.document_rows(path, where)
    rows = _readable(rows, where)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{where} has no rows{f' that can be used ({problems})' if problems.counts else ''}; give the "
                        "table of the captions.")
    return Table(form, tuple(first[1]), lambda *columns: itertools.chain([first], rows),
                 "line {}" if kind == "lines" else "row {}", True)


def _refuse_unused(where: str, form: str, options: Options, taken: Sequence[str] = ()) -> None:
    """Raises UserError for a setting of text tables that a table of this form does not take."""
    if unused := [name for name, value in options._asdict().items() if value and name not in taken]:
        raise UserError(f"data.{unused[0]} is set, and {where} is {form}, which does not take it; leave it out.")


def _delimited(path: Path, options: Options, where: str, problems: Problems) -> Table:
    dialect = delimited.find_dialect(lines_of(path, options.encoding, where), where,
                                     delimited.parse_delimiter(options.delimiter), options.quoting)
    read_as: Counter = Counter()
    rows = delimited.rows(lines_of(path, options.encoding, where), dialect, where, problems, read_as)
    return Table(str(dialect), dialect.columns, lambda *columns: _readable(rows, where), "line {}", read_as=read_as)


def _readable(rows: Iterator[tuple[int, dict]], where: str) -> Iterator[tuple[int, dict]]:
    """`rows`, with a damaged file as a UserError."""
    try:
        yield from rows
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where} cannot be read to its end ({reason(error)}); fetch it again.") from None


def _foreign(start: bytes) -> str:
    """What a file is that cannot be a table, in words; "" if it may be one."""
    kinds = {b"PK\x03\x04": "a zip file (so are those of Excel)", b"\x89PNG": "a PNG image",
             b"\xff\xd8\xff": "a JPEG image", b"%PDF": "a PDF",
             b"\xd0\xcf\x11\xe0": "an Excel (or other Office) file",
             b"SQLite format 3": "an SQLite database", b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy array",
             b"\x80\x04": "a pickle, which is never read", b"\x80\x05": "a pickle, which is never read",
             b"\x80\x03": "a pickle, which is never read", b"\x80\x02": "a pickle, which is never read"}
    if found := next((words for magic, words in kinds.items() if start.startswith(magic)), ""):
        return found
    if start[257:262] == b"ustar":
        return "a tar file (read shards with data.name=webdataset)"
    return "an HTML page" if start.lstrip()[:9].lower() in (b"<!doctype", b"<html>") else ""
