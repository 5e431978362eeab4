"""Noise tolerance: the noise rate up to which a method keeps a given share of its r_mean on clean pairs.

    python configs/studies/noise_tolerance.py configs/studies/noise.csv

One row per method and kind of noise. Between measured rates r_mean is interpolated linearly. The 95 % intervals are from
2000 bootstrap samples of the students of each cell, so they contain the variation of students and not of distilled sets.
"""

import csv
import sys
from collections import defaultdict

import numpy as np

SHARES = (0.9, 0.5)
SAMPLES = 2000


def cells(rows, kind, rate):
    """{(method, kind of noise): {rate: students' r_mean}}; the clean cell of a method belongs to every kind.

    Args:
        rows: of the CSVs.
        kind: column with the kind of noise.
        rate: column with its rate.
    """
    by_cell = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_cell[row["preset"], row[kind]][float(row[rate])].append(float(row["r_mean"]))
    clean = {name: scores[0.0] for (name, _), scores in by_cell.items() if 0.0 in scores}
    return {(name, noise): {**scores, 0.0: clean[name]} for (name, noise), scores in by_cell.items() if name in clean}


def tolerated_rate(rates, scores, share):
    """The first rate, by interpolation, at which scores fall below share * scores[0]; inf if they never do."""
    below = np.flatnonzero(np.asarray(scores) < share * scores[0])
    if not len(below):
        return np.inf
    k = below[0]
    return float(np.interp(share * scores[0], [scores[k], scores[k - 1]], [rates[k], rates[k - 1]]))


def with_interval(by_rate, share, generator):
    """The tolerated rate of the means, its bootstrap's 2.5 % and 97.5 % quantiles, and the largest rate measured."""
    rates = sorted(by_rate)
    means = [np.mean(by_rate[rate]) for rate in rates]
    draws = [tolerated_rate(rates, [generator.choice(by_rate[rate], len(by_rate[rate])).mean() for rate in rates], share)
             for _ in range(SAMPLES)]
    return tolerated_rate(rates, means, share), *np.quantile(draws, [0.025, 0.975], method="nearest"), rates[-1]


def cell_text(rate, low, high, last):
    """0.43 [0.38, 0.47]; > 0.8 where the share is kept at every measured rate."""
    text = [f"> {last:g}" if np.isinf(value) else f"{value:.2f}" for value in (rate, low, high)]
    return f"{text[0]} [{text[1]}, {text[2]}]"


def main(paths):
    rows = [row for path in paths for row in csv.DictReader(open(path, newline=""))]
    degraded = [row for row in rows if row.get("data.captions")]
    paired = [row for row in rows if not row.get("data.captions")]
    clean = [row for row in paired if float(row["noise.rate"]) == 0]
    for row in clean:
        row["data.captions_rate"] = "0"
    kinds = {row["data.captions"] for row in degraded}
    by_cell = cells(paired, "noise.protocol", "noise.rate") | cells(
        [{**row, "data.captions": kind} for kind in kinds for row in clean] + degraded,
        "data.captions", "data.captions_rate")
    generator = np.random.default_rng(0)
    print("| method | noise | " + " | ".join(f"keeps {share:.0%} up to" for share in SHARES) + " |")
    print("|---" * (2 + len(SHARES)) + "|")
    for (name, noise), by_rate in sorted(by_cell.items(), key=lambda item: item[0][::-1]):
        if len(by_rate) > 2:
            print(f"| {name} | {noise} | " + " | ".join(cell_text(*with_interval(by_rate, share, generator))
                                                       for share in SHARES) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
