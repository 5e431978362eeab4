"""Delimited text: CSV, tables separated by tabs, pipes or semicolons, with a header or without, quoted or not."""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from mdw_jax.data.problems import Problems, quoted
from mdw_jax.data.tables.columns import is_image_file, knows, listed
from mdw_jax.data.tables.lines import LONGEST_LINE
from mdw_jax.errors import UserError

Lines = Iterator[tuple[int, str]]  # (number of the line from 1, the line with its end)

NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "pipe": "|", "semicolon": ";"}
"""What `data.delimiter` calls delimiters; a single character stands for itself."""
QUOTING = ("", "csv", "none")
_WORDS = {"\t": "tabs", ",": "commas", "|": "pipes", ";": "semicolons"}


class Dialect(NamedTuple):
    """How the cells of a table are told apart.

    Attributes:
        delimiter: one character.
        columns: names of the columns; of a table without a header "image" and "caption", or "column 1" and on.
        header: whether the first line holds these names.
        quoting: whether cells may stand in quotation marks, as CSV has them.
        escape: what stands before marks and delimiters inside cells, as some programs write; None: nothing does.
        trailing: whether rows end with a delimiter that means nothing.
        skipped_lines: lines before the header.
    """

    delimiter: str
    columns: tuple[str, ...]
    header: bool
    quoting: bool
    escape: str | None = None
    trailing: bool = False
    skipped_lines: int = 0

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
        lines: all of its lines: how they were written is told by those with quotation marks or too many delimiters.
        where: the file, for messages.
        delimiter: the delimiter if it is known.
        quoting: `csv`, `none`, or "" to find out (`_Evidence.quotes`).

    Raises:
        UserError: there is one column alone, no line, two columns of one name, several columns without a header, or an
            unknown `quoting`.
    """
    if quoting not in QUOTING:
        raise UserError(f"data.quoting must be csv, none or empty, not '{quoting}'.")
    first, skipped = "", 0
    for _, line in lines:
        named = re.fullmatch(r"sep=(.)", line.strip())  # Excel's way to name the delimiter
        if named or not line.strip() or line.startswith("# "):
            delimiter, skipped = delimiter or (named[1] if named else ""), skipped + 1
            continue
        first = line
        break
    if not first:
        raise UserError(f"{where} is empty; give the table of the captions.")
    delimiter = delimiter or _delimiter(first)
    if delimiter not in first:
        raise UserError(f"the first line of {where} is {quoted(first.strip(), 80)}, without tabs, commas, pipes or "
                        "semicolons to tell an image from its caption; set data.delimiter, or give a table of images and "
                        "captions.")
    cells = [cell.strip() for cell in _cells(first, delimiter) or first.split(delimiter)]
    header = not any(map(_names_an_image, cells))
    evidence = _Evidence(delimiter, len(cells) if header else 2)
    for _, line in lines:
        evidence.see(line)
    if not header and delimiter not in ",;":
        evidence.see(first)
    columns = tuple(cells) if header else _names_without_header(cells, delimiter, where, evidence)
    if doubled := [name for name, count in Counter(columns).items() if count > 1 and name]:
        raise UserError(f"{where} has two columns called '{doubled[0]}'; rename one.")
    quotes = quoting == "csv" or (quoting == "" and evidence.quotes(first.startswith('"')))
    trailing = evidence.rows > 0 and evidence.trailing == evidence.rows and not evidence.unquoted
    return Dialect(delimiter, columns, header, quotes, "\\" if evidence.escaped else None, trailing, skipped)


def _cells(line: str, delimiter: str) -> list[str] | None:
    """The cells of a line that is written as CSV; None where it is not, or ends within a cell."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True))
    except (csv.Error, StopIteration):
        return None


class _Evidence:
    """How the cells of a table were written, by its rows.

    Attributes:
        rows: how many there are.
        unquoted: those with more cells than columns and no marks around them.
        quoted: those with a cell that only a program puts into marks, for a delimiter, a comma or a mark inside.
        wrapped: those with another cell in marks.
        illegal: those where a mark opens a cell and is not closed as CSV asks.
        bare_comma: those with a comma outside of marks.
        trailing: those that end with a delimiter beyond the columns.
        escaped: whether marks or delimiters have backslashes before them, and no marks are doubled.
    """

    def __init__(self, delimiter: str, columns: int):
        self._delimiter, self._columns = delimiter, columns
        self.rows = self.unquoted = self.quoted = self.wrapped = self.illegal = self.bare_comma = self.trailing = 0
        self._backslashes = self._doubled = 0
        self.counts: Counter = Counter()  # numbers of cells

    @property
    def escaped(self) -> bool:
        return self._backslashes > 0 and not self._doubled

    def see(self, line: str) -> None:
        """Take a line into account."""
        text = line.rstrip("\r\n")
        if not text.strip():
            return
        self.rows += 1
        count = text.count(self._delimiter) + 1
        self.trailing += count > self._columns and text.endswith(self._delimiter)
        if '"' not in text:
            self.counts[count] += 1
            # Not in the middle of a cell of several lines: its first cell is a file.
            self.unquoted += (count > self._columns and bool(text.split(self._delimiter, self._columns)[-1].strip(
                f" {self._delimiter}")) and is_image_file(text.partition(self._delimiter)[0]))
            self.bare_comma += "," in text
            self._backslashes += f"\\{self._delimiter}" in text
            return
        self._backslashes += '\\"' in text or f"\\{self._delimiter}" in text
        self._doubled += bool(re.search(r'[^,;|\t"]""', text))
        cells = _cells(line, self._delimiter)
        self.counts[len(cells) if cells else count] += 1
        opened = text.startswith('"') or f'{self._delimiter}"' in text or f'{self._delimiter} "' in text
        if cells is None:
            self.illegal += opened
        elif opened and any(mark in cell for cell in cells for mark in (self._delimiter, '"', ",")):
            self.quoted += 1
        elif opened:
            self.wrapped += 1
        else:
            self.bare_comma += "," in text

    def quotes(self, header_in_marks: bool) -> bool:
        """Whether marks around cells are those of CSV, and not letters of the captions.

        Commas and semicolons: unless most rows that needed marks have none. Other delimiters: only where the header stands
        in marks, or no mark is odd and either marks are doubled inside cells, as programs do, or all cells with a comma
        have marks around them, as Excel does.
        """
        if self._delimiter in ",;":
            return self.quoted >= self.unquoted
        excel = self.quoted > 0 and not self.bare_comma and not self.wrapped
        return header_in_marks or (not self.illegal and (self._doubled > 0 or excel))


def _names_an_image(cell: str) -> bool:
    return is_image_file(cell) or cell.startswith(("http://", "https://"))


def _names_without_header(cells: list[str], delimiter: str, where: str, evidence: _Evidence) -> tuple[str, ...]:
    """Names for the two columns of a table whose first row is a row: the image and its caption, in their order.

    Raises:
        UserError: there are more columns, and which holds the captions is not known.
    """
    place = next(n for n, cell in enumerate(cells) if _names_an_image(cell))
    several = len(cells) > 2 and (delimiter != "," or place > 0 or set(evidence.counts) <= {len(cells)})
    if several and not cells[place].startswith(("http://", "https://")):
        raise UserError(f"{where} has no header, and {len(cells)} columns ({listed(cells)}): which of them holds the "
                        "captions is not known; write a first line with their names, such as image,number,caption.")
    caption = 1 if place == 0 else 0
    return tuple({place: "image", caption: "caption"}.get(n, f"column {n + 1}")
                 for n in range(2 if place == 0 and delimiter == "," else len(cells)))


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
    for _ in range(dialect.skipped_lines):
        next(lines, None)
    cells_of = _quoted_cells(lines, dialect, joined, where) if dialect.quoting else _plain_cells(lines, dialect)
    if dialect.header:
        next(cells_of, None)
    columns, delimiter = dialect.columns, dialect.delimiter
    for number, cells, raw in cells_of:
        if cells is None:
            problems.add("broken row", f"line {number} of {where} begins a cell in quotation marks that the end of the "
                         f"file does not close, so that the file seems to be cut off: {quoted((raw or '').strip(), 80)}")
            joined[f"in line {number}, in quotation marks that the end of the file does not close: left out; the file "
                   "seems to be cut off, and rows may be missing"] += 1
            continue
        while dialect.trailing and len(cells) > len(columns) and not cells[-1].strip():
            cells = cells[:-1]
        if len(cells) > len(columns) == 2 and raw is not None:
            head, _, tail = raw.rstrip("\r\n").partition(delimiter)
            cells = [head.strip(), tail.strip() if dialect.quoting or delimiter == "|" else tail]
            joined[f"with {_WORDS.get(delimiter, 'delimiters')} that are not quoted: read to the end of the line"] += 1
        while len(cells) > len(columns) and not cells[-1].strip():
            cells = cells[:-1]  # a delimiter at the end of the line
        if cells and not any(cell.strip() for cell in cells):
            continue  # as spreadsheets leave below a table
        if tuple(cell.strip() for cell in cells) == columns:
            joined["that were the header once more: left out"] += 1
            continue
        if not cells:
            problems.add("broken row", f"line {number} of {where} has a quotation mark that is not closed as CSV asks: "
                         f"{quoted((raw or '').strip(), 80)}")
            continue
        if len(cells) != len(columns):
            problems.add("broken row", f"line {number} of {where} has {len(cells)} cells for {len(columns)} columns "
                         f"({listed(columns)}): {quoted((raw or '').strip(), 80)}")
            continue
        yield number, dict(zip(columns, cells, strict=True))


def _plain_cells(lines: Lines, dialect: Dialect) -> Iterator[tuple[int, list[str] | None, str]]:
    """(line, cells, the line) of a table where quotation marks are letters like others."""
    for number, line in lines:
        text = line.rstrip("\r\n")
        if text.strip():
            cells = text.split(dialect.delimiter)
            if dialect.escape and dialect.escape in text:
                cells = _unescaped(text, dialect)
            yield number, [cell.strip() for cell in cells] if dialect.delimiter == "|" else cells, text


def _unescaped(text: str, dialect: Dialect) -> list[str]:
    """The cells of a line in which delimiters inside cells have a backslash before them."""
    return next(csv.reader([text], delimiter=dialect.delimiter, quoting=csv.QUOTE_NONE, escapechar=dialect.escape))


def _quoted_cells(lines: Lines, dialect: Dialect, joined: Counter,
                  where: str) -> Iterator[tuple[int, list[str] | None, str | None]]:
    """(line, cells, the line or None where a cell goes over several) of CSV.

    A mark that opens a cell and is not closed as CSV asks would swallow the lines that follow. Where that happens in a
    table of two columns the line is taken as it is written, and the lines after it are read anew; in another it has no
    cells ([]). The cells of a row within which the file ends are None.
    """
    pending: deque = deque()
    used: list[tuple[int, str]] = []
    taken = 0  # characters of `used`

    def feed() -> Iterator[str]:
        nonlocal taken
        while True:
            entry = pending.popleft() if pending else next(lines, None)
            if entry is None:
                return
            used.append(entry)
            taken += len(entry[1])
            if len(used) > 1 and taken > LONGEST_LINE:
                raise UserError(f"the row that begins in line {used[0][0]} of {where} has more than {LONGEST_LINE:,} "
                                "characters in its cells, and no row of captions has; a quotation mark may not be closed.")
            yield entry[1]

    def cells_of_feed():
        return csv.reader(feed(), delimiter=dialect.delimiter, strict=True, skipinitialspace=True,
                          escapechar=dialect.escape)

    reader = cells_of_feed()
    while True:
        used.clear()
        taken = 0
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
        if _is_cut_off(error, used, dialect):
            yield number, None, first
            return
        pending.extendleft(reversed(used[1:]))
        reader = cells_of_feed()
        head, delimiter, tail = first.rstrip("\r\n").partition(dialect.delimiter)
        if len(dialect.columns) == 2 and delimiter and not head.lstrip().startswith('"'):
            joined["with quotation marks that are not those of CSV: read as they stand"] += 1
            yield number, [head.strip(), tail.strip()], first
        else:
            yield number, [], first


def _is_cut_off(error: csv.Error | None, used: list[tuple[int, str]], dialect: Dialect) -> bool:
    """Whether the file ends within a cell of the row of `used`: without the end of a line, and no row is swallowed.

    A mark that is not closed in the middle of a table reaches its end as well; then later lines name images too.
    """
    if str(error) != "unexpected end of data" or used[-1][1].endswith(("\n", "\r")):
        return False
    names = [any(is_image_file(cell.strip().strip('"')) for cell in line.split(dialect.delimiter)) for _, line in used]
    return len(used) == 1 or (names[0] and not any(names[1:]))


def _swallowed(used: list[tuple[int, str]], dialect: Dialect) -> bool:
    """Whether a cell over several lines holds lines that look like rows of the table themselves: they begin with a file."""
    starts = [line.partition(dialect.delimiter)[0].strip().strip('"') for _, line in used]
    return is_image_file(starts[0]) and any(
        is_image_file(start) and dialect.delimiter in line for start, (_, line) in zip(starts[1:], used[1:], strict=True))
