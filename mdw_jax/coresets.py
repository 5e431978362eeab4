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
    probability = np.asarray(clean_probability)
    rows = np.flatnonzero(probability >= 0.5)
    chosen = rows[random_pairs(generator, np.asarray(image_of)[rows], count)]
    best_first = np.argsort(-probability, kind="stable")
    rest = best_first[~np.isin(best_first, chosen)]
    return np.concatenate([chosen, rest[: count - len(chosen)]])
