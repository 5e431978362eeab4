"""Delimited text: CSV, tables separated by tabs, pipes or semicolons, with a header or without, quoted or not."""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from mdw_jax.data.problems import Problems, quoted
from mdw_jax.data.tables.columns import is_image_file, knows, listed
from mdw_jax.errors import UserError

Lines = Iterator[tuple[int, str]]  # (number of the line from 1, the line with its end)

NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "pipe": "|", "semicolon": ";"}
"""What `data.delimiter` calls delimiters; a single character stands for itself."""
QUOTING = ("", "csv", "none")
_WORDS = {"\t": "tabs", ",": "commas", "|": "pipes", ";": "semicolons"}
_LEGAL = re.compile(r'"(?:[^"]|"")*"')


class Dialect(NamedTuple):
    """How the cells of a table are told apart.

    Attributes:
        delimiter: one character.
        columns: names of the columns; of a table without a header "image" and "caption", or "column 1" and on.
        header: whether the first line holds these names.
        quoting: whether cells may stand in quotation marks, as CSV has them.
    """

    delimiter: str
    columns: tuple[str, ...]
    header: bool
    quoting: bool

    def __str__(self) -> str:
        kind = f"a table separated by {_WORDS.get(self.delimiter, repr(self.delimiter))}"
        return f"{kind} {'with' if self.header else 'without'} a header{', quoted as CSV' if self.quoting else ''}"


def parse_delimiter(text: str) -> str:
    """The delimiter that `data.delimiter` names; "": to be found out.

    Raises:
        UserError: it is neither a name nor a single character.
    """
    delimiter = NAMES.get(text, text)
    if len(delimiter) > 1 or delimiter in ("\n", "\r", '"'):
        raise UserError(f"data.delimiter must be one character or one of {', '.join(NAMES)}, not '{text}'.")
    return delimiter


def find_dialect(lines: Lines, where: str, delimiter: str = "", quoting: str = "") -> Dialect:
    """The dialect of a table.

    Args:
        lines: all of its lines: one look at each that has a quotation mark or too many delimiters tells how it was
            written.
        where: the file, for messages.
        delimiter: the delimiter if it is known.
        quoting: `csv`, `none`, or "" to find out (`_is_quoted`).

    Raises:
        UserError: there is one column alone, no line, two columns of one name, or an unknown `quoting`.
    """
    if quoting not in QUOTING:
        raise UserError(f"data.quoting must be csv, none or empty, not '{quoting}'.")
    first = next((line for _, line in lines if line.strip()), None)
    if first is None:
        raise UserError(f"{where} is empty; give the table of the captions.")
    delimiter = delimiter or _delimiter(first)
    if delimiter not in first:
        raise UserError(f"the first line of {where} is {quoted(first.strip())}, without tabs, commas, pipes or semicolons "
                        "to tell an image from its caption; set data.delimiter, or give a table of images and captions.")
    cells = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True))
    cells = [cell.strip() for cell in cells]
    header = knows(cells) or not any(map(_names_an_image, cells))
    columns = tuple(cells) if header else _names_without_header(cells, delimiter)
    if doubled := [name for name, count in Counter(columns).items() if count > 1 and name]:
        raise UserError(f"{where} has two columns called '{doubled[0]}'; rename one.")
    quotes = quoting == "csv" or (quoting == "" and _is_quoted(first, lines, delimiter, len(columns)))
    return Dialect(delimiter, columns, header, quotes)


def _is_quoted(first: str, lines: Lines, delimiter: str, columns: int) -> bool:
    """Whether marks around cells are those of CSV, and not letters of the captions.

    Commas and semicolons: unless rows have more of them than a table of two columns can, without marks: then nobody quoted
    them. Other delimiters: only where all cells that begin with a mark are written as CSV has them, and one of them has a
    doubled mark inside, or the header stands in marks.
    """
    common = delimiter in ",;"
    doubled = first.startswith('"')
    for _, line in lines:
        if '"' not in line:
            if common and columns == 2 and line.count(delimiter) > 1:
                if is_image_file(line.partition(delimiter)[0]):  # else it may be in the middle of a cell of several lines
                    return False
            continue
        if common:
            continue
        for cell in line.rstrip("\r\n").split(delimiter):
            if cell.startswith('"'):
                if not _LEGAL.fullmatch(cell):
                    return False
                doubled |= '""' in cell[1:-1]
    return common or doubled


def _names_an_image(cell: str) -> bool:
    return is_image_file(cell) or cell.startswith(("http://", "https://"))


def _names_without_header(cells: list[str], delimiter: str) -> tuple[str, ...]:
    """Names for the columns of a table whose first row is a row: the image, and the caption beside it or at the end."""
    place = next(n for n, cell in enumerate(cells) if _names_an_image(cell))
    if place == 0 and delimiter == ",":
        return ("image", "caption")  # more cells are commas inside the caption
    caption = len(cells) - 1 if place < len(cells) - 1 else 0
    return tuple({place: "image", caption: "caption"}.get(n, f"column {n + 1}") for n in range(len(cells)))


def _delimiter(first: str) -> str:
    """The delimiter of a line, the likeliest first: tabs and pipes are rare inside cells, commas are not."""
    for delimiter in "\t|,;":
        if delimiter in first and knows(first.split(delimiter)):
            return delimiter
    return next((delimiter for delimiter in "\t|;," if delimiter in first), ",")


def rows(lines: Lines, dialect: Dialect, where: str, problems: Problems, joined: Counter) -> Iterator[tuple[int, dict]]:
    """The rows of a table: (number of the line, {column: text}).

    A row with more cells than columns is refused (a broken row), but for a table of two columns: there all that follows
    the first delimiter is the caption, as people write who do not quote commas. `joined` counts these.

    Args:
        lines: the lines, the header included.
        dialect: how they are to be read.
        where: the file, for messages.
        problems: gets broken rows.
        joined: counts captions by what was done to them, a clause each.
    """
    cells_of = _quoted_cells(lines, dialect, joined) if dialect.quoting else _plain_cells(lines, dialect)
    if dialect.header:
        next(cells_of, None)
    columns, delimiter = dialect.columns, dialect.delimiter
    for number, cells, raw in cells_of:
        if len(cells) > len(columns) == 2 and raw is not None:
            head, _, tail = raw.rstrip("\r\n").partition(delimiter)
            cells = [head.strip(), tail.strip() if dialect.quoting or delimiter == "|" else tail]
            joined[f"with {_WORDS.get(delimiter, 'delimiters')} that are not quoted: read to the end of the line"] += 1
        while len(cells) > len(columns) and not cells[-1].strip():
            cells = cells[:-1]  # a delimiter at the end of the line
        if len(cells) != len(columns):
            what = f"has {len(cells)} cell{'s' * (len(cells) != 1)} for {len(columns)} columns ({listed(columns)})"
            if not cells:
                what = "has a quotation mark that is not closed as CSV asks"
            problems.add("broken row", f"line {number} of {where} {what}: {quoted((raw or '').strip(), 80)}")
            continue
        yield number, dict(zip(columns, cells, strict=True))


def _plain_cells(lines: Lines, dialect: Dialect) -> Iterator[tuple[int, list[str], str]]:
    """(line, cells, the line) of a table where quotation marks are letters like others."""
    for number, line in lines:
        text = line.rstrip("\r\n")
        if text.strip():
            cells = text.split(dialect.delimiter)
            yield number, [cell.strip() for cell in cells] if dialect.delimiter == "|" else cells, text


def _quoted_cells(lines: Lines, dialect: Dialect, joined: Counter) -> Iterator[tuple[int, list[str], str | None]]:
    """(line, cells, the line or None where a cell goes over several) of CSV.

    A mark that opens a cell and is not closed as CSV asks would swallow the lines that follow. Where that happens in a
    table of two columns the line is taken as it is written, and the lines after it are read anew; in another it has no
    cells.
    """
    pending: deque = deque()
    used: list[tuple[int, str]] = []

    def feed() -> Iterator[str]:
        while True:
            entry = pending.popleft() if pending else next(lines, None)
            if entry is None:
                return
            used.append(entry)
            yield entry[1]

    reader = csv.reader(feed(), delimiter=dialect.delimiter, strict=True, skipinitialspace=True)
    while True:
        used.clear()
        error = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as failure:
            cells, error = [], failure
        number, first = used[0] if used else (0, "")
        if error is None and not cells:
            continue
        if error is None and (len(used) == 1 or not _swallowed(used, dialect)):
            yield number, cells, first if len(used) == 1 else None
            continue
        pending.extendleft(reversed(used[1:]))
        reader = csv.reader(feed(), delimiter=dialect.delimiter, strict=True, skipinitialspace=True)
        head, delimiter, tail = first.rstrip("\r\n").partition(dialect.delimiter)
        if len(dialect.columns) == 2 and delimiter and not head.lstrip().startswith('"'):
            joined["with quotation marks that are not those of CSV: read as they stand"] += 1
            yield number, [head.strip(), tail.strip()], first
        else:
            yield number, [], first


def _swallowed(used: list[tuple[int, str]], dialect: Dialect) -> bool:
    """Whether a cell over several lines holds lines that look like rows of the table themselves."""
    shape = _shape(used[0][1].partition(dialect.delimiter)[0])
    return any(dialect.delimiter in line and _shape(line.partition(dialect.delimiter)[0]) == shape
               for _, line in used[1:])


def _shape(cell: str) -> str:
    """What names of files have in common: their extension; of other cells, whether they are numbers."""
    cell = cell.strip().strip('"')
    return cell.rpartition(".")[2].lower() if is_image_file(cell) else re.sub(r"\d+", "0", cell)
