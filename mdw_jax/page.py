"""One small self-contained HTML page for a run: table, pictures, facts. It opens from a disk and asks no network."""

import base64
import numbers
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from mdw_jax.errors import UserError
from mdw_jax.files import write_atomically

_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b626b; --line: #d5d9de; --page: #fff; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #a3abb5; --line: #3a4048; --page: #15181b; --band: #1f2327; }
}
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--page); color: var(--ink);
       font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; }
tbody tr:nth-child(odd) { background: var(--band); }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, dt { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .25rem 1rem; }
dt, dd { margin: 0; }
dd { font-family: ui-monospace, monospace; font-size: .9rem; white-space: pre-wrap; }
@media (max-width: 30rem) { dl { display: block; } dd { margin-bottom: .5rem; } }
"""


def write_page(path, title: str, table_rows: Sequence[Mapping], pictures: Sequence[tuple],
               facts: Mapping[str, str]) -> None:
    """Write the page to `path`, atomically; a section without contents is left out.

    table_rows: one mapping a row, columns in order of first appearance; the first column names the row.
    pictures: (file, caption) pairs, embedded; the caption is the alternative text too.
    facts: what is needed to repeat the run: config, seeds, noise, versions.
    Raises UserError for a picture that is missing or of an unknown kind.
    """
    sections = [
        ("Results", _html_table(table_rows) if any(table_rows) else ""),
        ("Pictures", "\n".join(_figure(file, caption) for file, caption in pictures)),
        ("Facts", _facts(facts) if facts else ""),
    ]
    body = "\n".join(f"<section>\n<h2>{name}</h2>\n{html}\n</section>" for name, html in sections if html)
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""
    write_atomically(path, page.encode())


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
    return f"{float(value):,.2f}" if value == 0 or abs(value) >= 0.01 else f"{float(value):.2g}"


def _html_table(rows) -> str:
    columns = _columns(rows)
    kind = {name: ' class="number"' if numeric else "" for name, numeric in columns.items()}
    head = "".join(f'<th scope="col"{kind[name]}>{escape(name)}</th>' for name in columns)
    first = next(iter(columns))
    lines = []
    for row in rows:
        cells = (f'<th scope="row"{kind[name]}>{escape(_cell(row.get(name)))}</th>' if name == first else
                 f"<td{kind[name]}>{escape(_cell(row.get(name)))}</td>" for name in columns)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return (f'<div class="wide" tabindex="0" role="region" aria-label="Results table">\n<table>\n<thead><tr>{head}</tr>'
            f"</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>")


def _figure(file, caption: str) -> str:
    file = Path(file)
    mime = _MIME.get(file.suffix.lower())
    if mime is None:
        raise UserError(f"a page cannot show '{file}'; give it one of {', '.join(_MIME)}.")
    try:
        data = base64.b64encode(file.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"the picture '{file}' cannot be read ({error.strerror}); draw it again.") from None
    return (f'<figure>\n<img src="data:{mime};base64,{data}" alt="{escape(caption)}">\n'
            f"<figcaption>{escape(caption)}</figcaption>\n</figure>")


def _facts(facts) -> str:
    lines = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return "<dl>\n" + "\n".join(lines) + "\n</dl>"
