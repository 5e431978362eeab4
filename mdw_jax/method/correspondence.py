"""P, the learnable soft correspondence between M distilled images and M distilled texts."""

import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError

KINDS = ("identity", "full", "lowrank")


def init_correspondence(key, kind: str, pairs: int, rank: int) -> dict:
    """Parameters of P, chosen so that P is the identity at the start.

    `identity`: none; `full`: {"matrix": (M, M)}; `lowrank` (LoRS): {"diag": (M,), "left": (M, r), "right": (M, r)}.
    Raises UserError for an unknown kind or a rank outside 1..M.
    """
    if kind not in KINDS:
        raise UserError(f"there is no correspondence '{kind}'; choose one of {', '.join(KINDS)}.")
    if kind == "identity":
        return {}
    if kind == "full":
        return {"matrix": jnp.eye(pairs)}
    if not 1 <= rank <= pairs:
        raise UserError(f"a low-rank correspondence of {pairs} pairs needs a rank in 1..{pairs}, not {rank}.")
    return {"diag": jnp.ones(pairs), "left": jax.random.normal(key, (pairs, rank)), "right": jnp.zeros((pairs, rank))}


def correspondence(params: dict, rows, alpha: float = 1.0):
    """The block of P at `rows` x `rows`: (b,) indices -> (b, b).

    `lowrank`: `diag(a) + (alpha / r) L R^T` (LoRS). The kind is read off the parameters.
    """
    if not params:
        return jnp.eye(len(rows))
    if "matrix" in params:
        return params["matrix"][rows[:, None], rows[None, :]]
    left, right = params["left"][rows], params["right"][rows]
    return jnp.diag(params["diag"][rows]) + alpha / left.shape[1] * left @ right.T


def matching_probability(matrix):
    """P read as probabilities: the mean of its row and column softmax, (M, M) -> (M, M) (MDW's words, our formula)."""
    return (jax.nn.softmax(matrix, axis=1) + jax.nn.softmax(matrix, axis=0)) / 2
