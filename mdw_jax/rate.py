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
"""

from typing import NamedTuple

import numpy as np


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
    the least share of the null's tail that is looked at; further out the ratio is noise.
    """
    observed, null = np.asarray(observed, np.float64), np.sort(np.asarray(null, np.float64))
    thresholds = np.quantile(null, np.linspace(0, 1 - smallest_tail, 99))
    bins = np.searchsorted(thresholds, observed, side="right")
    _, group_of = np.unique(groups, return_inverse=True)
    # One row a group: how many of its pairs lie above each threshold is a cumulative sum from the right.
    counts = np.zeros((group_of.max() + 1, len(thresholds) + 1), np.int32)
    np.add.at(counts, (group_of, bins), 1)
    null_tail = 1 - np.searchsorted(null, thresholds, side="left") / len(null)

    def tails(weights):
        histogram = weights @ counts
        return histogram[::-1].cumsum()[::-1][1:] / histogram.sum()

    tail = tails(np.ones(len(counts)))
    # What sampling could add to a tail: without it the least of 99 noisy ratios would be too small. The bootstrap keeps
    # the threshold chosen here, for the same reason.
    slack = 2 * np.sqrt(tail * (1 - tail) / len(counts))
    best = np.argmin((tail + slack) / null_tail)
    generator, size = np.random.default_rng(seed), len(counts)
    draws_of = (np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(draws))
    found = np.minimum([tails(weights)[best] / null_tail[best] for weights in draws_of], 1)
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Rate(float(min(tail[best] / null_tail[best], 1)), float(low), float(high), confidence)
