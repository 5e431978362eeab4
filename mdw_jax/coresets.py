"""Real pairs chosen from the noisy training set: baselines, and starting points of distillation."""

import numpy as np


def random_pairs(generator: np.random.Generator, image_of, count: int):
    """`count` different images, each with one of the captions paired with it: rows (count,) into the captions."""
    image_of = np.asarray(image_of)
    rows = generator.permutation(len(image_of))
    _, first = np.unique(image_of[rows], return_index=True)
    return rows[generator.permutation(first)[:count]]


def clean_pairs(generator: np.random.Generator, image_of, clean_probability, count: int):
    """Like `random_pairs`, among pairs the experts' division calls clean (`w >= 0.5`); topped up by the next best."""
    rows = np.flatnonzero(np.asarray(clean_probability) >= 0.5)
    chosen = rows[random_pairs(generator, np.asarray(image_of)[rows], count)] if len(rows) else rows
    if len(chosen) < count:
        rest = np.setdiff1d(np.argsort(-np.asarray(clean_probability), kind="stable"), chosen, assume_unique=False)
        rest = rest[np.argsort(-np.asarray(clean_probability)[rest], kind="stable")]
        chosen = np.concatenate([chosen, rest[: count - len(chosen)]])
    return chosen
