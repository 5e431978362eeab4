"""P, the learnable soft correspondence between M distilled images and M distilled texts (docs/method.md, section 5.3)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.config.options import CORRESPONDENCES
from mdw_jax.errors import UserError
from mdw_jax.method.losses import DistillationLoss

_FIT_ROUNDS = 10  # of diagonal and low-rank part; the error changes by less than 1 % after that


def init_correspondence(key, kind: str, pairs: int, rank: int) -> dict:
    """Parameters of P, chosen so that P is the identity at the start.

    Args:
        key: a typed key, for `lowrank`.
        kind: `identity`, `full` or `lowrank` (LoRS).
        pairs: M.
        rank: r of `lowrank`.

    Returns:
        `identity`: {}; `full`: {"matrix": (M, M)}; `lowrank`: {"diag": (M,), "left": (M, r), "right": (M, r)}.

    Raises:
        UserError: the kind is unknown or the rank is outside 1..M.
    """
    if kind == "identity":
        return {}
    if kind == "full":
        return {"matrix": jnp.eye(pairs)}
    if kind != "lowrank":
        raise UserError(f"there is no correspondence '{kind}'; choose one of {', '.join(CORRESPONDENCES)}.")
    if not 1 <= rank <= pairs:
        raise UserError(f"a low-rank correspondence of {pairs} pairs needs a rank in 1..{pairs}, not {rank}.")
    return {"diag": jnp.ones(pairs), "left": jax.random.normal(key, (pairs, rank)), "right": jnp.zeros((pairs, rank))}


def correspondence(params: dict, rows, alpha: float = 1.0):
    """The block of P at `rows` x `rows`.

    Args:
        params: as `init_correspondence` returns them; they tell the kind.
        rows: (b,) indices.
        alpha: scale of the low-rank part: `lowrank` is `diag(a) + (alpha / r) L R^T` (LoRS).

    Returns:
        (b, b).
    """
    if not params:
        return jnp.eye(len(rows))
    if "matrix" in params:
        return params["matrix"][rows[:, None], rows[None, :]]
    left, right = params["left"][rows], params["right"][rows]
    return jnp.diag(params["diag"][rows]) + alpha / left.shape[1] * left @ right.T


def taught_correspondence(similarity, tau: float, loss: DistillationLoss) -> np.ndarray:
    """P as teachers see the pairs: what `matching_probability` reads from it is what the teachers believe (this work).

    A loss that fits `softmax(s P)` gets `P = similarity / (s tau)`, one that takes P as the target itself the mean of
    the row softmax and the column softmax of `similarity / tau`.

    Args:
        similarity: (M, M) cosine of each image with each text under the teachers, their mean.
        tau: the temperature at which it is read.
        loss: the distillation loss whose target P is.

    Returns:
        (M, M) float32.

    Raises:
        AssertionError: the similarity is not square.
    """
    logits = np.asarray(similarity, np.float32) / tau
    chex.assert_shape(logits, (len(logits), len(logits)))
    if loss.correspondence_scale is not None:
        return logits / np.float32(loss.correspondence_scale)
    return np.asarray((jax.nn.softmax(logits, axis=1) + jax.nn.softmax(logits, axis=0)) / 2)


def fitted_correspondence(matrix, kind: str, rank: int, alpha: float) -> dict:
    """Parameters of the P of one kind that is nearest to a matrix, for `correspondence`.

    `lowrank` fits the diagonal and the rest in turns: the best approximation of rank r of what the diagonal leaves
    (Eckart and Young 1936), then the diagonal of what that leaves. Both factors get the same share of each direction.

    Args:
        matrix: (M, M).
        kind: `full` or `lowrank`.
        rank: r of `lowrank`.
        alpha: scale of the low-rank part.

    Raises:
        UserError: the kind is unknown, or has no parameters to fit.
        AssertionError: the matrix is not square.
    """
    matrix = np.asarray(matrix, np.float64)
    chex.assert_shape(matrix, (len(matrix), len(matrix)))
    if kind == "full":
        return {"matrix": jnp.asarray(matrix, jnp.float32)}
    if kind != "lowrank":
        raise UserError(f"a correspondence '{kind}' cannot be fitted to the teachers' similarities; set "
                        "distill.correspondence to full or lowrank, or distill.correspondence_init to identity.")
    diagonal = np.zeros(len(matrix))
    for _ in range(_FIT_ROUNDS):
        u, values, v = np.linalg.svd(matrix - np.diag(diagonal))
        u, values, v = u[:, :rank], values[:rank], v[:rank].T
        diagonal = np.diag(matrix) - np.einsum("ir,r,ir->i", u, values, v)
    root = np.sqrt(values * rank / alpha)
    return {name: jnp.asarray(array, jnp.float32)
            for name, array in (("diag", diagonal), ("left", u * root), ("right", v * root))}


def matching_probability(matrix, loss: DistillationLoss):
    """P read as probabilities that image i and text j match: the one reading of P by all but the loss itself.

    A loss that fits `softmax(s P)` (`probability`, `kl`) reads P as logits, and so does this function. One that takes P
    as the target itself (`nce`, `cwcl`, `wbce`, `bce`, `mse`) gives an entry as much weight as it is large: there the
    parts above 0 count, divided by their sum. MDW speaks of matching probabilities; the formulas are this work's.

    Args:
        matrix: (M, M), P in full, with images as rows.
        loss: the distillation loss whose target P is.

    Returns:
        (M, M): the mean of its rows as distributions over texts and of its columns as distributions over images. A row or
        column without an entry above 0 counts as 0.
    """
    def distribution(axis: int):
        if loss.correspondence_scale is not None:
            return jax.nn.softmax(loss.correspondence_scale * matrix, axis=axis)
        positive = jnp.maximum(matrix, 0)
        return positive / jnp.maximum(positive.sum(axis, keepdims=True), 1e-12)

    return (distribution(1) + distribution(0)) / 2
