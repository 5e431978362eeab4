"""CSV files that people open in a spreadsheet."""

import codecs
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mdw_jax.errors import UserError
from mdw_jax.io.files import replacing

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def safe_cell(value):
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe in front.

    Numbers stay numbers, negative ones too. A spreadsheet would run what a caption says after "=" (CSV injection, OWASP).
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def refuse_other(path, columns: Sequence[str]) -> None:
    """Refuse a file that `write_spreadsheet` did not write with these columns: its first line is another one.

    Args:
        path: where a list is about to be written. What does not exist, or is empty, may be written.
        columns: the header.

    Raises:
        UserError: such a file is there, or it cannot be read.
    """
    path, header = Path(path), io.StringIO()
    csv.writer(header).writerow(columns)
    try:
        if not path.is_file() or not path.stat().st_size:
            return
        with open(path, "rb") as file:
            first = file.readline(len(header.getvalue()) + 8)  # a line of another file may have no end
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror}); choose another place.") from None
    if first.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n") != header.getvalue().rstrip("\r\n").encode():
        raise UserError(f"'{path}' is not such a list that mdw wrote, and would be overwritten; choose another place, or "
                        "delete it.")


def write_spreadsheet(path, columns: Sequence[str], rows: Iterable[Mapping]) -> int:
    """Write a CSV for people, row by row and atomically: UTF-8 with a byte order mark, cells by `safe_cell`.

    Excel takes a CSV without the mark for one of the local code page, and breaks what is not ASCII. Readers that want
    none: encoding "utf-8-sig" of Python; pandas and R skip it by themselves.

    Args:
        path: the file; an older list with the same columns is replaced.
        columns: the header.
        rows: {column: value} each; None is an empty cell.

    Returns:
        The number of rows.

    Raises:
        UserError: it cannot be written there, or a file with another header is there (`refuse_other`).
    """
    path, count = Path(path), 0
    refuse_other(path, columns)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, "w", encoding="utf-8-sig", errors="replace", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for row in rows:
                count += 1
                writer.writerow({name: safe_cell(row.get(name)) for name in columns})
    except OSError as error:
        raise UserError(f"cannot write '{path}' ({error.strerror}); choose another place.") from None
    return count
