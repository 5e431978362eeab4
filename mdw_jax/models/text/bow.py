"""Bag-of-words text features, with nothing to fit or download."""

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from mdw_jax.errors import UserError
from mdw_jax.runtime.rng import named_generator

_BINS = 2**14
_CHUNK = 4096


def bow_features(captions, dim: int = 384, seed: int = 0) -> np.ndarray:
    """Random projection of hashed word and word-pair counts (this work), where no language model is at hand.

    Counts of unigrams and bigrams, lower-cased, are hashed into 2**14 signed bins, damped to `1 + log(count)`,
    multiplied by a fixed (2**14, dim) Gaussian matrix of the seed and L2-normalized, so that cosines approximate those
    of the bags themselves. A caption's feature does not depend on the other captions.

    Args:
        captions: K strings. One without any word gets a fixed vector of its own.
        dim: width of the features.
        seed: of the projection.
    Returns:
        (K, dim) float32, unit norm.
    Raises:
        UserError: `dim` below 1.
    """
    if dim < 1:
        raise UserError(f"bag-of-words features need a width of at least 1, not dim={dim}.")
    # The default token pattern drops one-letter words, and with them whole captions such as "I".
    hashing = HashingVectorizer(n_features=_BINS, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", norm=None,
                                alternate_sign=True, dtype=np.float32)
    projection = named_generator(seed, "text", "bow").standard_normal((_BINS, dim), dtype=np.float32)
    features = np.empty((len(captions), dim), np.float32)
    for start in range(0, len(captions), _CHUNK):
        counts = hashing.transform(captions[start:start + _CHUNK])
        counts.eliminate_zeros()  # two words of opposite sign in one bin
        counts.data = np.sign(counts.data) * (1 + np.log(np.abs(counts.data)))
        rows = counts @ projection
        rows[np.diff(counts.indptr) == 0] = projection[0]
        features[start:start + _CHUNK] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return features
