"""The clean risk from losses on noisy held-out pairs, and how much of the noise was memorized (docs/method.md, section 3).

Everything here is this work's except the inequalities. Setting: an image with its captions is one unit. Units are
independent. A unit is mismatched with probability eta; its captions are then those of another image that is not in the
sample. The loss of a pair is an expert loss (`losses.py`) among its own partner and B - 1 *fixed* candidates from other
data, both directions averaged. The loss of a unit is the mean over its captions. It lies within
`certificate.loss_range`, and the units' losses are independent for any candidates: no batch is needed, and every image
counts as one observation, where batches of held-out pairs would give B times fewer. `R` is the mean loss over matched
pairs, `R~` over the pairs as given, `R_shuf` over independent images and captions, and Proposition 4 is an identity:

    R~ = (1 - eta) R + eta R_shuf,  so  R = (R~ - eta R_shuf) / (1 - eta) <= (U - eta L) / (1 - eta)

with U an upper confidence bound of R~ and L a lower one of R_shuf, each failing with half the probability. The right
side is monotone in eta, so one end of an interval of eta is the worst. It *falls* with eta while the network does
better on the pairs as given than on random ones (U < L): then the lower end is the one that counts.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.method.losses import debiased, expert_loss


class Units(NamedTuple):
    """Pairs to measure, grouped into independent units.

    Attributes:
        images: (P,) rows of images.
        captions: (P,) rows of captions.
        unit: (P,) the unit of each pair, 0 .. count - 1.
        count: number of units.
        mismatched: how many of the units are mismatched, None where it is unknown.
    """

    images: np.ndarray
    captions: np.ndarray
    unit: np.ndarray
    count: int  # type: ignore[assignment]  # a tuple has a method of that name
    mismatched: int | None


class Upper(NamedTuple):
    """An upper confidence bound on the clean risk, and its parts.

    Attributes:
        bound: the bound, in units of the loss.
        noisy: mean loss of the pairs as given.
        noisy_up: upper confidence bound of its expectation.
        shuffled: mean loss at random partners.
        shuffled_down: lower confidence bound of its expectation.
        units: observations behind `noisy`.
        shuffled_units: independent observations behind `shuffled`.
    """

    bound: float
    noisy: float
    noisy_up: float
    shuffled: float
    shuffled_down: float
    units: int
    shuffled_units: int


# ---- inequalities ----------------------------------------------------------------------------------------------------


def hoeffding(mean: float, count: int, span: tuple[float, float], delta: float, upper: bool = True) -> float:
    """Confidence bound on the expectation of a mean of independent bounded values (Hoeffding 1963, theorem 1).

    For values in [0, 1] it solves `kl(mean || bound) = ln(1 / delta) / count` with the relative entropy kl of two coins.
    It is never looser than the better known `width sqrt(ln(1 / delta) / (2 count))`, and far tighter near either end.

    Args:
        mean: the mean measured.
        count: number of independent values.
        span: (lowest, highest) possible value.
        delta: probability that the bound fails, at most.
        upper: whether to bound from above; else from below.
    """
    low, high = span
    if not upper:
        return high + low - hoeffding(high + low - mean, count, span, delta)
    scaled = float(np.clip((mean - low) / (high - low), 0, 1))
    entropy = lambda p, q: p * math.log(p / q) if p > 0 else 0.0
    inside, outside = scaled, 1.0
    for _ in range(60):
        middle = (inside + outside) / 2
        divergence = entropy(scaled, middle) + entropy(1 - scaled, 1 - middle) if middle < 1 else math.inf
        inside, outside = (middle, outside) if divergence <= math.log(1 / delta) / count else (inside, middle)
    return low + (high - low) * outside


def empirical_bernstein(values, span: tuple[float, float], delta: float) -> float:
    """Upper confidence bound from the sample variance (Maurer and Pontil 2009, theorem 4, for any range).

    `mean + sqrt(2 var ln(2/delta) / n) + 7 width ln(2/delta) / (3 (n - 1))`. It holds for values of different
    distributions too.

    Args:
        values: (n,) independent values, n >= 2.
        span: (lowest, highest) possible value.
        delta: probability that the bound fails, at most.
    """
    values = np.asarray(values, np.float64)
    count, term = len(values), math.log(2 / delta)
    return float(values.mean() + math.sqrt(2 * values.var(ddof=1) * term / count)
                 + 7 * (span[1] - span[0]) * term / (3 * (count - 1)))


def upper_mean(values, span: tuple[float, float], delta: float) -> float:
    """The smaller of `hoeffding` and `empirical_bernstein`, each at delta / 2, so that the values may choose.

    Args: as `empirical_bernstein`; a single value gets `hoeffding` alone.
    """
    bound = hoeffding(float(np.mean(values)), len(values), span, delta / 2)
    return min(bound, empirical_bernstein(values, span, delta / 2)) if len(values) > 1 else bound


def upper_bound(noisy, shuffled, shuffled_units: int, eta: tuple[float, float], span: tuple[float, float],
                delta: float) -> Upper:
    """Upper confidence bound on the clean risk, if eta lies in its interval (this work, Proposition 4).

    Args:
        noisy: (n,) losses of independent units as given.
        shuffled: losses at random partners; their mean is one of averages over independent units (`matchings`).
        shuffled_units: number of those units.
        eta: (low, high) noise rate, with equal ends where it is known. The probability that an estimated interval
            misses comes on top of delta.
        span: `certificate.loss_range` of the loss.
        delta: probability that the bound fails, at most.

    Raises:
        UserError: eta is no interval within [0, 1].
    """
    low, high = eta
    if not 0 <= low <= high <= 1:
        raise UserError(f"the noise rate must lie between 0 and 1, not in [{low}, {high}].")
    noisy, shuffled = np.asarray(noisy, np.float64), float(np.mean(shuffled))
    up = upper_mean(noisy, span, delta / 2)
    # Averages of several matchings obey Hoeffding's inequality for one of them (his section 5, for U-statistics).
    down = hoeffding(shuffled, shuffled_units, span, delta / 2, upper=False)
    worst = max(_debiased_or_limit(up, down, end) for end in eta)
    return Upper(float(np.clip(worst, *span)), float(noisy.mean()), up, shuffled, down, len(noisy), shuffled_units)


def _debiased_or_limit(up: float, down: float, rate: float) -> float:
    """Proposition 4, and its limit at rate 1."""
    if rate < 1:
        return debiased(up, down, rate)
    return -math.inf if up < down else math.inf


def largest_informative_rate(risk: float, trivial: float, noisy_radius: float, shuffled_radius: float) -> float:
    """The eta up to which the upper bound of a network would stay below the loss of guessing (this work).

    It solves `risk + (noisy_radius + eta shuffled_radius) / (1 - eta) = trivial`.

    Args:
        risk: clean risk of the network.
        trivial: loss at equal logits.
        noisy_radius: upper bound of the noisy risk minus the noisy risk.
        shuffled_radius: shuffled risk minus its lower bound.

    Returns:
        The rate, 0 where the bound is never below `trivial`.
    """
    gap = trivial - risk
    if gap <= noisy_radius:
        return 0.0
    return min((gap - noisy_radius) / (gap + shuffled_radius), 1.0)


def largest_holding(rates: Sequence[float], holds: Sequence[bool]) -> float | None:
    """The largest measured rate at which a bound held, as at all smaller ones; None if it failed at the smallest."""
    largest = None
    for rate, held in sorted(zip(rates, holds, strict=True)):
        if not held:
            break
        largest = rate
    return largest


# ---- pairs -----------------------------------------------------------------------------------------------------------


def as_given(image_of) -> Units:
    """All images with the captions they came with. image_of: (K,) the image of each caption."""
    captions_of = _captions_by_image(image_of)
    images = np.array(list(captions_of))
    return _units(images, images, captions_of, None)


def with_noise(generator: np.random.Generator, image_of, rate: float) -> Units:
    """As many independent units as possible, a share of them mismatched.

    n / (1 + rate) of n images are used: mismatched ones get the captions of images left out, so no image or caption
    occurs in two units. (A permutation among few images makes mismatched units depend on each other. In the limit of
    infinitely many images it is the same.)

    Args:
        generator: source of the draw.
        image_of: (K,) the image of each caption.
        rate: share of mismatched units, rounded up to whole ones.

    Raises:
        UserError: the rate is outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise UserError(f"the noise rate must be between 0 and 1, not {rate}.")
    captions_of = _captions_by_image(image_of)
    order = generator.permutation(np.array(list(captions_of)))
    count = math.floor(len(order) / (1 + rate) + 1e-9)
    mismatched = math.ceil(rate * count - 1e-9)
    donors = order[:count].copy()
    donors[:mismatched] = order[count : count + mismatched]
    return _units(order[:count], donors, captions_of, mismatched)


def matchings(generator: np.random.Generator, image_of, times: int) -> list[Units]:
    """Random pairings of one half of the images with the captions of the other half, whose units are independent.

    Args:
        generator: source of the draw.
        image_of: (K,) the image of each caption.
        times: number of pairings.

    Raises:
        UserError: there are fewer than two images.
    """
    captions_of = _captions_by_image(image_of)
    images = np.array(list(captions_of))
    half = len(images) // 2
    if not half:
        raise UserError("a certificate needs at least two held-out images with captions; make the val split larger.")
    orders = [generator.permutation(images) for _ in range(times)]
    return [_units(order[:half], order[half : 2 * half], captions_of, half) for order in orders]


def candidate_rows(generator: np.random.Generator, images: int, captions: int, others: int,
                   sets: int) -> tuple[np.ndarray, np.ndarray]:
    """(sets, others) rows of candidate images and of captions, drawn without replacement within a set."""
    draw = lambda count: np.stack([generator.permutation(count)[:others] for _ in range(sets)])
    return draw(images), draw(captions)


def _captions_by_image(image_of) -> dict[int, np.ndarray]:
    image_of = np.asarray(image_of)
    order = np.argsort(image_of, kind="stable")
    images, first = np.unique(image_of[order], return_index=True)
    return dict(zip(images.tolist(), np.split(order, first[1:]), strict=True))


def _units(images, donors, captions_of, mismatched: int | None) -> Units:
    """Image i with the captions of donor i, for each i."""
    rows = [captions_of[donor] for donor in donors]
    counts = [len(row) for row in rows]
    return Units(np.repeat(images, counts), np.concatenate(rows), np.repeat(np.arange(len(images)), counts),
                 len(images), mismatched)


# ---- losses ----------------------------------------------------------------------------------------------------------


def losses_among(losses: tuple, v, t, candidates, tau: float, rows: int = 2000):
    """Losses of pairs among fixed candidates, averaged over both directions and all sets of candidates.

    Args:
        losses: (name, q) of each expert loss.
        v: (P, D) unit embeddings of the images.
        t: (P, D) unit embeddings of their captions.
        candidates: embeddings of candidate images and captions, (sets, B - 1, D) each.
        tau: temperature; logits are cos / tau.
        rows: pairs per call of the compiled function.

    Returns:
        (len(losses), P) losses.
    """
    measure, count = _compiled_losses(tuple(losses), tau), len(v)
    size = min(rows, 1 << (count - 1).bit_length())  # few sizes, or each number of pairs would be compiled for itself
    padded = [np.pad(np.asarray(x), ((0, -count % size), (0, 0))) for x in (v, t)]
    parts = [np.asarray(measure(*(x[i : i + size] for x in padded), *candidates)) for i in range(0, count, size)]
    return np.concatenate(parts, 1)[:, :count]


@functools.lru_cache(maxsize=16)
def _compiled_losses(losses: tuple, tau: float):
    functions = [expert_loss(name, q) for name, q in losses]

    def measure(v, t, other_images, other_captions):
        own = (v * t).sum(-1, keepdims=True) / tau

        def one_set(others):
            rows = [jnp.concatenate([own, queries @ keys.T / tau], 1)
                    for queries, keys in ((v, others[1]), (t, others[0]))]
            return jnp.stack([sum(function(logits)[:, 0] for logits in rows) / 2 for function in functions])

        return jax.lax.map(one_set, (other_images, other_captions)).mean(0)

    return jax.jit(measure)


def by_unit(values, units: Units) -> np.ndarray:
    """(..., P) losses of pairs -> (..., count) mean loss of each unit."""
    values = np.asarray(values, np.float64)
    sums = np.zeros((*values.shape[:-1], units.count))
    np.add.at(sums, (..., units.unit), values)
    return sums / np.bincount(units.unit, minlength=units.count)


# ---- tracks and memorization -----------------------------------------------------------------------------------------


def residual_noise(probability, weights, mismatched=None) -> float:
    """The share of a track's weight on mismatched pairs.

    Args:
        probability: (K,) posterior of each pair that it is matched.
        weights: (K,) weight of each pair in the track.
        mismatched: (K,) bool, the truth. None uses the posteriors: the mean of 1 - p is that share if they are
            calibrated.

    Returns:
        The share, NaN for an empty track.
    """
    weights = np.asarray(weights, np.float64)
    wrong = 1 - np.asarray(probability, np.float64) if mismatched is None else np.asarray(mismatched)
    return float((weights * wrong).sum() / weights.sum()) if weights.sum() else math.nan


MEMORIZED_ERRORS = 3.0  # pairs are memorized where the gap exceeds as many of its standard errors


class Memory(NamedTuple):
    """How far mismatched pairs were memorized.

    Attributes:
        gap: loss at unseen mismatched pairs minus that at the mismatched pairs trained on, in units of the loss.
        error: its standard error.
        share: the gap relative to how far matched pairs are below unseen mismatched ones; NaN before learning starts.
    """

    gap: float
    error: float
    share: float


def memorized(seen, unseen, matched: float) -> Memory:
    """How far the mismatched pairs trained on have a lower loss than others of the same images and captions.

    Where parameters do not depend on the permutation, the two have one distribution and the gap is 0 but for chance.

    Args:
        seen: (n,) mean loss of each image at the wrong captions it was trained on.
        unseen: (n,) mean loss of each image at wrong captions it was never paired with.
        matched: mean loss of matched pairs.
    """
    difference = np.asarray(unseen, np.float64) - np.asarray(seen, np.float64)
    error = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    span = float(np.mean(unseen)) - matched
    share = float(difference.mean()) / span if span > 10 * error else math.nan  # nothing is learned yet
    return Memory(float(difference.mean()), error, share)


def memorized_epochs(gaps: Sequence[Memory]) -> list[int]:
    """The epochs at which the gap exceeds `MEMORIZED_ERRORS` standard errors.

    Args:
        gaps: one entry per stored epoch.
    """
    return [epoch for epoch, memory in enumerate(gaps) if memory.gap > MEMORIZED_ERRORS * memory.error]


def first_memorized(gaps: Sequence[Memory]) -> int | None:
    """The first epoch from which on pairs are memorized through the last one; None if they are not at the last."""
    epochs, first = set(memorized_epochs(gaps)), len(gaps)
    while first - 1 in epochs:
        first -= 1
    return first if first < len(gaps) else None
