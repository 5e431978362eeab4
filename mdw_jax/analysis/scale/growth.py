"""How measurements grow with the number of pairs."""

from collections.abc import Sequence

import numpy as np


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The power of N by which values grow, fitted to their logarithms; None with fewer than two sizes.

    What does not depend on N (starting, compiling) makes it smaller: `marginal_exponent` is the stricter one.
    """
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def marginal_exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The power by which growth itself grows: 1 where each further pair costs as much as the one before.

    Of the last three sizes a < b < c: with slopes s1 between a and b and s2 between b and c, 1 + log(s2 / s1) / log of
    the ratio of the intervals' middles. None with fewer than three sizes, or where a value falls.
    """
    if len(sizes) < 3:
        return None
    (a, b, c), (u, v, w) = sizes[-3:], values[-3:]
    first, second = (v - u) / (b - a), (w - v) / (c - b)
    if first <= 0 or second <= 0:
        return None
    return float(1 + np.log(second / first) / np.log((b + c) / (a + b)))


def at_size(sizes: Sequence[float], values: Sequence[float], size: float) -> float:
    """The value at another size, on the line through the two largest sizes; with one size in proportion to it."""
    if len(sizes) == 1:
        return values[0] * size / sizes[0]
    slope = (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
    return values[-1] + max(slope, 0.0) * (size - sizes[-1])
