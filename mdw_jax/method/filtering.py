"""Filters: dropping the training pairs that score worst, which is what comes to mind first against mismatched pairs.

See docs/method.md, section 7. A score is a number for each pair, larger where image and caption fit each other better.
"""

from collections.abc import Iterable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.runtime.mesh import jitted

NEG_CLIP_BATCH, NEG_CLIP_ROUNDS = 2048, 4  # pairs normalized together; random partitions averaged (this work)
_BLOCK = 65_536  # pairs compared at a time


def cosines(images: np.ndarray, texts: np.ndarray, image_of: np.ndarray) -> np.ndarray:
    """(K,) cosine of each pair.

    Args:
        images: (N, D) unit embeddings.
        texts: (K, D) unit embeddings.
        image_of: (K,) the image that each caption is paired with.

    Raises:
        AssertionError: embeddings of several widths, or another number of captions than of entries of `image_of`.
    """
    _check_pairs(images, texts, image_of)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(texts), _BLOCK)]
    return np.concatenate([np.einsum("kd,kd->k", np.asarray(images[image_of[rows]]), np.asarray(texts[rows]))
                           for rows in blocks])


def neg_clip_loss(generator: np.random.Generator, images: np.ndarray, texts: np.ndarray, image_of: np.ndarray,
                  tau: float, batch: int = NEG_CLIP_BATCH, rounds: int = NEG_CLIP_ROUNDS) -> np.ndarray:
    """negCLIPLoss (Wang et al. 2024): the cosine of each pair, less how similar either of the two is to all others.

        s_nn - tau / 2 (log sum_j exp(s_nj / tau) + log sum_j exp(s_jn / tau))

    over the pairs j of a random batch, averaged over random partitions of all pairs into batches.

    Args:
        generator: source of the partitions.
        images: (N, D) unit embeddings.
        texts: (K, D) unit embeddings.
        image_of: (K,) the image that each caption is paired with.
        tau: temperature.
        batch: pairs of a batch, about: batches of a partition have one size, as near to this as K allows.
        rounds: partitions.

    Returns:
        (K,) float32.

    Raises:
        AssertionError: as `cosines`.
    """
    _check_pairs(images, texts, image_of)
    image_of = np.asarray(image_of)
    pairs = len(image_of)
    batches = max(round(pairs / batch), 1)
    size = -(-pairs // batches)
    score = jitted(_neg_clip_loss)
    total = np.zeros(pairs)
    for _ in range(rounds):
        order = generator.permutation(pairs)
        for start in range(0, pairs, size):
            # The last batch is filled up with pairs of the first ones, whose scores there do not count.
            rows = np.resize(np.concatenate([order[start:start + size], order]), size)
            values = score(jnp.asarray(images[image_of[rows]]), jnp.asarray(texts[rows]), jnp.float32(tau))
            count = min(size, pairs - start)
            total[rows[:count]] += np.asarray(values)[:count]
    return (total / rounds).astype(np.float32)


def _check_pairs(images, texts, image_of) -> None:
    chex.assert_rank([images, texts], 2)
    chex.assert_axis_dimension(texts, 1, images.shape[1])
    chex.assert_shape(np.asarray(image_of), (len(texts),))


def _neg_clip_loss(images, texts, tau):
    similarity = images @ texts.T / tau
    normalizers = jax.nn.logsumexp(similarity, 0) + jax.nn.logsumexp(similarity, 1)
    return tau * (jnp.diagonal(similarity) - normalizers / 2)


def mean_score(scores: Iterable[np.ndarray]) -> np.ndarray:
    """(K,) float64 mean of the scores of several networks."""
    total, count = np.zeros(1), 0
    for score in scores:
        total, count = total + np.asarray(score, np.float64), count + 1
    return total / count


def best_pairs(score: np.ndarray, drop: float) -> np.ndarray:
    """The pairs that a filter keeps.

    Args:
        score: (K,) larger is better. Of equal scores, the earlier pair goes first.
        drop: share to drop, in [0, 1).

    Returns:
        (K - round(drop * K),) rows into the pairs, in their order.
    """
    return np.sort(np.argsort(score, kind="stable")[round(drop * len(score)):])


def spread(values: np.ndarray, rows: np.ndarray, pairs: int) -> np.ndarray:
    """Values of the kept pairs as values of all pairs, zero for the dropped ones.

    Args:
        values: (..., n).
        rows: (n,) rows of the kept pairs.
        pairs: K.

    Returns:
        (..., K).
    """
    if values.shape[-1] == pairs:
        return values
    full = np.zeros((*values.shape[:-1], pairs), values.dtype)
    full[..., rows] = values
    return full


def spread_bits(bits: np.ndarray, rows: np.ndarray, pairs: int) -> np.ndarray:
    """`spread` of bools that `np.packbits` packed, (..., ceil(n / 8)) -> (..., ceil(K / 8)), one row at a time."""
    if len(rows) == pairs:
        return bits
    full = np.zeros((*bits.shape[:-1], (pairs + 7) // 8), np.uint8)
    for index in np.ndindex(bits.shape[:-1]):
        full[index] = np.packbits(spread(np.unpackbits(bits[index], count=len(rows)), rows, pairs))
    return full


def filter_quality(kept: np.ndarray, mismatched: np.ndarray) -> dict[str, float]:
    """How well a filter finds mismatched pairs.

    Args:
        kept: (n,) rows of the pairs it keeps.
        mismatched: (K,) bool, the truth.

    Returns:
        precision: share of the dropped pairs that are mismatched; recall: share of the mismatched pairs that are
        dropped; remaining_rate: share of the kept pairs that are mismatched.
    """
    mismatched = np.asarray(mismatched, bool)
    dropped = np.ones(len(mismatched), bool)
    dropped[kept] = False
    rightly_dropped = float((dropped & mismatched).sum())
    return {"precision": rightly_dropped / max(float(dropped.sum()), 1.0),
            "recall": rightly_dropped / max(float(mismatched.sum()), 1.0),
            "remaining_rate": float(mismatched[kept].mean())}
