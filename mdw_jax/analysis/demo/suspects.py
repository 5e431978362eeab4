"""The suspected mismatches of the real data, a page at a time."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdw_jax.analysis.demo.cards import Card
from mdw_jax.analysis.mismatches.find import Judged, quality, suggest, suspected
from mdw_jax.analysis.mismatches.rows import COLUMNS, csv_rows, image_name
from mdw_jax.analysis.mismatches.words import nothing_listed, quality_in_words, rate_in_words, threshold_in_words
from mdw_jax.data.pairs import Pairs
from mdw_jax.io.spreadsheet import write_spreadsheet
from mdw_jax.reporting import figures
from mdw_jax.reporting.text import probability_text

PAGE = 12  # pairs shown at a time


class SuspectPage(NamedTuple):
    """A page of suspected pairs.

    Attributes:
        cards: its pairs.
        pages: how many pages there are.
        summary: how many pairs are listed, and how far to trust that, in sentences.
    """

    cards: list[Card]
    pages: int
    summary: str


def suspect_page(judged: Judged, pairs: Pairs, below: float, page: int) -> SuspectPage:
    """Page `page` (from 1; one beyond the end is the last) of the pairs below a probability."""
    rows = suspected(judged, below)
    if not len(rows):
        return SuspectPage([], 0, f"{nothing_listed(judged, below)} {rate_in_words(judged, 0)}")
    pages = -(-len(rows) // PAGE)
    page = min(max(1, int(page)), pages)
    shown = rows[(page - 1) * PAGE:page * PAGE]
    summary = f"{threshold_in_words(judged, below, len(rows), 0)} {rate_in_words(judged, len(rows))}"
    if judged.mismatched is not None:
        wrong = judged.mismatched[rows].sum()
        summary += (f" Of the listed pairs {wrong / len(rows):.1%} are mismatched, and "
                    f"{wrong / max(1, judged.mismatched.sum()):.1%} of all mismatched pairs are listed.")
    return SuspectPage(_cards(judged, pairs, shown), pages, summary)


def _cards(judged: Judged, pairs: Pairs, rows: np.ndarray) -> list[Card]:
    train, suggestions = pairs.train, suggest(judged, rows, quiet=True)
    rgb = figures.to_rgb(train.images[judged.image_of[rows]], pairs.log_mel is not None)
    cards = []
    for n, row in enumerate(rows.tolist()):
        caption, name = int(suggestions.caption[n]), image_name(train, int(judged.image_of[row]))
        better = ("nothing fits it better" if caption == row else train.captions[caption])
        lines = [(f"given, cosine {judged.similarity[row]:.2f}", train.captions[row]),
                 (f"fits better, cosine {suggestions.caption_similarity[n]:.2f}", better),
                 ("", f"belong together: p {_with_sign(judged.clean_probability[row])}"), ("", name)]
        if judged.mismatched is not None:
            lines.append(("", "truth: mismatched on purpose" if judged.mismatched[row] else
                          "truth: not mismatched on purpose"))
        cards.append(Card(rgb[n], lines, name))
    return cards


def _with_sign(probability: float) -> str:
    text = probability_text(probability)
    return text if text[0] in "<>" else f"= {text}"


def export_suspects(judged: Judged, pairs: Pairs, below: float, path) -> tuple[Path, str]:
    """Write all pairs below a probability as `mdw mismatches` does; the path, and what was written."""
    rows = suspected(judged, below)
    suggestions = suggest(judged, rows)
    count = write_spreadsheet(path, COLUMNS, csv_rows(judged, pairs.train, rows, suggestions))
    found = quality(judged, rows, suggestions) if len(rows) else None
    return Path(path), f"{count:,} pairs written. {quality_in_words(found) if found else ''}".strip()
