"""Texts beside images that have several lines: several captions, or one that was wrapped."""

import re
from collections.abc import Sequence

from mdw_jax.errors import UserError

MODES = ("split", "join")
SPLIT_FROM = 0.9
"""Share of the texts that have two lines or more, from which on each line is taken for a caption."""
_LINE_ENDS = re.compile(r"\r\n|\n|\r")  # str.splitlines also ends lines at characters that captions may hold


def check_mode(mode: str) -> None:
    """Raises UserError for a `data.caption_lines` that does not exist; "" is found out."""
    if mode and mode not in MODES:
        raise UserError(f"there is no caption_lines '{mode}'; set data.caption_lines to split (each line of a text is a "
                        "caption) or join (its lines are one caption), or leave it empty to find out.")


def lines_of(text: str) -> list[str]:
    """The lines of a text that are not empty, without the spaces around them."""
    return [line for part in _LINE_ENDS.split(text) if (line := part.strip())]


def captions_of(text: str, mode: str) -> list[str]:
    """The captions in a text: with `split` its lines, with `join` one of all its lines; [] where all are empty."""
    lines = lines_of(text)
    return lines if mode == "split" or len(lines) < 2 else [" ".join(lines)]


def find_mode(texts: Sequence[str]) -> str:
    """`split` if nearly all texts have several lines, else `join`."""
    counts = [len(lines_of(text)) for text in texts]
    return mode_by_counts(sum(count > 1 for count in counts), sum(count > 0 for count in counts))


def mode_by_counts(several: int, filled: int) -> str:
    """As `find_mode`, where `several` of the `filled` texts that have any line have two or more."""
    return "split" if several and several >= SPLIT_FROM * filled else "join"


def several_lines(several: int, where: str, mode: str) -> str:
    """What was made of texts of several lines, in a sentence."""
    ways = {"split": "each line is a caption", "join": "their lines are one caption, joined by spaces"}
    other, = set(MODES) - {mode}
    return (f"{several} texts of {where} have several lines, and were read so that {ways[mode]}; with "
            f"data.caption_lines={other} {ways[other]}.")
