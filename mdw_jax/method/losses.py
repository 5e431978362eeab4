"""Contrastive losses: pure functions of a square matrix of logits.

Two families.

*Label losses* `(B, B) logits -> (B, B)`: entry `[i, y]` is what row i would pay if its true candidate were y. The
diagonal is the ordinary loss of a batch of pairs, and the row *sum* is what the certificate bounds (`certificate.py`),
so noise tolerance can be read off the matrix.

*Soft-target losses* `(logits (B, B), target (B, B)) -> scalar`: the target is a block of the correspondence matrix P.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError

# ---- label losses ----------------------------------------------------------------------------------------------------


def infonce(logits):
    """`-log p_y`, `p = softmax(row)`. Not noise tolerant: its sum over candidates is unbounded in the logits."""
    return -jax.nn.log_softmax(logits, axis=-1)


def gce(logits, q=0.7):
    """Generalized cross entropy `(1 - p_y^q) / q` (Zhang and Sabuncu 2018); q -> 0 is InfoNCE, q = 1 is MAE."""
    return (1 - jnp.exp(q * jax.nn.log_softmax(logits, axis=-1))) / q


def mae(logits):
    """`1 - p_y` (Ghosh et al. 2017, halved): symmetric, its sum over candidates is the constant B - 1."""
    return 1 - jax.nn.softmax(logits, axis=-1)


def rince(logits, q=0.5, weight=None):
    """`(-e^{q s_y} + (weight * sum_j e^{s_j})^q) / q` (RINCE, Chuang et al. 2022); `weight` None means 1/B.

    At q = 1 and weight 1/B the sum over candidates vanishes: exactly symmetric.
    """
    weight = 1 / logits.shape[-1] if weight is None else weight
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True) + jnp.log(weight)
    return (jnp.exp(q * total) - jnp.exp(q * logits)) / q


def ccl_tan(logits):
    """Complementary contrastive loss `sum_{j != y} tan p_j` (RCL, Qin et al. 2023)."""
    tangent = jnp.tan(jax.nn.softmax(logits, axis=-1))
    return tangent.sum(-1, keepdims=True) - tangent


def acl(logits, q=1.0):
    """Robust part of the active complementary loss `sum_{j != y} tan p_j / (sum_j tan p_j)^q` (CRCL, Qin et al. 2023).

    q = 1 (the default) is exactly symmetric: the sum over candidates is B - 1.
    """
    tangent = jnp.tan(jax.nn.softmax(logits, axis=-1))
    total = tangent.sum(-1, keepdims=True)
    return (total - tangent) / total**q


LABEL_LOSSES: dict[str, Callable] = {
    "infonce": infonce, "gce": gce, "mae": mae, "rince": rince, "ccl_tan": ccl_tan, "acl": acl}
_WITH_Q = ("gce", "rince", "acl")


def label_loss(name: str, q: float | None = None):
    """The label loss called `name`, its exponent set to `q` where it has one (None keeps its default).

    Raises UserError for an unknown name.
    """
    if name not in LABEL_LOSSES:
        raise UserError(f"there is no loss '{name}'; choose one of {', '.join(sorted(LABEL_LOSSES))}.")
    function = LABEL_LOSSES[name]
    return partial(function, q=q) if q is not None and name in _WITH_Q else function


def pair_losses(loss, logits):
    """Loss of each pair of a batch, both directions averaged: (B, B) logits -> (B,)."""
    return (jnp.diagonal(loss(logits)) + jnp.diagonal(loss(logits.T))) / 2


def shuffled_losses(loss, logits):
    """What each row would pay on average if its caption were any of the batch, both directions averaged: (B,).

    With logits between one batch's images and *another* batch's captions this estimates the risk under full
    re-shuffling, without clean data (ours, Fact D). On a batch's own logits it does not: the true captions are there.
    """
    return (loss(logits).mean(-1) + loss(logits.T).mean(-1)) / 2


# ---- soft-target losses ----------------------------------------------------------------------------------------------



def bce(logits, target):
    """Mean binary cross entropy of every entry (LoRS)."""
    return -(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits)).mean()


def wbce(logits, target):
    """Binary cross entropy, positives (target > 0.5) and the rest averaged apart and then halved (LoRS's WBCE)."""
    # The other side as a sigmoid of its own: 1 - p would be rounded to a multiple of 6e-8 where p is close to 1.
    p, other = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    epsilon = 1e-6  # LoRS's, inside both logarithms; `bce` has none
    terms = -target * jnp.log(p + epsilon) - (1 - target) * jnp.log(other + epsilon)
    positive = (jax.lax.stop_gradient(target) > 0.5).astype(terms.dtype)
    mean = lambda mask: (terms * mask).sum() / jnp.maximum(mask.sum(), 1)
    return (mean(positive) + mean(1 - positive)) / 2


def nce(logits, target):
    """Soft InfoNCE `-mean_i sum_j target_ij log softmax(logits)_ij`, both directions averaged (LoRS's eNCE, VLD)."""
    rows = -(target * jax.nn.log_softmax(logits, axis=1)).sum(1).mean()
    columns = -(target * jax.nn.log_softmax(logits, axis=0)).sum(0).mean()
    return (rows + columns) / 2


def cwcl(logits, target):
    """Continuously weighted contrastive loss: `nce` with each row (column) of the target scaled to sum 1 (LoRS)."""
    rows = -(target * jax.nn.log_softmax(logits, axis=1)).sum(1) / target.sum(1)
    columns = -(target * jax.nn.log_softmax(logits, axis=0)).sum(0) / target.sum(0)
    return (rows.mean() + columns.mean()) / 2


def kl(logits, target):
    """`KL(softmax(10 target) || softmax(logits))` averaged over entries, both directions averaged (LoRS)."""

    def divergence(axis):
        wanted = jax.nn.log_softmax(10 * target, axis=axis)
        return (jnp.exp(wanted) * (wanted - jax.nn.log_softmax(logits, axis=axis))).mean()

    return (divergence(1) + divergence(0)) / 2


def mse(logits, target):
    """Mean squared error between `sigmoid(logits)` and the target (LoRS)."""
    return jnp.mean((jax.nn.sigmoid(logits) - target) ** 2)


def probability(logits, target):
    """Cross entropy to the matching probabilities `softmax(10 target)`, rows and columns averaged (ours).

    `kl` up to a constant, in the units of `nce`. Whatever P becomes, the targets are a distribution, so the loss is
    bounded below and a student can train on it longer than the unroll that P was learned for.
    """
    return soft_cross_entropy(logits, 10 * target)


def soft_cross_entropy(logits, wanted):
    """Cross entropy to the probabilities `softmax(wanted)`, rows and columns averaged: two (B, B) -> scalar.

    Least where rows and columns of `logits` have the softmax of those of `wanted`, whose entries may be any numbers.
    """
    rows = -(jax.nn.softmax(wanted, axis=1) * jax.nn.log_softmax(logits, axis=1)).sum(1).mean()
    columns = -(jax.nn.softmax(wanted, axis=0) * jax.nn.log_softmax(logits, axis=0)).sum(0).mean()
    return (rows + columns) / 2


SOFT_LOSSES = {"probability": probability, "wbce": wbce, "bce": bce, "nce": nce, "cwcl": cwcl, "kl": kl, "mse": mse}


def soft_loss(name: str):
    """The soft-target loss called `name`. Raises UserError for an unknown name."""
    if name not in SOFT_LOSSES:
        raise UserError(f"there is no distillation loss '{name}'; choose one of {', '.join(sorted(SOFT_LOSSES))}.")
    return SOFT_LOSSES[name]


def debiased(noisy, shuffled, rate: float):
    """Fact D: `(noisy - rate * shuffled) / (1 - rate)`, an unbiased clean risk or gradient (any pytree, equal shapes).

    `noisy` is measured on the pairs as given; `shuffled` after permuting the captions of the *whole* train set anew,
    or as `losses.shuffled_losses` of logits between the images of one batch and the captions of another. The variance
    grows as 1 / (1 - rate)^2, and a debiased risk can be negative. Raises UserError for a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise UserError(f"the noise rate must be at least 0 and below 1 to be corrected for, not {rate}.")
    return jax.tree.map(lambda a, b: (a - rate * b) / (1 - rate), noisy, shuffled)
