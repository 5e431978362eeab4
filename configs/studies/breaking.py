"""Breaking points: the noise rate from which on a method keeps less than a share of what it has on clean pairs.

    python configs/studies/breaking.py configs/studies/noise.csv

One row a method and kind of noise. Between measured rates r_mean is taken for linear; the intervals (95 %) are of 2000
bootstrap samples of the students of each cell, so they hold what students differ by and not what distilled sets do.
"""

import csv
import sys
from collections import defaultdict

import numpy as np

SHARES = (0.9, 0.5)
SAMPLES = 2000


def cells(rows, kind, rate):
    """{(method, kind of noise): {rate: students' r_mean}}; the clean cell of a method stands under every kind."""
    found = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["preset"], row[kind]][float(row[rate])].append(float(row["r_mean"]))
    clean = {name: scores[0.0] for (name, _), scores in found.items() if 0.0 in scores}
    return {(name, of): {**scores, 0.0: clean[name]} for (name, of), scores in found.items() if name in clean}


def max_informative_rate(rates, scores, share):
    """The first rate, by interpolation, at which scores fall below share * scores[0]; inf if they never do."""
    below = np.flatnonzero(np.asarray(scores) < share * scores[0])
    if not len(below):
        return np.inf
    k = below[0]
    return float(np.interp(share * scores[0], [scores[k], scores[k - 1]], [rates[k], rates[k - 1]]))


def with_interval(by_rate, share, generator):
    """The breaking point of the means, and the 2.5 % and 97.5 % quantiles of the bootstrap's."""
    rates = sorted(by_rate)
    means = [np.mean(by_rate[rate]) for rate in rates]
    draws = [max_informative_rate(rates, [generator.choice(by_rate[rate], len(by_rate[rate])).mean() for rate in rates], share)
             for _ in range(SAMPLES)]
    return max_informative_rate(rates, means, share), *np.quantile(draws, [0.025, 0.975], method="nearest"), rates[-1]


def shown(point, low, high, last):
    """0.43 [0.38, 0.47]; > 0.8 where no measured rate breaks it."""
    text = [f"> {last:g}" if np.isinf(value) else f"{value:.2f}" for value in (point, low, high)]
    return f"{text[0]} [{text[1]}, {text[2]}]"


def main(paths):
    rows = [row for path in paths for row in csv.DictReader(open(path, newline=""))]
    degrade_captions = [row for row in rows if row.get("data.captions")]
    paired = [row for row in rows if not row.get("data.captions")]
    clean = [row for row in paired if float(row["noise.rate"]) == 0]
    for row in clean:
        row["data.captions_rate"] = "0"
    found = cells(paired, "noise.protocol", "noise.rate") | cells(
        [{**row, "data.captions": of} for of in {r["data.captions"] for r in degrade_captions} for row in clean] + degrade_captions,
        "data.captions", "data.captions_rate")
    generator = np.random.default_rng(0)
    print("| method | noise | " + " | ".join(f"keeps {share:.0%} up to" for share in SHARES) + " |")
    print("|---" * (2 + len(SHARES)) + "|")
    for (name, of), by_rate in sorted(found.items(), key=lambda item: item[0][::-1]):
        if len(by_rate) > 2:
            print(f"| {name} | {of} | " + " | ".join(shown(*with_interval(by_rate, share, generator))
                                                    for share in SHARES) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
