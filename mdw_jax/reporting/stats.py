"""Means, standard deviations and 95 % intervals of scores. SciPy is imported when an interval is computed."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mdw_jax.io.scores import METRICS


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None from fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_text(values: Sequence[float]) -> str:
    """Mean +- standard deviation, with two decimals; the value alone where there is one."""
    spread = deviation(values)
    return f"{np.mean(values):.2f}" + ("" if spread is None else f" +- {spread:.2f}")


def half_interval(values: Sequence[float]) -> float | None:
    """Half the two-sided 95 % t-interval of the mean of independent values; None from fewer than two."""
    from scipy.special import stdtrit  # here, because SciPy is slow to import and `mdw runs` does without it

    n = len(values)
    return None if n < 2 else float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))


def half_interval_of_scores(rows: Iterable[Mapping]) -> float | None:
    """Half the 95 % t-interval of the mean r_mean of one preset.

    Args:
        rows: rows of scores.csv. The interval is over sets, the independent unit, where there are several, and
            otherwise over students (or networks).

    Returns:
        The half-width; None from a single set with a single student.
    """
    by_set: dict = {}
    for row in rows:
        by_set.setdefault(row["set"], []).append(float(row["r_mean"]))
    groups = list(by_set.values())
    return half_interval([float(np.mean(values)) for values in groups] if len(groups) > 1 else groups[0])


def summary(scores) -> dict[str, float]:
    """Mean and standard deviation (0 from one student) of each metric.

    Args:
        scores: (students, 7), in the order of `METRICS`.

    Returns:
        {metric: mean, metric + "_std": standard deviation}.
    """
    scores = np.asarray(scores)
    deviations = scores.std(0, ddof=1) if len(scores) > 1 else np.zeros(scores.shape[1])
    row = {}
    for i, name in enumerate(METRICS):
        row[name] = float(scores[:, i].mean())
        row[f"{name}_std"] = float(deviations[i])
    return row


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """The difference of two means without assuming equal variances (Welch 1947).

    Args:
        a: independent values.
        b: independent values.

    Returns:
        mean(b) - mean(a), and the ends of its 95 % interval, nan if `a` or `b` has one value.
    """
    from scipy.special import stdtrit  # here, because SciPy is slow to import and `mdw runs` does without it

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
