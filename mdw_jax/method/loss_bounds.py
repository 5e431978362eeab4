"""What the certificate needs to know of each expert loss, in numpy (docs/method.md, section 3).

A row holds the logits cos / tau of one query with its B candidates, each in [-1/tau, 1/tau]; p = softmax(row).
Three functions per loss, all of (batch, q, tau) with batch = B >= 2, the exponent q (None for losses without one) and
the temperature tau:

* `*_sum_bounds` -> (lo, hi): bounds of the sum of the loss over the B candidates of a row. `lo` is attained at equal
  logits. `hi` is attained by `infonce` and `rince`, at logits +-1/tau; the other losses depend on p alone, their bounds
  hold for any logits (tau is not used), and they approach `hi` as p becomes one-hot.
* `*_range` -> (lowest, highest): the values that the loss of one candidate can have. `infonce`, `rince` and the lower
  end of `gce` and `mae` use that logits lie in [-1/tau, 1/tau].
* `*_chance_gap` -> float: the loss at equal logits (chance guessing) minus the lowest possible loss. The lowest loss is
  0, except for `infonce` and `rince`, where it is what logits in [-1/tau, 1/tau] allow.
"""

import math

import numpy as np


def scaled_mass(high, batch: int, tau: float):
    """`sum_j exp(s_j - 1/tau)` of a row with `high` logits at +1/tau and the others at -1/tau."""
    return high + (batch - high) * math.exp(-2 / tau)


def _corner_counts(batch: int):
    """The corners of the box of logits up to order: how many of the B logits are at +1/tau."""
    return np.arange(1, batch)


def infonce_sum_bounds(batch: int, q: None, tau: float) -> tuple[float, float]:
    """`B logsumexp(s) - sum(s)` is convex: lowest at equal logits, highest at a corner of [-1/tau, 1/tau]^B."""
    high = _corner_counts(batch)
    corners = batch * np.log(scaled_mass(high, batch, tau)) + 2 * (batch - high) / tau
    return batch * math.log(batch), float(corners.max())


def infonce_range(batch: int, q: None, tau: float) -> tuple[float, float]:
    """From one logit at +1/tau and the others at -1/tau to the reverse."""
    largest_p = 1 / scaled_mass(1, batch, tau)
    return -math.log(largest_p), 2 / tau + math.log(batch - 1 + math.exp(-2 / tau))


def infonce_chance_gap(batch: int, q: None, tau: float) -> float:
    """`log B` minus the lowest loss."""
    return float(math.log(batch) - math.log(scaled_mass(1, batch, tau)))


def gce_sum_bounds(batch: int, q: float, tau: float) -> tuple[float, float]:
    """`(B - sum p^q) / q`, where `1 <= sum p^q <= B^(1 - q)` (Zhang and Sabuncu 2018)."""
    return (batch - batch ** (1 - q)) / q, (batch - 1) / q


def gce_range(batch: int, q: float, tau: float) -> tuple[float, float]:
    """From the largest possible p to p = 0."""
    largest_p = 1 / scaled_mass(1, batch, tau)
    return (1 - largest_p**q) / q, 1 / q


def gce_chance_gap(batch: int, q: float, tau: float) -> float:
    """The loss at p = 1/B."""
    return float((1 - batch**-q) / q)


def mae_sum_bounds(batch: int, q: None, tau: float) -> tuple[float, float]:
    """Constant (Ghosh et al. 2017)."""
    return batch - 1.0, batch - 1.0


def mae_range(batch: int, q: None, tau: float) -> tuple[float, float]:
    """From the largest possible p to p = 0."""
    largest_p = 1 / scaled_mass(1, batch, tau)
    return 1 - largest_p, 1.0


def mae_chance_gap(batch: int, q: None, tau: float) -> float:
    """The loss at p = 1/B."""
    return float(1 - 1 / batch)


def rince_sum_bounds(batch: int, q: float, tau: float) -> tuple[float, float]:
    """With x = exp(s) the sum is `(B / q) (mean(x)^q - mean(x^q))` (this work).

    It is >= 0 (Jensen). As a function of one x_i it falls below the mean and rises above it, so its maximum over the
    box of logits is at a corner.
    """
    high = _corner_counts(batch)
    gap = (scaled_mass(high, batch, tau) / batch) ** q - (high + (batch - high) * math.exp(-2 * q / tau)) / batch
    return 0.0, float((batch / q * math.exp(q / tau) * gap).max())


def rince_range(batch: int, q: float, tau: float) -> tuple[float, float]:
    """The loss rises with every other logit and falls with its own: its slope in e^s has e^s >= 0 to the power q - 1."""
    def at(own):
        return (math.exp(-q * own / tau) * ((math.exp(2 * own / tau) + batch - 1) / batch) ** q
                - math.exp(q * own / tau)) / q

    return at(1), at(-1)


def rince_chance_gap(batch: int, q: float, tau: float) -> float:
    """0 (equal logits, weight 1/B) minus the lowest loss."""
    return float(math.exp(q / tau) * (1 - (scaled_mass(1, batch, tau) / batch) ** q) / q)


# `ccl_tan` and `acl` divide `sum_{j != y} tan p_j` by T^q, T = sum_j tan p_j, with q = 0 for `ccl_tan`. Their sum over
# candidates is (B - 1) T^(1 - q); T is convex in p: B tan(1/B) <= T <= tan 1.


def acl_sum_bounds(batch: int, q: float, tau: float) -> tuple[float, float]:
    """`(B - 1) T^(1 - q)` at both ends of T."""
    power = 1 - q
    return (batch - 1) * (batch * math.tan(1 / batch)) ** power, (batch - 1) * math.tan(1) ** power


def acl_range(batch: int, q: float, tau: float) -> tuple[float, float]:
    """`sum_{j != y} tan p_j` is at most tan 1 (convex), and T is at least that sum and at most tan 1."""
    return 0.0, math.tan(1) ** (1 - q)


def acl_chance_gap(batch: int, q: float, tau: float) -> float:
    """The loss at p = 1/B."""
    return float((1 - 1 / batch) * (batch * math.tan(1 / batch)) ** (1 - q))


def ccl_tan_sum_bounds(batch: int, q: None, tau: float) -> tuple[float, float]:
    """`acl_sum_bounds` at q = 0."""
    return acl_sum_bounds(batch, 0, tau)


def ccl_tan_range(batch: int, q: None, tau: float) -> tuple[float, float]:
    """`acl_range` at q = 0."""
    return acl_range(batch, 0, tau)


def ccl_tan_chance_gap(batch: int, q: None, tau: float) -> float:
    """`acl_chance_gap` at q = 0."""
    return acl_chance_gap(batch, 0, tau)
