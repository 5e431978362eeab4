"""Means, spreads and intervals of scores."""

import math
from collections.abc import Sequence

import numpy as np

from mdw_jax.method.retrieval import METRICS


def half_interval(values: Sequence[float]) -> float | None:
    """Half the two-sided 95 % t-interval of the mean of independent values; None from fewer than two."""
    from scipy.special import stdtrit  # here, because `mdw runs` does without it

    n = len(values)
    return None if n < 2 else float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))


def summary(scores) -> dict[str, float]:
    """Mean and standard deviation of each metric over students: (n, 7) -> flat dict."""
    scores = np.asarray(scores)
    deviation = scores.std(0, ddof=1) if len(scores) > 1 else np.zeros(scores.shape[1])
    row = {}
    for i, name in enumerate(METRICS):
        row[name] = float(scores[:, i].mean())
        row[f"{name}_std"] = float(deviation[i])
    return row


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """mean(b) - mean(a) and its 95 % interval, the variances not taken for equal (Welch 1947); nan from one value."""
    from scipy.special import stdtrit  # here, because `mdw runs` does without it

    difference = float(np.mean(b) - np.mean(a))
    if min(len(a), len(b)) < 2:
        return difference, math.nan, math.nan
    parts = [np.var(values, ddof=1) / len(values) for values in (a, b)]
    variance = sum(parts)
    if variance == 0:
        return difference, difference, difference
    freedom = variance**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    half = float(stdtrit(freedom, 0.975) * math.sqrt(variance))
    return difference, difference - half, difference + half


def interval(rows: Sequence[dict]) -> float | None:
    """Half the 95 % t-interval of the mean r_mean: over sets where there are several, else over students (networks)."""
    by_set = {}
    for row in rows:
        by_set.setdefault(row["set"], []).append(float(row["r_mean"]))
    return half_interval([float(np.mean(values)) for values in by_set.values()] if len(by_set) > 1 else
                         next(iter(by_set.values())))
