"""P, the learnable soft correspondence between M distilled images and M distilled texts (docs/method.md, section 5.3)."""

import jax
import jax.numpy as jnp

from mdw_jax.config.options import CORRESPONDENCES
from mdw_jax.errors import UserError


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


def matching_probability(matrix):
    """P read as probabilities, (M, M) -> (M, M): the mean of its row softmax and its column softmax.

    MDW speaks of matching probabilities; the formula is this work's.
    """
    return (jax.nn.softmax(matrix, axis=1) + jax.nn.softmax(matrix, axis=0)) / 2
