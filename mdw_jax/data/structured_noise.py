"""Structured noise, which is what the web has: captions of look-alikes swapped, captions that say little.

`swap_similar` is a noise protocol (`noise.py`): it moves captions, and says which are mismatched. `degrade_captions` changes what
training captions say; their pairs stay right, so it belongs to the data (`data.captions`), not to a noise draw.
"""

import dataclasses

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from mdw_jax.config.options import DEGRADATIONS
from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.errors import UserError
from mdw_jax.runtime.rng import named_generator

NEIGHBOURS = 30  # candidates an image in one round of matching; more change hardly anything
GENERIC = ("a picture", "an image", "photo", "stock photo", "untitled", "a picture of something", "image 1",
           "click to enlarge", "thumbnail", "no description")


def swap_similar(split: Split, rate: float, generator: np.random.Generator) -> np.ndarray:
    """(N,) int64: which image the captions of each image go to: round(rate * N) images swap in pairs of look-alikes.

    Of the chosen images those whose captions are alike (cosine of tf-idf word counts) swap theirs, the most alike
    first; with an odd number one stays. Many of these mismatches are half true, which is what makes them hard.
    """
    index = np.arange(len(split.images), dtype=np.int64)
    free = np.sort(generator.permutation(index)[: round(rate * len(index))])
    said = [[] for _ in index]
    for caption, image in zip(split.captions, split.image_of, strict=True):
        said[image].append(caption)
    words = TfidfVectorizer(token_pattern=r"\S+").fit_transform([" ".join(["-", *captions]) for captions in said])
    while len(free) > 1:
        near = NearestNeighbors(n_neighbors=min(NEIGHBOURS + 1, len(free)), metric="cosine", algorithm="brute")
        distances, found = near.fit(words[free]).kneighbors(words[free])
        one, other, far = np.repeat(np.arange(len(free)), found.shape[1]), found.ravel(), distances.ravel().round(9)
        one, other = np.minimum(one, other), np.maximum(one, other)
        taken = np.zeros(len(free), bool)
        for row in np.lexsort((other, one, far)):
            a, b = one[row], other[row]
            if a != b and not taken[a] and not taken[b]:
                taken[[a, b]] = True
                index[free[[a, b]]] = free[[b, a]]
        free = free[~taken]
    return index


def degrade_captions(pairs: Pairs, kind: str, rate: float, seed: int) -> Pairs:
    """`pairs` with round(rate * K) of the K training captions saying less; val and test stay as they are.

    kind: "generic" (one of `GENERIC` instead) or "truncated" (the first words only, at most half of them).
    Raises UserError for another kind, or a rate outside [0, 1].
    """
    if kind not in DEGRADATIONS:
        raise UserError(f"data.captions is '{kind}'; choose one of {', '.join(DEGRADATIONS)}, or '' to leave captions alone.")
    if not 0 <= rate <= 1:
        raise UserError(f"data.captions_rate must lie in [0, 1], not {rate}.")
    generator, captions = named_generator(seed, "captions", kind), list(pairs.train.captions)
    for row in generator.permutation(len(captions))[: round(rate * len(captions))]:
        words = captions[row].split()
        captions[row] = (GENERIC[generator.integers(len(GENERIC))] if kind == "generic" else
                         " ".join(words[: generator.integers(1, max(2, len(words) // 2 + 1))]))
    return dataclasses.replace(pairs, train=dataclasses.replace(pairs.train, captions=tuple(captions)))
