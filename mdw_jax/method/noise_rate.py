"""Estimate of eta, the share of mismatched pairs, where it is unknown (this work).

Mismatched pairs are a random image and a random caption, so how a network scores them can be measured: pair every image
with a caption of another batch. The losses of the pairs as given are a mixture, `F = (1 - eta) F_clean + eta F_null`, of
which F_null is thus known. In the upper tail of the losses, where clean pairs are rare, the ratio of the two tails is
eta. This is mixture proportion estimation with one known part (Blanchard et al. 2010; best bin: Garg et al. 2021). It
assumes no shape of F_clean, unlike a Gaussian mixture, which finds two groups in any data.

The estimate is eta plus the share of clean pairs that look no better than random ones to the network, so it errs upwards
for weak networks. For networks that have memorized mismatched pairs it errs downwards, so the pairs are judged by
networks that were not trained on them (`noise_rate`). Mismatches that are not random (exchanged captions of
near-duplicates) look half clean and count as such.

The least of many noisy ratios is too small (by up to 13 points where it was measured). Therefore each half of the data
chooses the threshold at which the other half is counted.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from mdw_jax.data.stored_rows import select_rows
from mdw_jax.method.expert_state import Checkpointer
from mdw_jax.method.expert_step import Recipe
from mdw_jax.method.experts import generation_epochs
from mdw_jax.method.generation import make_generation
from mdw_jax.method.teacher_embeddings import teacher_ensembles
from mdw_jax.method.teachers import all_pair_losses
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs
from mdw_jax.runtime.rng import named_generator

FEWEST_PAIRS = 500  # of a fold; networks of fewer are weak, which would count as mismatches
LEAST_SEPARATION = 0.55  # of the pairs from random ones
_THRESHOLDS = 99  # quantiles of the null losses that are candidates for the start of the tail


class Rate(NamedTuple):
    """An estimate of eta and its bootstrap interval.

    Attributes:
        eta: the estimate, in [0, 1].
        low, high: ends of the interval.
        confidence: of the interval.
    """

    eta: float
    low: float
    high: float
    confidence: float


UNKNOWN = Rate(0.0, 0.0, 1.0, 1.0)  # of data too few to say anything


def estimate_rate(observed, null, groups, *, seed: int = 0, draws: int = 200, confidence: float = 0.95,
                  smallest_tail: float = 0.02) -> Rate:
    """Estimate eta from losses.

    Args:
        observed: (K,) losses of the pairs as given.
        null: (K',) losses of pairs that were mismatched on purpose.
        groups: (K,) the image of each pair: captions of one image are right or wrong together, so the bootstrap draws
            them together.
        seed: of the halves and of the bootstrap.
        draws: bootstrap samples.
        confidence: of the interval.
        smallest_tail: the smallest share of the null's tail that is looked at; further out the ratio is noise.

    Returns:
        The estimate; `UNKNOWN` with fewer than two groups.
    """
    observed, null = np.asarray(observed, np.float64), np.asarray(null, np.float64)
    generator = np.random.default_rng(seed)
    _, group_of = np.unique(groups, return_inverse=True)
    size = group_of.max() + 1
    if size < 2:
        return UNKNOWN
    thresholds = np.quantile(null, np.linspace(0, 1 - smallest_tail, _THRESHOLDS))
    bins = np.asarray(np.searchsorted(thresholds, observed, side="right"))
    null_counts = [np.bincount(np.searchsorted(thresholds, half, side="right"), minlength=len(thresholds) + 1)
                   for half in np.array_split(generator.permutation(null), 2)]
    halves = [_half(group_of, bins, groups, null_tail, len(null) // 2) for groups, null_tail in zip(
        np.array_split(generator.permutation(size), 2), map(_tail, null_counts), strict=True)]
    choices = [half.best_threshold() for half in halves][::-1]
    above = [half.above(choice) for half, choice in zip(halves, choices, strict=True)]
    ratio = lambda resample: np.mean([half.ratio(choice, counts, resample)
                                      for half, choice, counts in zip(halves, choices, above, strict=True)])
    # The bootstrap keeps the thresholds: they were not chosen on the data that is counted.
    samples = np.minimum([ratio(generator) for _ in range(draws)], 1)
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Rate(min(float(ratio(None)), 1.0), float(low), float(high), confidence)


def _half(group_of: np.ndarray, bins: np.ndarray, groups: np.ndarray, null_tail: np.ndarray, null_size: int) -> "_Half":
    """The half that consists of these groups, of all pairs' groups and bins."""
    place = np.full(group_of.max() + 1, -1)
    place[groups] = np.arange(len(groups))
    own = place[group_of]
    return _Half(len(groups), own[own >= 0], bins[own >= 0], null_tail, null_size)


def _tail(histogram):
    """(thresholds + 1,) counts -> (thresholds,) the share above each."""
    return histogram[::-1].cumsum()[::-1][1:] / histogram.sum()


class _Half(NamedTuple):
    """Half of the groups, and the tails of half of the null.

    Attributes:
        groups: how many.
        group_of: (n,) group of each of their pairs, in the order in which they were drawn.
        bins: (n,) how many thresholds each pair's loss reaches.
        null_tail: (thresholds,) share of the null above each.
        null_size: of the half.
    """

    groups: int
    group_of: np.ndarray
    bins: np.ndarray
    null_tail: np.ndarray
    null_size: int

    def best_threshold(self) -> int:
        """Index of the threshold with the smallest ratio, two standard errors of the tail added."""
        tail = _tail(np.bincount(self.bins, minlength=len(self.null_tail) + 1))
        return int(np.argmin((tail + 2 * np.sqrt(tail * (1 - tail) / self.groups))
                             / np.maximum(self.null_tail, 1 / self.null_size)))

    def above(self, threshold: int) -> tuple[np.ndarray, np.ndarray]:
        """(groups,) pairs of each group above a threshold, and all pairs of it."""
        of_these = self.group_of[self.bins > threshold]
        return np.bincount(of_these, minlength=self.groups), np.bincount(self.group_of, minlength=self.groups)

    def ratio(self, threshold: int, counts: tuple[np.ndarray, np.ndarray], generator: np.random.Generator | None) -> float:
        """The ratio of the tails above a threshold, `counts` of which `above` gives; with a generator, of a bootstrap
        sample of both."""
        groups, null_tail = self.groups, max(self.null_tail[threshold], 1 / self.null_size)
        above, pairs = counts
        if generator is not None:
            drawn = generator.integers(groups, size=groups)
            above, pairs = above[drawn], pairs[drawn]
            null_tail = max(generator.binomial(self.null_size, null_tail), 1) / self.null_size
        return float(above.sum() / pairs.sum() / null_tail)


def noise_rate(model: DualEncoder, train: Inputs, val: Inputs, recipe: Recipe, *, seed: int,
               checkpointer: Checkpointer | None = None) -> Rate:
    """Estimate the share of mismatched pairs by networks that were not trained on the pairs they judge.

    There are two folds by image: a pair of networks learns on one fold and judges the other. They train without any
    division, because networks that divide memorize the mismatched pairs that slip through and count them as right.

    Args:
        model: the dual encoder.
        train: training pairs as given.
        val: truly paired data that the best epoch is chosen on.
        recipe: of the experts, whose losses and step sizes are used.
        seed: of all random draws.
        checkpointer: where to resume from and to keep states.

    Returns:
        The estimate; `UNKNOWN` where a fold has fewer pairs than `fewest_of_fold`, or where networks do not tell its
        pairs from random ones: nearly all are mismatched then, or the networks are too weak to know.
    """
    image_of, checkpointer = np.asarray(train.image_of), checkpointer or Checkpointer()
    fold = named_generator(seed, "rate").permutation(image_of.max() + 1)[image_of] % 2
    judged, losses = [], []
    for side in (0, 1):
        learn, judge = np.flatnonzero(fold != side), np.flatnonzero(fold == side)
        if min(len(learn), len(judge)) < fewest_of_fold(recipe.batch):
            return UNKNOWN
        # One fold's texts and embeddings at a time: each is a function's own, and let go with it.
        networks = _train_fold(f"rate {side}", model, _pairs_of(train, learn), val, recipe, seed, checkpointer)
        losses.append(_fold_losses(side, model, networks, _pairs_of(train, judge), recipe, seed, checkpointer))
        judged.append(image_of[judge])
    observed, null = map(np.concatenate, zip(*losses, strict=True))
    if separation(observed, null) < LEAST_SEPARATION:
        return UNKNOWN
    return estimate_rate(observed, null, np.concatenate(judged), seed=seed)


def _pairs_of(train: Inputs, rows: np.ndarray) -> Inputs:
    """All images, and the captions of these rows."""
    return Inputs(train.images, select_rows(train.texts, rows), np.asarray(train.image_of)[rows])


def _fold_losses(side: int, model: DualEncoder, networks: list, pairs: Inputs, recipe: Recipe, seed: int,
                 checkpointer: Checkpointer) -> list[np.ndarray]:
    """The losses of pairs by networks that did not learn them, as given and mismatched on purpose."""
    ensemble, = teacher_ensembles(model, networks, pairs, [range(len(networks))], checkpointer.folder, f"rate-{side}")
    return [all_pair_losses([ensemble], model.tau, pairs.image_of, recipe.batch, seed=seed, epoch=f"rate {side}",
                            mismatch=mismatch)[0] for mismatch in (False, True)]


def fewest_of_fold(batch: int) -> int:
    """The fewest pairs of each of the two folds with which the rate is estimated, with experts of this batch."""
    return max(2 * batch, FEWEST_PAIRS)


def separation(observed, null) -> float:
    """The chance that a pair of the data has a smaller loss than a mismatched one: 0.5 of networks that see no difference.

    Args:
        observed: (K,) losses of the pairs as given.
        null: (K',) losses of mismatched pairs.
    """
    null = np.sort(null)
    below, not_above = np.searchsorted(null, observed, "left"), np.searchsorted(null, observed, "right")
    return float(1 - (below + not_above).mean() / (2 * len(null)))


def _train_fold(name: str, model: DualEncoder, fold: Inputs, val: Inputs, recipe: Recipe, seed: int,
                checkpointer: Checkpointer) -> list:
    """Two networks that learned one fold without division, at their best epochs."""
    division = recipe.division if recipe.division in ("clean", "tolerant", "both") else "tolerant"
    undivided = dataclasses.replace(recipe, division=division, recovery_weight=0.0, guidance_weight=0.0, debias=False,
                                    optimizer="sgd", decay="none")  # nobody teaches them
    epochs = recipe.teacher_epochs if recipe.teacher_count else recipe.epochs
    generation = make_generation(name, model, fold, val, undivided, count=1, epochs=epochs, seed=seed,
                                 folder=checkpointer.folder)
    *_, state = generation_epochs(generation, checkpointer)
    return state.best
