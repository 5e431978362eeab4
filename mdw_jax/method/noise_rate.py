"""Estimating eta: what share of the pairs is mismatched, where nobody knows (ours).

Mismatched pairs are a random image and a random caption, so how a network scores them needs no guess: pair every
image with a caption of another batch and look. What is observed is a mixture, `F = (1 - eta) F_clean + eta F_null`, of
which F_null is thus known. Where clean pairs are rare, in the upper tail of the losses, the ratio of the two tails is
eta. This is mixture proportion estimation with one known part (Blanchard et al. 2010; best bin: Garg et al. 2021),
and needs no shape for F_clean, unlike a Gaussian mixture, which finds two groups in anything.

The estimate is eta plus whatever clean pairs are no better than random ones to this network, so it errs upwards for
weak networks, and downwards for networks that have learned the mismatched pairs by heart: let others judge than those
that were trained on them (`experts.noise_rate`). Mismatches that are not random (near duplicates' captions exchanged)
look half clean, and count so.

The least of many noisy ratios is too small (by up to 13 points where it was measured): each half of the data therefore
chooses the threshold at which the other half is counted.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from mdw_jax.method.expert_step import Recipe, _pair_loss
from mdw_jax.method.experts import Checkpointer, _all_pair_losses, _generation
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs, embeddings_of_all, ensemble_embeddings
from mdw_jax.runtime.mesh import jitted
from mdw_jax.runtime.rng import named_generator


class Rate(NamedTuple):
    """An estimate of eta and its bootstrap interval."""

    eta: float
    low: float
    high: float
    confidence: float


def estimate_rate(observed, null, groups, *, seed: int = 0, draws: int = 200, confidence: float = 0.95,
                  smallest_tail: float = 0.02) -> Rate:
    """Estimate eta from losses.

    observed: (K,) losses of the pairs as given. null: (K',) losses of pairs mismatched on purpose. groups: (K,) what is
    drawn together in the bootstrap: the image of each pair, for captions of one image share their fate. smallest_tail:
    the least share of the null's tail that is looked at; further out the ratio is noise. With fewer than two groups
    nothing is said: 0 to 1.
    """
    observed, null = np.asarray(observed, np.float64), np.asarray(null, np.float64)
    generator = np.random.default_rng(seed)
    _, group_of = np.unique(groups, return_inverse=True)
    size = group_of.max() + 1
    if size < 2:
        return Rate(0.0, 0.0, 1.0, 1.0)
    thresholds = np.quantile(null, np.linspace(0, 1 - smallest_tail, 99))
    bins = np.searchsorted(thresholds, observed, side="right")
    # One row a group: how many of its pairs lie above each threshold is a cumulative sum from the right.
    counts = np.zeros((size, len(thresholds) + 1), np.int32)
    np.add.at(counts, (group_of, bins), 1)
    null_counts = [np.bincount(np.searchsorted(thresholds, half, side="right"), minlength=len(thresholds) + 1)
                   for half in np.array_split(generator.permutation(null), 2)]
    halves = [_Half(counts[rows], null_tail, len(null) // 2) for rows, null_tail in zip(
        np.array_split(generator.permutation(size), 2), map(_tail, null_counts), strict=True)]
    choices = [half.best() for half in halves][::-1]
    ratio = lambda resample: np.mean([half.ratio(choice, resample)
                                      for half, choice in zip(halves, choices, strict=True)])
    # The bootstrap keeps the thresholds: they were not chosen on what is counted.
    found = np.minimum([ratio(generator) for _ in range(draws)], 1)
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Rate(min(float(ratio(None)), 1.0), float(low), float(high), confidence)


def _tail(histogram):
    """(thresholds + 1,) counts -> (thresholds,) the share above each."""
    return histogram[::-1].cumsum()[::-1][1:] / histogram.sum()


class _Half(NamedTuple):
    """Half of the groups, (groups, thresholds + 1) counts, and the tails of half of the null."""

    counts: np.ndarray
    null_tail: np.ndarray
    null_size: int

    def best(self) -> int:
        """The threshold of the least ratio, two standard errors of the tail added: further out it would be noise."""
        tail = _tail(self.counts.sum(0))
        return int(np.argmin((tail + 2 * np.sqrt(tail * (1 - tail) / len(self.counts)))
                             / np.maximum(self.null_tail, 1 / self.null_size)))

    def ratio(self, choice: int, generator) -> float:
        """The ratio of the tails there; of a bootstrap sample of both, if there is a generator."""
        groups, null_tail = len(self.counts), max(self.null_tail[choice], 1 / self.null_size)
        above, pairs = self.counts[:, choice + 1 :].sum(1), self.counts.sum(1)
        if generator is not None:
            drawn = generator.integers(groups, size=groups)
            above, pairs = above[drawn], pairs[drawn]
            null_tail = max(generator.binomial(self.null_size, null_tail), 1) / self.null_size
        return float(above.sum() / pairs.sum() / null_tail)


def noise_rate(model: DualEncoder, train: Inputs, val: Inputs, recipe: Recipe, *, seed: int,
               shelf: Checkpointer = Checkpointer()) -> Rate:
    """The share of mismatched pairs (`rate.py`), by networks that were not trained on the pairs they judge.

    Two folds by image: a pair of networks learns on one without any division and judges the other. Those that divide
    would have learned by heart the mismatched pairs that slipped through, and count them as right. A set too small for
    two batches a fold says nothing: 0 to 1.
    """
    image_of = np.asarray(train.image_of)
    division = recipe.division if recipe.division in ("clean", "tolerant", "both") else "tolerant"
    plain = dataclasses.replace(recipe, division=division, recovery_weight=0.0, guidance_weight=0.0, debias=False)
    fold = named_generator(seed, "rate").permutation(image_of.max() + 1)[image_of] % 2
    observed, null, judged = [], [], []
    for side in (0, 1):
        learn, judge = np.flatnonzero(fold != side), np.flatnonzero(fold == side)
        if min(len(learn), len(judge)) < 2 * recipe.batch:
            return Rate(0.0, 0.0, 1.0, 1.0)
        half = Inputs(train.images, train.texts[learn], image_of[learn])
        epochs = recipe.teacher_epochs if recipe.teacher_count else recipe.epochs
        trained = _generation(model, half, val, plain, f"rate {side}", count=1, epochs=epochs, seed=seed, keep=0,
                              rate=0.0, mismatched=None, on_epoch=lambda *_: None, shelf=shelf)
        said = embeddings_of_all(model, trained.best, Inputs(train.images, train.texts[judge], None))
        both = [tuple(ensemble_embeddings([one[branch] for one in said]) for branch in (0, 1))]
        find = functools.partial(_all_pair_losses, jitted(_pair_loss(model.tau)), both, image_of[judge],
                                 recipe.batch, seed, f"rate {side}")
        observed.append(find()[0])
        null.append(find(mismatch=True)[0])
        judged.append(image_of[judge])
    return estimate_rate(*map(np.concatenate, (observed, null, judged)), seed=seed)
