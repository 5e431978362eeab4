"""Groups, shares and recalls by group as arrays, with intervals (docs/method.md, section 8).

A *group* is the images that share one value of an attribute. Memberships are (N, G) booleans, one column per group; an
image may be in several groups or in none.

Intervals are 95 % percentiles of a Bayesian bootstrap (Rubin 1981): every unit gets an exponential weight instead of a
whole number of copies, which makes them smooth for counts. Which intervals these are, of which numbers, is this work's.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import betaincinv

from mdw_jax.method.retrieval import RANKS, ranks

LEVEL = 0.95
_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_MISSING = ("", "none", "nan")
_PRIOR = 0.5  # Jeffreys' prior: half a unit in the group, half a unit out of it


class Interval(NamedTuple):
    """A number, or an array of them, and the ends of its 95 % interval."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def excludes(self, number: float):
        """Whether `number` lies outside; False where there is no interval (NaN)."""
        return (self.low > number) | (self.high < number)

    def at(self, *index) -> "Interval":
        """One entry of an array of intervals."""
        return Interval(*(end[index] for end in self))

    def columns(self) -> dict[str, float]:
        """One number as columns value, low and high."""
        return {name: float(value) for name, value in self._asdict().items()}


# ---- groups ----------------------------------------------------------------------------------------------------------


def mentions(captions: Sequence[str], words: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Which caption mentions which value.

    Entries match as whole words in any case. A hyphen joins ("man-made" is not "man"), an apostrophe does not ("the
    man's" is). No word forms are derived. Where two entries match at one place only the longer one counts: "old man" is
    not also "man".

    Args:
        captions: K strings.
        words: {value: words or phrases}, of G values.

    Returns:
        (K, G) bool.
    """
    value_of = {normalized(entry): g for g, entries in enumerate(words.values()) for entry in entries}
    longest_first = sorted(value_of, key=len, reverse=True)
    alternatives = "|".join(r"\s+".join(map(re.escape, entry.split())) for entry in longest_first)
    pattern = re.compile(rf"(?<![\w-])(?:{alternatives})(?![\w-])")
    mentioned = np.zeros((len(captions), len(words)), bool)
    for k, caption in enumerate(captions):
        mentioned[k, [value_of[normalized(match)] for match in pattern.findall(caption.casefold())]] = True
    return mentioned


def normalized(entry: str) -> str:
    """A word or phrase as it is compared: case folded, one space between words."""
    return " ".join(entry.casefold().split())


def members_by_words(mentioned, image_of, images: int) -> np.ndarray:
    """The groups of each image by its captions.

    An image has a value if more than half of those of its captions that mention any value mention this one. So an image
    that is mostly called "a man and a woman" has both, and one with as many "man" as "woman" captions has neither.

    Args:
        mentioned: (K, G) of `mentions`.
        image_of: (K,) the image of each caption.
        images: number N of images.

    Returns:
        (N, G) bool.
    """
    any_value, this_value = np.zeros(images, int), np.zeros((images, mentioned.shape[1]), int)
    np.add.at(any_value, image_of, mentioned.any(1))
    np.add.at(this_value, image_of, mentioned)
    return 2 * this_value > any_value[:, None]


def values_of(column) -> tuple[str, ...]:
    """The distinct values of an attribute column as text, sorted; "", "none" and nan stand for no value."""
    return tuple(sorted({text for text in map(str, np.unique(column)) if text.lower() not in _MISSING}))


def members_by_column(column, values: Sequence[str]) -> np.ndarray:
    """(N, G) bool: the group of each image by its attribute column; images of other values are in none."""
    return np.array([str(value) for value in column])[:, None] == np.array(values)[None, :]


def with_rest(members) -> np.ndarray:
    """(N, G + 1): a last group for the images that are in no other."""
    return np.concatenate([members, ~members.any(1, keepdims=True)], axis=1)


# ---- representation --------------------------------------------------------------------------------------------------


def share(members) -> Interval:
    """Share of each group, (G,) each, with Jeffreys' interval of N independent draws.

    The interval is for the source that the N images come from; of these N themselves the share is known.

    Args:
        members: (N, G) memberships.
    """
    n, count = len(members), members.sum(0)
    ends = [betaincinv(count + _PRIOR, n - count + _PRIOR, q) for q in _ENDS]
    return Interval(count / n, np.where(count > 0, ends[0], 0.0), np.where(count < n, ends[1], 1.0))


def distilled_share(counted, generator: np.random.Generator, resamples: int = 2000) -> tuple[Interval, np.ndarray]:
    """Share of each group in distilled sets (this work).

    Sets and pairs are resampled, pairs jointly in all sets: coresets of different seeds share many. With one set and
    whole counts c this is Jeffreys' interval, the quantiles of Beta(c + 1/2, M - c + 1/2), which keeps its level for
    small c too, where the plain bootstrap's interval of no pairs at all is empty. With several sets it is wider than
    necessary (both levels contain the pairs' own chance). It does not contain errors of the nearest neighbors.

    Args:
        counted: (S, M, G), how far pair m of set s counts for group g, 0 to 1.
        generator: of the bootstrap.
        resamples: number of draws.

    Returns:
        Shares, (G,) each, and their (resamples, G) draws.
    """
    sets, pairs, groups = counted.shape
    value = counted.mean((0, 1))
    set_weights = generator.standard_exponential((resamples, sets))
    set_weights /= set_weights.sum(1, keepdims=True)
    pair_weights = generator.standard_exponential((resamples, pairs))
    inside, outside = generator.standard_gamma(_PRIOR, (2, resamples, groups))
    hit = np.einsum("rs,rm,smg->rg", set_weights, pair_weights, counted, optimize=True)
    draws = (hit + inside) / (pair_weights.sum(1, keepdims=True) + inside + outside)
    return interval(value, draws), draws


def amplification(counted, real, generator: np.random.Generator, resamples: int = 2000) -> tuple[Interval, Interval]:
    """Share of each group in distilled sets, and its ratio to the share in the real data.

    Args:
        counted: as in `distilled_share`.
        real: (G,) shares in the real data, taken as known.
        generator: of the bootstrap.
        resamples: number of draws.

    Returns:
        (share, ratio), (G,) each. A ratio of 1 is parity. A group without real members has none (NaN).
    """
    shares, _ = distilled_share(counted, generator, resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(real > 0, 1 / np.asarray(real, float), np.nan)
    return shares, Interval(*(end * scale for end in shares))


def neighbor_consistency(held_out, real, nearest) -> tuple[float, float]:
    """How often an item's nearest real ones share a group with it, and how often random real ones would.

    The first number, on the way from the second to 1, is what nearest neighbors can tell: where it is small, every
    ratio is drawn towards 1.

    Args:
        held_out: (n, G) memberships of real items that are not among `real`.
        real: (N, G) memberships.
        nearest: (n, k) rows of the nearest `real` items.
    """
    shared = (held_out[:, None, :] & real[nearest]).any(-1).mean()
    kinds, count = np.unique(real, axis=0, return_counts=True)  # few, however many items
    chance = ((held_out[:, None, :] & kinds).any(-1) @ count).mean() / len(real)
    return float(shared), float(chance)


def interval(value, draws) -> Interval:
    """`value` between the 95 % percentiles of its draws (along the first axis), widened where it lies beyond them."""
    low, high = np.quantile(draws, _ENDS, axis=0)
    return Interval(value, np.minimum(low, value), np.maximum(high, value))


# ---- retrieval -------------------------------------------------------------------------------------------------------


def hits(similarity, image_of) -> tuple[np.ndarray, np.ndarray]:
    """Which queries of one model find their answer at ranks 1, 5 and 10; the means are `retrieval.recalls`.

    Args:
        similarity: (N, K), image by caption.
        image_of: (K,) the image of each caption.

    Returns:
        (K, 3) bool by caption and (N, 3) bool by image.
    """
    text_to_image, image_to_text = _jitted_ranks()(similarity, image_of)
    return tuple(np.asarray(rank)[:, None] < np.array(RANKS) for rank in (text_to_image, image_to_text))


@functools.lru_cache(maxsize=1)
def _jitted_ranks():
    return jax.jit(ranks)


def per_image(caption_hits, image_hits, image_of) -> np.ndarray:
    """What each image contributes to recalls: everything about it in one row, so that resampling keeps it together.

    Args:
        caption_hits: (K, 3) of one model, or the mean over several.
        image_hits: (N, 3) likewise.
        image_of: (K,) the image of each caption.

    Returns:
        (N, 8): its part of IR@1/5/10 and of their number of captions, of TR@1/5/10 and of their number of images.
    """
    sums = np.zeros((len(image_hits), 8))
    np.add.at(sums[:, :3], image_of, caption_hits)
    np.add.at(sums[:, 3], image_of, 1)
    sums[:, 4:7], sums[:, 7] = image_hits, 1
    return sums


def group_recalls(sums, members, weights=None) -> np.ndarray:
    """IR@1/5/10, TR@1/5/10 and r_mean of each group, in percent.

    Only the queries are a group's: a caption still has to find its image among all images, an image its captions among
    all captions.

    Args:
        sums: (N, 8) of `per_image`.
        members: (N, G) memberships.
        weights: (R, N) weights of the images, or None.

    Returns:
        (G, 7), or (R, G, 7) with weights; NaN for a group without queries.
    """
    spread = (members[:, :, None] * sums[:, None, :]).reshape(len(sums), -1)
    totals = (spread.sum(0) if weights is None else weights @ spread).reshape(*np.shape(weights)[:1], -1, 8)
    with np.errstate(divide="ignore", invalid="ignore"):
        recalls = 100 * np.concatenate([totals[..., :3] / totals[..., 3:4], totals[..., 4:7] / totals[..., 7:8]], -1)
    return np.concatenate([recalls, recalls.mean(-1, keepdims=True)], -1)


def image_weights(generator: np.random.Generator, images: int, resamples: int = 2000) -> np.ndarray:
    """(resamples, N) weights of a Bayesian bootstrap over test images, shared by models that are compared."""
    return generator.standard_exponential((resamples, images))


class Gap(NamedTuple):
    """The largest difference in r_mean between two groups.

    Attributes:
        difference: r_mean of group `best` minus that of group `worst`, in points.
        best, worst: the groups.
        draws: (R,) differences of the bootstrap.
        chance: the gap that random groups exceed one time in twenty.
    """

    difference: Interval
    best: int
    worst: int
    draws: np.ndarray
    chance: float


def gap(sums, members, weights, generator: np.random.Generator, shuffles: int = 1000) -> Gap:
    """The largest difference in r_mean between groups, with its interval over test images (this work).

    The interval is that of the two groups that came out best and worst, which may change places in a draw. They were
    chosen for that, so it leaves 0 out too easily where G > 2. `chance` corrects for this: 95 % of all gaps stay below
    it when memberships are assigned to the same images at random. A gap below it shows nothing.

    Args:
        sums: (N, 8) of `per_image`.
        members: (N, G), G >= 2, no group empty.
        weights: (R, N) of `image_weights`.
        generator: of the shuffles.
        shuffles: number of random assignments.
    """
    r_mean = group_recalls(sums, members)[:, -1]
    draws = group_recalls(sums, members, weights)[..., -1]
    best, worst = int(np.argmax(r_mean)), int(np.argmin(r_mean))
    differences = draws[:, best] - draws[:, worst]
    rows = np.flatnonzero(members.any(1))
    shuffled = np.empty(shuffles)
    for n in range(shuffles):
        random_r_mean = group_recalls(sums[rows], members[generator.permutation(rows)])[:, -1]
        shuffled[n] = random_r_mean.max() - random_r_mean.min()
    return Gap(interval(r_mean[best] - r_mean[worst], differences), best, worst, differences,
               float(np.quantile(shuffled, LEVEL)))


def gap_ratio(gap: Gap, reference: Gap) -> Interval:
    """A gap over that of another model on the same images and weights.

    Where the reference's gap is not above 0 in a draw, the ratio of that draw is infinite: if the reference's gap
    cannot be told from 0, the upper end is. NaN for a reference without any gap.
    """
    if not reference.difference.value > 0:
        return Interval(*np.full(3, np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = np.where(reference.draws > 0, gap.draws / reference.draws, np.inf)
    low, high = np.quantile(draws, _ENDS, method="nearest")  # between infinity and a number there is no middle
    value = gap.difference.value / reference.difference.value
    return Interval(value, np.minimum(low, value), np.maximum(high, value))
