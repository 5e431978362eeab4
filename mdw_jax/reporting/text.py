"""Values and tables as text for a terminal."""

import math
import numbers
from collections.abc import Mapping, Sequence

AT_EDGE = "(edge)"  # behind the score of students whose best step size or number of steps lies at the end of its range
AT_EDGE_MEANS = (f"{AT_EDGE}: the best number of steps, or factor of the step sizes, on val is the last that was allowed: "
                 "evaluate.steps, evaluate.lr_scales or evaluate.grow may be too small.")


def text(value) -> str:
    """A config value for people to read: "-" for None."""
    if value is None or value == "":
        return "-" if value is None else '""'
    return ",".join(map(text, value)) if isinstance(value, (list, tuple)) else str(value)


def bytes_text(count: float) -> str:
    """A number of bytes for people to read: "1.2 MB", "197.0 kB", "80 B"."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB" if count >= 1000 else f"{count:g} B"


def plural(count: int, noun: str) -> str:
    """(1, "set") -> "1 set"; (3, "set") -> "3 sets"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """A text of unknown origin, safe to print: "?" for control characters, and spaces for line breaks and the like."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def aligned(rows: Sequence[Mapping[str, str]]) -> str:
    """A table for a terminal: columns aligned by spaces, all rows with the keys of the first."""
    rows = [{printable(name): printable(cell) for name, cell in row.items()} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines: list[Mapping[str, str]] = [{name: name for name in rows[0]}, *rows]
    return "\n".join("  ".join(f"{line[name]:<{width}}" for name, width in widths.items()).rstrip() for line in lines)


def markdown_table(rows: Sequence[Mapping]) -> str:
    """A table as GitHub-flavored Markdown; columns of numbers are right-aligned. "" without rows."""
    if not any(rows):
        return ""
    columns = columns_of(rows)

    def line(cells):
        # Backslashes first: one before a pipe would undo the escape of the pipe.
        safe = (" ".join(printable(cell).replace("\\", "\\\\").replace("|", "\\|").split()) for cell in cells)
        return f"| {' | '.join(safe)} |\n"

    return "".join([line(columns), line("--:" if numeric else ":--" for numeric in columns.values()),
                    *(line(cell_text(row.get(name)) for name in columns) for row in rows)])


def columns_of(rows) -> dict[str, bool]:
    """Column names in order of first appearance, and whether each holds nothing but numbers."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: all(_is_number(row[name]) for row in rows if row.get(name) is not None) for name in names}


def _is_number(value) -> bool:
    """Whether a value is a number or the text of one: "43.0", "43.0 ± 0.4"."""
    if isinstance(value, str):
        head = value.split("±")[0].strip().rstrip("%")
        return head.replace(".", "", 1).replace(",", "").lstrip("+-").isdigit()
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def cell_text(value) -> str:
    """Text of a cell: nothing for None, two decimals for floats, thousands apart for whole numbers."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    return f"{float(value):,.2f}" if value == 0 or abs(float(value)) >= 0.01 else f"{float(value):.2g}"


def probability_text(value: float) -> str:
    """A probability for people, with no more digits than mean something: "< 0.001", "0.004", "0.03", "0.97", "> 0.99"."""
    if value < 0.001:
        return "< 0.001"
    if value > 0.99:
        return "> 0.99"
    return f"{value:.3f}" if value < 0.01 else f"{value:.2f}"


def scaled(number: float, step: int, prefixes: str) -> str:
    """Three digits and a prefix: (3.21e12, 1000, " KMGT") -> "3.21 T"."""
    power = min(int(math.log(max(number, 1), step)), len(prefixes) - 1)
    value = number / step ** power
    return f"{value:.3g} {prefixes[power].strip()}" if value < 999.5 else f"{value:.0f} {prefixes[power].strip()}"


def scaled_bytes(number: float) -> str:
    """Bytes for people: "3.5 GiB"."""
    return f"{scaled(number, 1024, ' KMGTP')}{'B' if number < 1024 else 'iB'}"


def time_in_words(seconds: float) -> str:
    """A duration with two digits or three, in the largest unit of which there is one: "3.2 h"."""
    unit, size = next((name, size) for name, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
                      if seconds >= size or size == 1)
    return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:.0f} {unit}"
