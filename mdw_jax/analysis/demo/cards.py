"""Images with words below them as HTML. All text is escaped, for it comes from data."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from mdw_jax.reporting import figures
from mdw_jax.reporting.text import printable

STYLE = """
.mdw-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.4rem, 1fr)); gap: 1rem .9rem; padding: 0;
             margin: .75rem 0; list-style: none; }
.mdw-cards.wide { grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
.mdw-cards li { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.mdw-cards.wide li { display: grid; grid-template-columns: 7rem 1fr; gap: .8rem; align-items: start; }
.mdw-cards img { display: block; width: 100%; height: auto; border-radius: 4px; margin: 0 0 .35rem; }
.mdw-cards img.small { image-rendering: pixelated; }
.mdw-cards p, .mdw-note { margin: 0 0 .25rem; font-size: .875rem; line-height: 1.35; }
.mdw-cards p, .mdw-cards b { color: var(--body-text-color); }
.mdw-cards p.soft, .mdw-cards b, .mdw-note { color: #59606a; }
.dark .mdw-cards p.soft, .dark .mdw-cards b, .dark .mdw-note { color: #a6aeb8; }
.mdw-cards b { font-weight: 600; font-size: .78rem; display: block; }
.mdw-note { max-width: 46rem; }
@media (max-width: 30rem) { button[role=tab] { padding-left: .35rem; padding-right: .35rem; } }
"""
_SIDE = 224  # pixels of the longer side at which images are sent
# Beyond HTML's own: Gradio fills values into templates of these marks.
_MARKS = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;", "\\": "&#92;"})


class Card(NamedTuple):
    """One image and its words.

    Attributes:
        image: (H, W, 3) uint8; None: no image.
        lines: (heading or "", text) each; plain text. Those without a heading are of less weight.
        alternative: what the image shows, for those who do not see it.
    """

    image: np.ndarray | None
    lines: Sequence[tuple[str, str]]
    alternative: str = ""


def safe(text: object) -> str:
    """Text of unknown origin as HTML that shows it."""
    return escape(printable(str(text))).translate(_MARKS)


def note(text: str) -> str:
    """A line of explanation."""
    return f'<p class="mdw-note">{safe(text)}</p>' if text else ""


def grid(cards: Iterable[Card], wide: bool = False) -> str:
    """A grid of cards; wide: the words stand beside the image."""
    items = "".join(f"<li>{_image(card)}<div>{''.join(_line(*line) for line in card.lines)}</div></li>" for card in cards)
    return f'<ul class="mdw-cards{" wide" if wide else ""}">{items}</ul>' if items else ""


def _line(heading: str, text: str) -> str:
    return f"<p><b>{safe(heading)}</b>{safe(text)}</p>" if heading else f'<p class="soft">{safe(text)}</p>'


def _image(card: Card) -> str:
    if card.image is None:
        return "<span></span>"
    small = ' class="small"' if min(card.image.shape[:2]) < 96 else ""
    return f'<img src="{figures.data_uri(card.image, _SIDE)}" alt="{safe(card.alternative)}"{small} loading="lazy">'
