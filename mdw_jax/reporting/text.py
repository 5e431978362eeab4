"""Values and tables as text for a terminal."""

import numbers
from collections.abc import Mapping, Sequence


def text(value) -> str:
    """A value for people to read: "-" for none."""
    if value is None or value == "":
        return "-" if value is None else '""'
    return ",".join(map(text, value)) if isinstance(value, (list, tuple)) else str(value)


def aligned(rows: list[dict[str, str]]) -> str:
    """Columns for a terminal."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = [dict(zip(rows[0], rows[0], strict=True)), *rows]
    return "\n".join("  ".join(f"{line[name]:<{width}}" for name, width in widths.items()).rstrip() for line in lines)


def markdown_table(rows: Sequence[Mapping]) -> str:
    """The same table as GitHub-flavoured Markdown, one line a row; columns of numbers are right-aligned.

    No rows give no text.
    """
    if not any(rows):
        return ""
    columns = _columns(rows)

    def line(cells):
        # Backslashes first: one before a pipe would otherwise undo the pipe's own.
        safe = (" ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split()) for cell in cells)
        return f"| {' | '.join(safe)} |\n"

    return "".join([line(columns), line("--:" if numeric else ":--" for numeric in columns.values()),
                    *(line(_cell(row.get(name)) for name in columns) for row in rows)])


def _columns(rows) -> dict[str, bool]:
    """Column names in order of first appearance, and whether each holds nothing but numbers."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: all(_is_number(row[name]) for row in rows if row.get(name) is not None) for name in names}


def _is_number(value) -> bool:
    """Also for what is printed as one: "43.0", "43.0 ± 0.4"."""
    if isinstance(value, str):
        head = value.split("±")[0].strip().rstrip("%")
        return head.replace(".", "", 1).replace(",", "").lstrip("+-").isdigit()
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _cell(value) -> str:
    """Text of a cell: nothing for None, two decimals for floats, thousands apart for whole numbers."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    return f"{float(value):,.2f}" if value == 0 or abs(float(value)) >= 0.01 else f"{float(value):.2g}"
