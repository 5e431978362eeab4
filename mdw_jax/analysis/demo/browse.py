"""Distilled sets to look through: their pairs in any order, and who is matched with whom in P."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mdw_jax.analysis.demo.cards import Card
from mdw_jax.data.resizing import enlarged
from mdw_jax.io.distilled_set import CARD, TENSORS, DistilledSet, load_for_display, read_captions
from mdw_jax.method.correspondence import correspondence, matching_probability
from mdw_jax.method.losses import DISTILLATION_LOSSES
from mdw_jax.reporting import figures

UNKNOWN_CAPTION = "(nearest real caption unknown)"


class Pair(NamedTuple):
    """One distilled pair in numbers; None where that is not known.

    Attributes:
        pair: its number.
        caption: the real caption nearest to its text.
        own: P of the image with its own text.
        strongest: the largest P of the image with another text.
        partner: that text.
        fit: cosine of image and text, by what encodes them.
    """

    pair: int
    caption: str
    own: float | None = None
    strongest: float | None = None
    partner: int | None = None
    fit: float | None = None


SORTS: dict[str, Callable[[Pair], Any]] = {
    "number": lambda pair: pair.pair,
    "caption": lambda pair: pair.caption.lower(),
    "match with its own text (P)": lambda pair: pair.own,
    "strongest match with another text (P)": lambda pair: pair.strongest,
    "cosine of image and text": lambda pair: pair.fit,
}


class SetView:
    """A distilled set as it is shown. Its loss is never called, and no student is trained on it.

    Args:
        path: its directory.
        label: what it is called.

    Raises:
        UserError: it is missing or damaged.
    """

    def __init__(self, path, label: str = ""):
        self.path, self.label = Path(path), label or Path(path).name
        self.distilled: DistilledSet
        self.distilled, self.card = load_for_display(path)
        captions = read_captions(path, str(self.card.get("sha256")))
        known = isinstance(captions, list) and len(captions) == len(self.distilled.images)
        self.captions = [str(caption) for caption in captions] if captions and known else [
            UNKNOWN_CAPTION] * len(self.distilled.images)

    @cached_property
    def seen(self) -> np.ndarray:
        """(M, H, W, C) float32 in [0, 1], the images as models see them."""
        return np.clip(np.asarray(enlarged(jnp.asarray(self.distilled.images), self.distilled.seen_size)), 0, 1)

    @cached_property
    def rgb(self) -> np.ndarray:
        """(M, H, W, 3) uint8, the images as they are displayed."""
        return figures.to_rgb(self.seen, bool(self.card.get("log_mel")))

    @cached_property
    def matches(self) -> np.ndarray | None:
        """(M, M), how strongly image i and text j are matched: P as its loss reads it; None for a set without P."""
        return matches(self.distilled)

    @property
    def is_probability(self) -> bool:
        """Whether `matches` are probabilities, and not P itself."""
        loss = DISTILLATION_LOSSES.get(self.distilled.loss)
        return loss is not None and loss.correspondence_scale is not None


def matches(distilled: DistilledSet) -> np.ndarray | None:
    """P of a set, or, where its loss fits a softmax of it, the matching probabilities; None for a set without P."""
    if not distilled.correspondence:
        return None
    p = correspondence({name: jnp.asarray(value) for name, value in distilled.correspondence.items()},
                       jnp.arange(len(distilled.images)), distilled.alpha)
    loss = DISTILLATION_LOSSES.get(distilled.loss)  # one from outside the package is not imported to show a set
    is_logits = loss is not None and loss.correspondence_scale is not None
    return np.asarray(matching_probability(p, loss) if is_logits else p)


def all_pairs(view: SetView, fit: Sequence[float] | None = None) -> list[Pair]:
    """Every pair of a set.

    Args:
        view: the set.
        fit: (M,) cosine of each image and its text; None: not known.
    """
    p, pairs = view.matches, []
    for n, caption in enumerate(view.captions):
        own = strongest = partner = None
        if p is not None:
            own = float(p[n, n])
            if len(p) > 1:
                others = np.where(np.arange(len(p)) == n, -np.inf, p[n])
                partner = int(others.argmax())
                strongest = float(others[partner])
        pairs.append(Pair(n, caption, own, strongest, partner, None if fit is None else float(fit[n])))
    return pairs


def in_order(pairs: Sequence[Pair], by: str, descending: bool = False) -> list[Pair]:
    """Pairs by a key of `SORTS`, equal ones by number; those whose value is not known come last."""
    known = [pair for pair in pairs if SORTS[by](pair) is not None]
    unknown = [pair for pair in pairs if SORTS[by](pair) is None]
    return sorted(sorted(known, key=lambda pair: pair.pair), key=SORTS[by], reverse=descending) + unknown


def pair_cards(view: SetView, pairs: Sequence[Pair]) -> list[Card]:
    """Cards of pairs: image, nearest real caption, numbers."""
    cards = []
    for pair in pairs:
        numbers = [f"{name} {value:.{digits}f}" for name, value, digits in (
            ("P", pair.own, 3), (f"with text {pair.partner}:", pair.strongest, 3), ("cosine", pair.fit, 2))
            if value is not None]
        lines = [(f"pair {pair.pair}", pair.caption), *([("", ", ".join(numbers))] if numbers else [])]
        cards.append(Card(view.rgb[pair.pair], lines, f"distilled image {pair.pair}"))
    return cards


def partners(view: SetView, pair: int, count: int = 12) -> list[tuple[int, float]]:
    """The texts that an image is matched with: (text, P) by the row of P, the strongest first, its own among them."""
    p = view.matches
    if p is None:
        return []
    order = np.argsort(-p[pair], kind="stable")[:count]
    return [(int(text), float(p[pair, text])) for text in order]


def partner_cards(view: SetView, pair: int, count: int = 12) -> list[Card]:
    """Cards of `partners`: the caption nearest to each text, and the image whose own text it is."""
    return [Card(view.rgb[text], [(f"text {text}{' (its own)' if text == pair else ''}: {value:.3f}", view.captions[text])],
                 f"distilled image {text}") for text, value in partners(view, pair, count)]


def sets_of_run(folder) -> list[tuple[str, Path]]:
    """(label, directory) of the distilled sets below a run directory, those of `mdw` first."""
    found = sorted(card.parent for card in Path(folder).glob(f"distilled/*/set_*/{CARD}")
                   if (card.parent / TENSORS).exists())
    labelled = []
    for path in found:
        preset, _, key = path.parent.name.rpartition("-")
        labelled.append((preset, key, path))
    several = {preset for preset, _, _ in labelled
               if len({key for other, key, _ in labelled if other == preset}) > 1}
    labelled.sort(key=lambda entry: (entry[0] != "mdw", entry[0], entry[2].name))
    return [(f"{preset}, {path.name.replace('_', ' ')}{f' ({key[:6]})' if preset in several else ''}", path)
            for preset, key, path in labelled]
