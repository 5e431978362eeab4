"""Structured noise, as the web has it: captions of near-duplicates swapped, captions that say little.

`swap_similar` is a noise protocol (`noise.py`): it moves captions and tells which are mismatched. `degrade_captions`
changes what training captions say; their pairs stay right, so it belongs to the data (`data.captions`) and not to a
noise draw.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.errors import UserError
from mdw_jax.runtime.rng import named_generator

NEIGHBORS = 30  # candidates an image in one round of matching; more change hardly anything
GENERIC = ("a picture", "an image", "photo", "stock photo", "untitled", "a picture of something", "image 1",
           "click to enlarge", "thumbnail", "no description")


def swap_similar(split: Split, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Let images with similar captions swap them in pairs (this work).

    Of the chosen images, the two with the most similar captions (cosine of tf-idf word counts) swap first; with an odd
    number one stays. Many of these mismatches are half true, which makes them hard to find.

    Args:
        split: N images and their captions.
        rate: round(rate * N) images are chosen.
        generator: chooses them.
    Returns:
        (N,) int64, the image that the captions of each image go to.
    """
    index = np.arange(len(split.images), dtype=np.int64)
    free = np.sort(generator.permutation(index)[: round(rate * len(index))])
    captions_of = [[] for _ in index]
    for caption, image in zip(split.captions, split.image_of, strict=True):
        captions_of[image].append(caption)
    documents = [" ".join(["-", *captions]) for captions in captions_of]
    words = TfidfVectorizer(token_pattern=r"\S+").fit_transform(documents)
    while len(free) > 1:
        nearest = NearestNeighbors(n_neighbors=min(NEIGHBORS + 1, len(free)), metric="cosine", algorithm="brute")
        distances, neighbors = nearest.fit(words[free]).kneighbors(words[free])
        one, other = np.repeat(np.arange(len(free)), neighbors.shape[1]), neighbors.ravel()
        distances = distances.ravel().round(9)
        one, other = np.minimum(one, other), np.maximum(one, other)
        swapped = np.zeros(len(free), bool)
        for row in np.lexsort((other, one, distances)):
            a, b = one[row], other[row]
            if a != b and not swapped[a] and not swapped[b]:
                swapped[[a, b]] = True
                index[free[[a, b]]] = free[[b, a]]
        free = free[~swapped]
    return index


def _generic(caption: str, generator: np.random.Generator) -> str:
    return GENERIC[generator.integers(len(GENERIC))]


def _truncated(caption: str, generator: np.random.Generator) -> str:
    words = caption.split()
    return " ".join(words[: generator.integers(1, max(2, len(words) // 2 + 1))])


# (caption, generator) -> a caption that says less: one of `GENERIC`, or at most the first half of its words.
DEGRADATIONS: dict[str, Callable[[str, np.random.Generator], str]] = {"generic": _generic, "truncated": _truncated}


def degrade_captions(pairs: Pairs, kind: str, rate: float, seed: int) -> Pairs:
    """A copy of a data set with a share of its training captions saying less; val and test stay as they are.

    Args:
        pairs: a data set with K training captions.
        kind: one of `DEGRADATIONS`.
        rate: round(rate * K) captions are changed.
        seed: of which are changed, and how.
    Raises:
        UserError: another kind, or a rate outside [0, 1].
    """
    if kind not in DEGRADATIONS:
        raise UserError(f"data.captions is '{kind}'; choose one of {', '.join(DEGRADATIONS)}, or '' to leave captions "
                        "alone.")
    if not 0 <= rate <= 1:
        raise UserError(f"data.captions_rate must lie in [0, 1], not {rate}.")
    generator, captions = named_generator(seed, "captions", kind), list(pairs.train.captions)
    for row in generator.permutation(len(captions))[: round(rate * len(captions))]:
        captions[row] = DEGRADATIONS[kind](captions[row], generator)
    return dataclasses.replace(pairs, train=dataclasses.replace(pairs.train, captions=tuple(captions)))
