"""Parts of a self-contained HTML page: it opens from a disk, runs no code and loads nothing from the network."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape, unescape
from typing import NamedTuple

from mdw_jax.io.files import write_atomically
from mdw_jax.reporting.text import cell_text, columns_of

_MARK = "mdw-run"  # name of the meta element that says of what a page is
_LINES = (("#1b6ec2", "#6cb2f5"), ("#c2410c", "#fb9a5b"), ("#15803d", "#5fd38a"), ("#9333ea", "#c79bf7"),
          ("#b4861a", "#e8c268"), ("#0e8a92", "#5fd5dd"), ("#be185d", "#f58ab7"), ("#6b7280", "#b6bdc8"))
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #59606a; --line: #d5d9de; --page: #fff; --band: #f4f6f8;
        %(light)s }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #a6aeb8; --line: #3a4048; --page: #15181b; --band: #1f2327; %(dark)s }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 2rem; max-width: 72rem; background: var(--page); color: var(--ink);
       font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 1.75rem 0 .25rem; }
p { max-width: 46rem; margin: .25rem 0 .75rem; }
.soft, figcaption, dt { color: var(--soft); font-size: .9rem; }
.verdict { background: var(--band); border-left: 4px solid var(--c0); border-radius: 6px; padding: .6rem .9rem;
           margin: .75rem 0; max-width: 60rem; }
.verdict p { max-width: none; margin: .3rem 0; } .verdict p:first-child { font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1rem 0;
         padding: 0; list-style: none; }
.tiles li { background: var(--band); border-radius: 6px; padding: .75rem .9rem; }
.tiles strong { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; line-height: 1.35; display: block; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; font-size: .95rem; }
th, td { padding: .35rem .45rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; white-space: normal; min-width: 11rem; max-width: 18rem; }
tbody tr:nth-child(odd) { background: var(--band); }
figure { margin: 0; }
img { display: block; max-width: 100%%; height: auto; border-radius: 3px; }
.small { image-rendering: pixelated; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.7rem, 1fr)); gap: .9rem .75rem; padding: 0;
         margin: .75rem 0; list-style: none; }
.pairs img { width: 100%%; }
.pairs figcaption { line-height: 1.3; margin-top: .3rem; font-size: .8rem; }
.pairs.two { grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); }
.strips { padding: 0; margin: .75rem 0; list-style: none; display: grid; gap: .3rem; max-width: 46rem; }
.strips img { width: 100%%; }
.moments { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; text-align: center; color: var(--soft);
           font-size: .85rem; line-height: 1.25; }
.matches { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: .9rem 1.25rem; padding: 0;
           margin: .75rem 0; list-style: none; }
.matches li { display: grid; grid-template-columns: 5rem 1fr; gap: .75rem; align-items: start; font-size: .9rem;
              line-height: 1.35; }
.matches img { width: 5rem; }
.heat { max-width: 24rem; }
.heat img { width: 100%%; }
.drawing img { background: #fff; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%%), 1fr)); gap: 1.75rem;
          margin: .75rem 0; }
.chart { max-width: 29rem; }
.chart figcaption { margin-bottom: .3rem; } .chart b { color: var(--ink); }
.chart svg { width: 100%%; height: auto; display: block; }
.chart text { fill: var(--soft); font-size: 11.5px; }
.chart polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.chart path { fill: none; stroke-width: 2; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
%(lines)s
.key { display: flex; flex-wrap: wrap; gap: .15rem 1rem; padding: 0; margin: .3rem 0 0; list-style: none;
       font-size: .85rem; line-height: 1.35; }
.key svg { width: 24px; height: 8px; display: inline-block; margin-right: .4rem; vertical-align: middle; }
details { padding: .25rem 0; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
.section { border-top: 1px solid var(--line); padding: .2rem 0; }
.words dd { font: inherit; font-size: .9rem; }
.section > summary h2 { display: inline; font-size: 1.05rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .25rem 1rem; margin: .5rem 0; }
dt, dd { margin: 0; }
dd { font-family: ui-monospace, monospace; font-size: .85rem; white-space: pre-wrap; }
@media (max-width: 30rem) { dl { display: block; } dd { margin-bottom: .5rem; } h2 { margin-top: 1.25rem; }
  tbody th { min-width: 7rem; } td:not(.number) { white-space: normal; min-width: 4.5rem; }
  td:last-child { min-width: 9rem; } th, td { padding: .25rem .4rem; line-height: 1.3; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .5rem; } .tiles li { padding: .5rem .7rem; }
  .tiles strong { font-size: 1.4rem; }
  .pairs { grid-template-columns: repeat(3, 1fr); } .pairs.two { grid-template-columns: repeat(2, 1fr); } }
""" % {"light": " ".join(f"--c{n}: {light};" for n, (light, _) in enumerate(_LINES)),
       "dark": " ".join(f"--c{n}: {dark};" for n, (_, dark) in enumerate(_LINES)),
       "lines": "\n".join(f".c{n} {{ stroke: var(--c{n}); fill: var(--c{n}); }}" for n in range(len(_LINES)))}


class Section(NamedTuple):
    """A part of a page under a heading of its own.

    Attributes:
        heading: plain text.
        line: plain text that explains it.
        content: HTML; a section without any is left out.
        folded: whether it is shown as its heading alone, until a reader opens it.
    """

    heading: str
    line: str
    content: str
    folded: bool = True


def page(title: str, top: str, sections: Iterable[Section], *, mark: str = "", script: str = "") -> str:
    """A page.

    Args:
        title: plain text.
        top: HTML between the title and the sections.
        sections: in order.
        mark: of what the page is, read back by `mark_of`.
        script: JavaScript of a page that is served and not written to a file. It may fetch from its own server.

    Returns:
        HTML.
    """
    body = "\n".join(map(_section, filter(lambda section: section.content, sections)))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{sha256}'; connect-src 'self'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="{_MARK}" content="{escape(mark)}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{top}
{body}
</main>
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""


def _section(section: Section) -> str:
    heading, line = f"<h2>{escape(section.heading)}</h2>", f'<p class="soft">{escape(section.line)}</p>'
    if section.folded:
        return (f'<section>\n<details class="section"><summary>{heading}</summary>\n{line}\n{section.content}\n</details>\n'
                "</section>")
    return f"<section>\n{heading}\n{line}\n{section.content}\n</section>"


def write_page(path, text: str) -> int:
    """Write a page atomically; return its size in bytes."""
    data = text.encode("utf-8", "replace")  # a lone surrogate in a caption becomes a question mark
    write_atomically(path, data)
    return len(data)


def mark_of(path) -> str | None:
    """The mark of a page that was written here; None for any other file. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        head = file.read(4096).decode("utf-8", "replace")
    found = re.search(f'<meta name="{_MARK}" content="([^"]*)">', head)
    return unescape(found[1]) if found else None


def html_table(rows: Sequence[Mapping], name: str) -> str:
    """A table in a box that scrolls; the first column names the row.

    Args:
        rows: {column: value} each; columns come in order of first appearance.
        name: what the table shows, for screen readers.

    Returns:
        HTML; "" without rows.
    """
    if not any(rows):
        return ""
    columns = columns_of(rows)
    kind = {name: ' class="number"' if numeric else "" for name, numeric in columns.items()}
    head = "".join(f'<th scope="col"{kind[name]}>{escape(name)}</th>' for name in columns)
    first = next(iter(columns))
    lines = []
    for row in rows:
        cells = (f'<th scope="row"{kind[name]}>{escape(cell_text(row.get(name)))}</th>' if name == first else
                 f"<td{kind[name]}>{escape(cell_text(row.get(name)))}</td>" for name in columns)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return (f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}">\n<table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>")


def tiles(numbers: Sequence[tuple[str, str]]) -> str:
    """Large numbers: (number, what it is) each."""
    items = (f"<li><strong>{escape(number)}</strong><span>{escape(words)}</span></li>\n" for number, words in numbers)
    return f'<ul class="tiles">{"".join(items)}</ul>'


def image(source: str, alternative: str, small: bool = False,
          size: tuple[int, int] | None = None) -> str:
    """An image.

    Args:
        source: a data URI.
        alternative: text for those who do not see it.
        small: it has few pixels, and is enlarged without smoothing.
        size: width and height, of an image that is decoded when it comes into sight and whose place is kept until then.
    """
    how = " class=small" * small
    if size is not None:
        how += f" loading=lazy decoding=async width={size[0]} height={size[1]}"
    return f'<img{how} src="{source}" alt="{escape(alternative)}">'


def figures(pairs: Iterable[tuple[str, str]], kind: str = "pairs") -> str:
    """A grid of (image as HTML, caption as text); `kind` is its CSS class."""
    return f'<ul class="{kind}">' + "".join(
        f"<li><figure>{shown}<figcaption>{escape(caption)}</figcaption></figure></li>\n" for shown, caption in pairs
    ) + "</ul>"


def folded(parts: Sequence[tuple[str, str]], opened: int = 1) -> str:
    """Parts under headings that open and close them; a single part is shown without its heading.

    Args:
        parts: (heading, HTML) each; parts without HTML are left out.
        opened: how many are open at first.
    """
    parts = [part for part in parts if part[1]]
    if len(parts) < 2:
        return "".join(content for _, content in parts)
    return "\n".join(f"<details{' open' * (n < opened)}><summary>{escape(heading)}</summary>\n{content}\n</details>"
                     for n, (heading, content) in enumerate(parts))


def paragraphs(lines: Iterable[str], kind: str = "") -> str:
    """Paragraphs of plain text; `kind` is their CSS class."""
    return "".join(f'<p{f" class={kind}" if kind else ""}>{escape(line)}</p>\n' for line in lines)


def unfolding(heading: str, content: str) -> str:
    """HTML that a reader opens by its heading; "" without content."""
    return f"<details><summary>{escape(heading)}</summary>\n{content}\n</details>" if content else ""


def facts(entries: Mapping[str, object]) -> str:
    """A list of names and values."""
    lines = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in entries.items())
    return "<dl>\n" + "\n".join(lines) + "\n</dl>" if entries else ""
