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
    # Top up by the next best pairs, of images not chosen yet.
    image_of = np.asarray(image_of)
    best = np.argsort(-probability, kind="stable")
    best = best[~np.isin(image_of[best], image_of[chosen])]
    _, first = np.unique(image_of[best], return_index=True)
    return np.concatenate([chosen, best[np.sort(first)][: count - len(chosen)]])
