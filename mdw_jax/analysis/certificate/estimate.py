"""What a network's loss on noisy pairs that it never saw says of its clean risk, and what noise made it learn by heart.

Everything here is ours but the inequalities. Setting: an image with its captions is one unit; units are independent; a
unit is mismatched with probability eta and its captions are then those of another image that is not in the sample. The
loss of a pair is a label loss (`losses.py`) among its own partner and B - 1 *fixed* candidates of other data, both
directions averaged, and the loss of a unit is the mean over its captions. It lies within `certificate.loss_range`, and
the units' losses are independent, whatever the candidates are: a batch is not needed, and every image counts as one
observation, where batches of held-out pairs would be B times fewer. `R` is its mean over matched pairs, `R~` over the
pairs as given, `R_shuf` over independent images and captions, and Fact D is an identity:

    R~ = (1 - eta) R + eta R_shuf,  so  R = (R~ - eta R_shuf) / (1 - eta) <= (U - eta L) / (1 - eta)

with U an upper confidence bound of R~ and L a lower one of R_shuf, at half the probability of failing each. In eta the
right side is monotone: of an interval of eta one of the ends is the worst. It *falls* with eta while the network does
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
from mdw_jax.method import losses
from mdw_jax.method.losses import label_loss


class Units(NamedTuple):
    """Pairs to measure. images, captions: (P,) rows; unit: (P,) which unit, 0 .. count - 1, a pair belongs to.

    mismatched: how many of the units are, None where nobody knows.
    """

    images: np.ndarray
    captions: np.ndarray
    unit: np.ndarray
    count: int  # type: ignore[assignment]  # a tuple has a method of that name
    mismatched: int | None


class Upper(NamedTuple):
    """An upper confidence bound on the clean risk, and what it is made of.

    noisy, shuffled: the means measured; noisy_up, shuffled_down: their bounds; units, shuffled_units: observations.
    """

    bound: float
    noisy: float
    noisy_up: float
    shuffled: float
    shuffled_down: float
    units: int
    shuffled_units: int


# Inequalities


def hoeffding(mean: float, count: int, span: tuple[float, float], failing: float, upper: bool = True) -> float:
    """Upper (or lower) confidence bound on the expectation of a mean of `count` independent values within `span`.

    Hoeffding 1963, theorem 1: as values in [0, 1], `kl(mean || bound) = ln(1 / failing) / count` with the relative
    entropy kl of two coins; never looser than his better known `width sqrt(ln(1 / failing) / (2 count))`, and far
    tighter near either end. It fails with probability at most `failing`.
    """
    low, high = span
    found = float(np.clip((mean - low) / (high - low), 0, 1))
    if not upper:
        return high + low - hoeffding(high + low - mean, count, span, failing)
    entropy = lambda p, q: p * math.log(p / q) if p > 0 else 0.0
    inside, outside = found, 1.0
    for _ in range(60):
        middle = (inside + outside) / 2
        spent = entropy(found, middle) + entropy(1 - found, 1 - middle) if middle < 1 else math.inf
        inside, outside = (middle, outside) if spent <= math.log(1 / failing) / count else (inside, middle)
    return low + (high - low) * outside


def empirical_bernstein(values, span: tuple[float, float], failing: float) -> float:
    """The upper bound from the sample variance: `mean + sqrt(2 var ln(2/f) / n) + 7 width ln(2/f) / (3 (n - 1))`.

    values: (n,) independent, n >= 2, var with n - 1 below (Maurer and Pontil 2009, theorem 4, for any range; it holds
    for values of different distributions too).
    """
    values = np.asarray(values, np.float64)
    count, term = len(values), math.log(2 / failing)
    return float(values.mean() + math.sqrt(2 * values.var(ddof=1) * term / count)
                 + 7 * (span[1] - span[0]) * term / (3 * (count - 1)))


def upper_mean(values, span: tuple[float, float], failing: float) -> float:
    """The smaller of the two, each at half the probability: which one it is may then be read off the values."""
    found = hoeffding(float(np.mean(values)), len(values), span, failing / 2)
    return min(found, empirical_bernstein(values, span, failing / 2)) if len(values) > 1 else found


def upper_bound(noisy, shuffled, shuffled_units: int, eta: tuple[float, float], span: tuple[float, float],
                failing: float) -> Upper:
    """Upper confidence bound on the clean risk; wrong with probability at most `failing`, if eta lies in its interval.

    noisy: (n,) losses of independent units as given. shuffled: losses at random partners, whose mean is one of averages
    over `shuffled_units` independent ones (`matchings`). eta: (low, high), equal ends where it is known; where it was
    estimated, what its interval fails by comes on top. span: `certificate.loss_range` of the loss.
    """
    low, high = eta
    if not 0 <= low <= high <= 1:
        raise UserError(f"the noise rate must lie between 0 and 1, not in [{low}, {high}].")
    noisy, shuffled = np.asarray(noisy, np.float64), float(np.mean(shuffled))
    up = upper_mean(noisy, span, failing / 2)
    # Averages of several matchings obey Hoeffding's inequality for one of them (his section 5, for U-statistics).
    down = hoeffding(shuffled, shuffled_units, span, failing / 2, upper=False)
    worst = max(_debiased_or_inf(up, down, end) for end in eta)
    return Upper(float(np.clip(worst, *span)), float(noisy.mean()), up, shuffled, down, len(noisy), shuffled_units)


def _debiased_or_inf(up: float, down: float, rate: float) -> float:
    """Fact D, and its limit where nothing is left to see."""
    if rate < 1:
        return losses.debiased(up, down, rate)
    return -math.inf if up < down else math.inf


def largest_informative_rate(risk: float, trivial: float, noisy_radius: float, shuffled_radius: float) -> float:
    """The eta up to which the upper bound of a network of this clean risk would stay below `trivial`, its loss at equal
    logits: `risk + (noisy_radius + eta shuffled_radius) / (1 - eta) = trivial`, solved. 0 where it never is."""
    gap = trivial - risk
    if gap <= noisy_radius:
        return 0.0
    return min((gap - noisy_radius) / (gap + shuffled_radius), 1.0)


def largest_holding(rates: Sequence[float], held: Sequence[bool]) -> float | None:
    """The largest of the measured rates at which a bound held, as at all smaller ones; None where it failed at once."""
    largest = None
    for rate, holds in sorted(zip(rates, held, strict=True)):
        if not holds:
            break
        largest = rate
    return largest


# Pairs


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


def as_given(image_of) -> Units:
    """All images with the captions they came with. image_of: (K,)."""
    captions_of = _captions_by_image(image_of)
    images = np.array(list(captions_of))
    return _units(images, images, captions_of, None)


def with_noise(generator, image_of, rate: float) -> Units:
    """As many images as can be, the share `rate` (rounded up to whole ones) with the captions of images left out.

    n / (1 + rate) of n images are used: no image or caption occurs in two units, so that they are independent. A
    permutation among few images makes mismatched units depend on each other; of endless ones it is this. Raises
    UserError for a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise UserError(f"the noise rate must be between 0 and 1, not {rate}.")
    captions_of = _captions_by_image(image_of)
    order = generator.permutation(np.array(list(captions_of)))
    count = math.floor(len(order) / (1 + rate) + 1e-9)
    wrong = math.ceil(rate * count - 1e-9)
    donors = order[:count].copy()
    donors[:wrong] = order[count : count + wrong]
    return _units(order[:count], donors, captions_of, wrong)


def matchings(generator, image_of, times: int) -> list[Units]:
    """`times` times: half of the images, each with the captions of one of the other half: units that are independent.

    Raises UserError for fewer than two images.
    """
    captions_of = _captions_by_image(image_of)
    images = np.array(list(captions_of))
    half = len(images) // 2
    if not half:
        raise UserError("a certificate needs at least two held-out images with captions; make the val split larger.")
    orders = [generator.permutation(images) for _ in range(times)]
    return [_units(order[:half], order[half : 2 * half], captions_of, half) for order in orders]


def candidate_rows(generator, images: int, captions: int, others: int, sets: int) -> tuple[np.ndarray, np.ndarray]:
    """(sets, others) rows of candidate images and captions, drawn without replacement within a set."""
    draw = lambda count: np.stack([generator.permutation(count)[:others] for _ in range(sets)])
    return draw(images), draw(captions)


# Losses


def losses_among(losses: tuple, v, t, candidates, tau: float, rows: int = 2000):
    """Losses of pairs among fixed candidates, both directions and all candidate sets averaged: (len(losses), P).

    losses: (name, q) each. v, t: (P, D) unit embeddings. candidates: images and captions, (sets, B - 1, D) each.
    """
    measure, count = _among(tuple(losses), tau), len(v)
    size = min(rows, 1 << (count - 1).bit_length())  # few sizes, or each number of pairs would be compiled for itself
    padded = [np.pad(np.asarray(x), ((0, -count % size), (0, 0))) for x in (v, t)]
    parts = [np.asarray(measure(*(x[i : i + size] for x in padded), *candidates)) for i in range(0, count, size)]
    return np.concatenate(parts, 1)[:, :count]


@functools.lru_cache(maxsize=16)
def _among(losses: tuple, tau: float):
    functions = [label_loss(name, q) for name, q in losses]

    def measure(v, t, other_images, other_captions):
        own = (v * t).sum(-1, keepdims=True) / tau

        def one_set(others):
            rows = [jnp.concatenate([own, queries @ keys.T / tau], 1)
                    for queries, keys in ((v, others[1]), (t, others[0]))]
            return jnp.stack([sum(function(logits)[:, 0] for logits in rows) / 2 for function in functions])

        return jax.lax.map(one_set, (other_images, other_captions)).mean(0)

    return jax.jit(measure)


def by_unit(values, units: Units) -> np.ndarray:
    """(..., P) losses of pairs -> (..., count), the mean of each unit."""
    values = np.asarray(values, np.float64)
    sums = np.zeros((*values.shape[:-1], units.count))
    np.add.at(sums, (..., units.unit), values)
    return sums / np.bincount(units.unit, minlength=units.count)


# Tracks and memory


def residual_noise(probability, weights, mismatched=None) -> float:
    """The share of a track's weight that lies on mismatched pairs: known, or by the posteriors, whose mean of 1 - p it
    is if they are calibrated. probability, weights: (K,); mismatched: (K,) bool or None. NaN for an empty track."""
    weights = np.asarray(weights, np.float64)
    wrong = 1 - np.asarray(probability, np.float64) if mismatched is None else np.asarray(mismatched)
    return float((weights * wrong).sum() / weights.sum()) if weights.sum() else math.nan


class Memory(NamedTuple):
    """How far pairings were learned by heart: `gap` in units of the loss and its standard error; `share`, the gap
    relative to how far right pairs are below random ones."""

    gap: float
    error: float
    share: float


def memorized(seen, never, right: float) -> Memory:
    """Mean loss of images at captions they were never paired with, minus that at the wrong ones they were trained on.

    Where parameters do not depend on the permutation the two have one distribution and the gap is 0 but for chance.
    seen, never: (n,) by image. right: the mean loss of right pairs.
    """
    difference = np.asarray(never, np.float64) - np.asarray(seen, np.float64)
    error = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    span = float(np.mean(never)) - right
    share = float(difference.mean()) / span if span > 10 * error else math.nan  # nothing is learned yet
    return Memory(float(difference.mean()), error, share)


def first_memorized(gaps: Sequence[Memory], errors: float = 3.0) -> int | None:
    """The first epoch from which on the gap always exceeds so many standard errors; None if there is none."""
    over = [gap.gap > errors * gap.error for gap in gaps]
    first = len(over)
    while first and over[first - 1]:
        first -= 1
    return first if first < len(over) else None
