"""Who is in a data set, in what was distilled from it, and who is found by models of either (METHOD section 7).

A *group* is the images that share one value of an attribute. Memberships are (N, G) booleans, one column a group; an
image may be in several groups or in none. Everything here is arrays: the command is `fairness_command.py`.

Intervals are 95 % percentiles of a Bayesian bootstrap (Rubin 1981): every unit gets an exponential weight instead of a
whole number of copies, which for counts makes them smooth. Which intervals these are, of which numbers, is ours.
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
_MISSING = ("", "none", "nan")
_HALF = 0.5  # Jeffreys' prior: half a unit in the group, half a unit out of it


class Interval(NamedTuple):
    """A number, or an array of them, and the ends of its 95 % interval."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def excludes(self, number: float):
        """Whether `number` lies outside; not where there is no interval (nan)."""
        return (self.low > number) | (self.high < number)


# Groups


def mentions(captions: Sequence[str], words: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(K, G) bool: caption k holds a word of value g, as a whole word in any case. words: {value: words or phrases}.

    A hyphen joins ("man-made" is not "man"), an apostrophe does not ("the man's" is). No forms are derived. Where two
    entries fit at one place the longer one counts alone: "old man" is not also "man".
    """
    value_of = {plain(entry): g for g, entries in enumerate(words.values()) for entry in entries}
    longest_first = sorted(value_of, key=len, reverse=True)
    either = "|".join(r"\s+".join(map(re.escape, entry.split())) for entry in longest_first)
    whole = re.compile(rf"(?<![\w-])(?:{either})(?![\w-])")
    found = np.zeros((len(captions), len(words)), bool)
    for k, caption in enumerate(captions):
        found[k, [value_of[plain(said)] for said in whole.findall(caption.casefold())]] = True
    return found


def plain(entry: str) -> str:
    """A word or phrase as it is compared: case folded, one space between words."""
    return " ".join(entry.casefold().split())


def members_by_words(mentioned, image_of, images: int) -> np.ndarray:
    """(N, G) bool: the groups of each image by its captions. mentioned: (K, G) of `mentions`; image_of: (K,).

    An image has a value if more than half of those of its captions that mention any value mention this one. So one
    that is mostly called "a man and a woman" has both, and one half of whose captions say "man" and half "woman" none.
    """
    spoken, said = np.zeros(images, int), np.zeros((images, mentioned.shape[1]), int)
    np.add.at(spoken, image_of, mentioned.any(1))
    np.add.at(said, image_of, mentioned)
    return 2 * said > spoken[:, None]


def values_of(column) -> tuple[str, ...]:
    """The distinct values of an attribute column as text, sorted; "", "none" and nan stand for no value."""
    return tuple(sorted({text for text in map(str, np.unique(column)) if text.lower() not in _MISSING}))


def members_by_column(column, values: Sequence[str]) -> np.ndarray:
    """(N, G) bool: the group of each image by its attribute column; of other values than `values`, none."""
    return np.array([str(value) for value in column])[:, None] == np.array(values)[None, :]


def with_rest(members) -> np.ndarray:
    """(N, G + 1): a last group for the images that are in no other."""
    return np.concatenate([members, ~members.any(1, keepdims=True)], axis=1)


# Representation


def share(members) -> Interval:
    """Share of each group of (N, G) memberships, with the interval of N independent draws (Jeffreys'): (G,) each.

    The interval is that of the source the N come from; of these N themselves the share is known.
    """
    n, found = len(members), members.sum(0)
    ends = [betaincinv(found + _HALF, n - found + _HALF, q) for q in _ENDS]
    return Interval(found / n, np.where(found > 0, ends[0], 0.0), np.where(found < n, ends[1], 1.0))


def distilled_share(counted, generator: np.random.Generator, resamples: int = 2000) -> tuple[Interval, np.ndarray]:
    """Share of each group in distilled sets, (G,) each, and its (resamples, G) draws.

    counted: (S, M, G), how far pair m of set s counts for group g, 0 to 1. Sets and pairs are resampled, pairs jointly
    in all sets: coresets of different seeds share many. With one set and whole counts c this is Jeffreys' interval,
    the quantiles of Beta(c + 1/2, M - c + 1/2), which holds its level for small c too, where the plain bootstrap's
    interval of no pairs at all is empty. With several sets it is wider than it need be (both levels carry the pairs'
    own chance). It says nothing of how rightly nearest neighbors tell groups.
    """
    sets, pairs, groups = counted.shape
    value = counted.mean((0, 1))
    of_sets = generator.standard_exponential((resamples, sets))
    of_sets /= of_sets.sum(1, keepdims=True)
    of_pairs = generator.standard_exponential((resamples, pairs))
    inside, outside = generator.standard_gamma(_HALF, (2, resamples, groups))
    hit = np.einsum("rs,rm,smg->rg", of_sets, of_pairs, counted, optimize=True)
    draws = (hit + inside) / (of_pairs.sum(1, keepdims=True) + inside + outside)
    return interval(value, draws), draws


def amplification(counted, real, generator: np.random.Generator, resamples: int = 2000) -> tuple[Interval, Interval]:
    """(share, ratio) of each group in distilled sets, (G,) each: ratio = share / `real`, its share in the real data.

    counted: as in `distilled_share`; real: (G,), taken as known. 1 is parity. A group without real members has none.
    """
    found, _ = distilled_share(counted, generator, resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(real > 0, 1 / np.asarray(real, float), np.nan)
    return found, Interval(*(end * scale for end in found))


def neighbor_consistency(held_out, real, found) -> tuple[float, float]:
    """How often an item's nearest real ones are of a group of its own, and how often random real ones would be.

    held_out: (n, G) memberships of real items that are not among the `real` (N, G); found: (n, k) of `nearest`. What
    this leaves of the way from chance to 1 is what the nearest neighbors can tell: where it is small, every ratio is
    drawn towards 1.
    """
    shared = (held_out[:, None, :] & real[found]).any(-1).mean()
    kinds, count = np.unique(real, axis=0, return_counts=True)  # few, however many items
    chance = ((held_out[:, None, :] & kinds).any(-1) @ count).mean() / len(real)
    return float(shared), float(chance)


def interval(value, draws) -> Interval:
    """`value` between the 95 % percentiles of its draws (along the first axis), widened where it lies beyond them."""
    low, high = np.quantile(draws, _ENDS, axis=0)
    return Interval(value, np.minimum(low, value), np.maximum(high, value))


_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


# Retrieval


def hits(similarity, image_of) -> tuple[np.ndarray, np.ndarray]:
    """Which queries of one model find their answer: (K, 3) by caption and (N, 3) by image, bool, at 1, 5 and 10.

    similarity: (N, K), image by caption; image_of: (K,). Their means are `retrieval.recalls`.
    """
    text_to_image, image_to_text = _jitted_ranks()(similarity, image_of)
    return tuple(np.asarray(found)[:, None] < np.array(RANKS) for found in (text_to_image, image_to_text))


@functools.lru_cache(maxsize=1)
def _jitted_ranks():
    return jax.jit(ranks)


def per_image(caption_hits, image_hits, image_of) -> np.ndarray:
    """(N, 8): what each image adds to IR@1/5/10 and to their count of captions, to TR@1/5/10 and to their count.

    caption_hits: (K, 3) and image_hits: (N, 3), of one model or the mean over several. All that concerns an image is in
    its row, so that resampling images keeps its captions together.
    """
    sums = np.zeros((len(image_hits), 8))
    np.add.at(sums[:, :3], image_of, caption_hits)
    np.add.at(sums[:, 3], image_of, 1)
    sums[:, 4:7], sums[:, 7] = image_hits, 1
    return sums


def group_recalls(sums, members, weights=None) -> np.ndarray:
    """IR@1/5/10, TR@1/5/10 and r_mean of each group, in percent: (G, 7), or (R, G, 7) for (R, N) weights of images.

    sums: (N, 8) of `per_image`; members: (N, G). Only the queries are a group's: a caption still has to find its image
    among all images, an image its captions among all captions. A group without queries gets nan.
    """
    spread = (members[:, :, None] * sums[:, None, :]).reshape(len(sums), -1)
    totals = (spread.sum(0) if weights is None else weights @ spread).reshape(*np.shape(weights)[:1], -1, 8)
    with np.errstate(divide="ignore", invalid="ignore"):
        recalls = 100 * np.concatenate([totals[..., :3] / totals[..., 3:4], totals[..., 4:7] / totals[..., 7:8]], -1)
    return np.concatenate([recalls, recalls.mean(-1, keepdims=True)], -1)


def image_weights(generator: np.random.Generator, images: int, resamples: int = 2000) -> np.ndarray:
    """(resamples, N) weights of a Bayesian bootstrap over test images. Models compared share them."""
    return generator.standard_exponential((resamples, images))


class Gap(NamedTuple):
    """The r_mean of group `best` less that of group `worst`, in points; its draws; what chance would make of it."""

    found: Interval
    best: int
    worst: int
    draws: np.ndarray
    chance: float


def gap(sums, members, weights, generator: np.random.Generator, shuffles: int = 1000) -> Gap:
    """The largest difference in r_mean between groups, with its interval over test images.

    sums: (N, 8) of `per_image`; members: (N, G), G >= 2, no group empty; weights: (R, N) of `image_weights`. The
    interval is that of the two groups found best and worst, which may change places in a draw; since they were chosen
    for being so, it leaves 0 out too easily where G > 2. `chance` mends that: 95 % of all gaps stay below it when the
    memberships are dealt to the same images at random. A gap below it says nothing.
    """
    r_mean = group_recalls(sums, members)[:, -1]
    draws = group_recalls(sums, members, weights)[..., -1]
    best, worst = int(np.argmax(r_mean)), int(np.argmin(r_mean))
    differences = draws[:, best] - draws[:, worst]
    rows = np.flatnonzero(members.any(1))
    shuffled = np.empty(shuffles)
    for n in range(shuffles):
        dealt = group_recalls(sums[rows], members[generator.permutation(rows)])[:, -1]
        shuffled[n] = dealt.max() - dealt.min()
    return Gap(interval(r_mean[best] - r_mean[worst], differences), best, worst, differences,
               float(np.quantile(shuffled, LEVEL)))


def gap_ratio(found: Gap, reference: Gap) -> Interval:
    """`found` over `reference`, a gap of another model on the same images and weights.

    Where the reference's gap is not above 0 in a draw, the ratio of that draw is infinite: if it cannot be told from
    0, the upper end is. nan for a reference without any gap.
    """
    if not reference.found.value > 0:
        return Interval(*np.full(3, np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = np.where(reference.draws > 0, found.draws / reference.draws, np.inf)
    low, high = np.quantile(draws, _ENDS, method="nearest")  # between infinity and a number there is no middle
    value = found.found.value / reference.found.value
    return Interval(value, np.minimum(low, value), np.maximum(high, value))
