"""Contrastive losses: pure functions of a square matrix of logits (docs/method.md, sections 2 and 5.3).

Two families, each with a table. To add a loss, write its function and one entry of the table.

*Expert losses* (`EXPERT_LOSSES`), `(B, B) logits -> (B, B)`: entry `[i, y]` is the loss of row i if its true candidate
were y. The diagonal is the ordinary loss of a batch of pairs. The row *sum* is what the certificate bounds
(`certificate.py`), so noise tolerance can be read off the matrix.

*Distillation losses* (`DISTILLATION_LOSSES`), `(logits (B, B), target (B, B)) -> scalar`: the target is a block of the
correspondence matrix P.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mdw_jax.config.plugins import lookup
from mdw_jax.errors import UserError
from mdw_jax.method import loss_bounds as bounds

CORRESPONDENCE_SCALE = 10.0  # of the losses that read P as logits, `probability` and `kl` (LoRS's KL loss)

# ---- expert losses ----------------------------------------------------------------------------------------------------


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


IntervalFunction = Callable[[int, Any, float], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class ExpertLoss:
    """A expert loss and what the certificate needs to know of it.

    Attributes:
        function: logits (B, B) -> (B, B), with the keyword `q` if the loss has an exponent.
        q: the default of the exponent; None if the loss has none.
        sum_bounds: (batch, q, tau) -> (lo, hi) of the sum over a row's candidates, or None: no certificate.
        value_range: (batch, q, tau) -> (lowest, highest) loss of one candidate, or None.
        chance_gap: (batch, q, tau) -> loss at equal logits minus the lowest loss, or None.
        zero_exponent: whether the bounds also hold at q = 0, beside 0 < q <= 1.

    `loss_bounds.py` says what the three functions mean.
    """

    function: Callable
    q: float | None = None
    sum_bounds: IntervalFunction | None = None
    value_range: IntervalFunction | None = None
    chance_gap: Callable[[int, Any, float], float] | None = None
    zero_exponent: bool = False

    def __call__(self, logits, **settings):
        return self.function(logits, **settings)


EXPERT_LOSSES: dict[str, ExpertLoss] = {
    "infonce": ExpertLoss(infonce, None, bounds.infonce_sum_bounds, bounds.infonce_range, bounds.infonce_chance_gap),
    "gce": ExpertLoss(gce, 0.7, bounds.gce_sum_bounds, bounds.gce_range, bounds.gce_chance_gap),
    "mae": ExpertLoss(mae, None, bounds.mae_sum_bounds, bounds.mae_range, bounds.mae_chance_gap),
    "rince": ExpertLoss(rince, 0.5, bounds.rince_sum_bounds, bounds.rince_range, bounds.rince_chance_gap),
    "ccl_tan": ExpertLoss(ccl_tan, None, bounds.ccl_tan_sum_bounds, bounds.ccl_tan_range, bounds.ccl_tan_chance_gap),
    "acl": ExpertLoss(acl, 1.0, bounds.acl_sum_bounds, bounds.acl_range, bounds.acl_chance_gap, zero_exponent=True),
}


_LOSS_SETTINGS = "experts.clean_loss or experts.tolerant_loss"


def expert_loss_entry(name: str, setting: str = _LOSS_SETTINGS) -> ExpertLoss:
    """The expert loss called `name`.

    Args:
        name: a key of `EXPERT_LOSSES`, or `module:function` naming a function of the logits (with a parameter `q` if it
            has an exponent) or a `ExpertLoss`.
        setting: the config key that holds the name, for messages.

    Raises:
        UserError: there is no such loss, or its parameter `q` has no default.
    """
    entry = lookup(EXPERT_LOSSES, name, setting, "loss")
    return entry if isinstance(entry, ExpertLoss) else ExpertLoss(entry, _default_exponent(entry, name, setting))


def expert_loss(name: str, q: float | None = None, setting: str = _LOSS_SETTINGS) -> Callable:
    """The function of an expert loss, logits (B, B) -> (B, B).

    Args:
        name: as in `expert_loss_entry`.
        q: the exponent, ignored by losses that have none; None keeps the loss's default.
        setting: as in `expert_loss_entry`.

    Raises:
        UserError: as `expert_loss_entry`.
    """
    entry = expert_loss_entry(name, setting)
    return entry.function if q is None or entry.q is None else partial(entry.function, q=q)


def _default_exponent(function: Callable, name: str, setting: str) -> float | None:
    try:
        parameter = inspect.signature(function).parameters.get("q")
    except (TypeError, ValueError):  # some callables have no signature
        return None
    if parameter is None:
        return None
    if parameter.default is inspect.Parameter.empty or parameter.default is None:
        raise UserError(f"{setting}: the loss '{name}' has an exponent q without a default; give it one, as in q=0.7.")
    return parameter.default


def pair_losses(loss: Callable, logits):
    """Loss of each pair of a batch, both directions averaged: (B, B) logits -> (B,)."""
    return (jnp.diagonal(loss(logits)) + jnp.diagonal(loss(logits.T))) / 2


def shuffled_losses(loss: Callable, logits):
    """Mean loss of each row over all captions as its true one, both directions averaged: (B, B) logits -> (B,).

    With logits between one batch's images and *another* batch's captions this estimates the risk under full
    re-shuffling, without clean data (this work, Proposition 4). On a batch's own logits it does not: the true captions
    are there.
    """
    return (loss(logits).mean(-1) + loss(logits.T).mean(-1)) / 2


def debiased(noisy, shuffled, rate: float):
    """An unbiased clean risk or gradient, `(noisy - rate * shuffled) / (1 - rate)` (this work, Proposition 4).

    The variance grows as 1 / (1 - rate)^2, and a debiased risk can be negative.

    Args:
        noisy: any pytree, measured on the pairs as given.
        shuffled: the same pytree after permuting the captions of the *whole* train set anew, or from
            `shuffled_losses` of logits between the images of one batch and the captions of another.
        rate: share of the pairs that is mismatched.

    Raises:
        UserError: the rate is outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise UserError(f"the noise rate must be at least 0 and below 1 to be corrected for, not {rate}.")
    return jax.tree.map(lambda a, b: (a - rate * b) / (1 - rate), noisy, shuffled)


# ---- distillation losses ----------------------------------------------------------------------------------------------


def bce(logits, target):
    """Mean binary cross entropy of every entry (LoRS)."""
    return -(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits)).mean()


def wbce(logits, target):
    """Binary cross entropy, the mean over positives (target > 0.5) and that over the rest averaged (LoRS's WBCE)."""
    # 1 - p as a sigmoid of its own: the difference would be rounded to a multiple of 6e-8 where p is close to 1.
    return _weighted_bce(jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits), target)


def wbce_published(logits, target):
    """`wbce` with the rounding of LoRS's code, which computes the probability of no match as the difference `1 - p`.

    In float32 that is a multiple of 6e-8, beside an epsilon of 1e-6: an error of up to 3 % where logits exceed 14. Three
    outer steps on a tiny problem already end 1e-4 apart.
    """
    p = jax.nn.sigmoid(logits)
    # XLA would make `(1 - p) + epsilon` into `(1 + epsilon) - p`, which is rounded otherwise.
    return _weighted_bce(p, jax.lax.optimization_barrier(1 - p), target)


def _weighted_bce(p, other, target):
    """Of probabilities of a match and of none, both (B, B)."""
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
        wanted = jax.nn.log_softmax(CORRESPONDENCE_SCALE * target, axis=axis)
        return (jnp.exp(wanted) * (wanted - jax.nn.log_softmax(logits, axis=axis))).mean()

    return (divergence(1) + divergence(0)) / 2


def mse(logits, target):
    """Mean squared error between `sigmoid(logits)` and the target (LoRS)."""
    return jnp.mean((jax.nn.sigmoid(logits) - target) ** 2)


def probability(logits, target):
    """Cross entropy to the matching probabilities `softmax(10 target)`, rows and columns averaged (this work).

    It is `kl` up to a constant, in the units of `nce`. Whatever P becomes, the targets are a distribution, so the loss
    is bounded below and a student can train on it longer than the unroll that P was learned for.
    """
    return soft_cross_entropy(logits, CORRESPONDENCE_SCALE * target)


def soft_cross_entropy(logits, target_logits):
    """Cross entropy to the probabilities `softmax(target_logits)`, rows and columns averaged: two (B, B) -> scalar.

    It is lowest where rows and columns of `logits` have the softmax of those of `target_logits`, whose entries may be
    any numbers.
    """
    rows = -(jax.nn.softmax(target_logits, axis=1) * jax.nn.log_softmax(logits, axis=1)).sum(1).mean()
    columns = -(jax.nn.softmax(target_logits, axis=0) * jax.nn.log_softmax(logits, axis=0)).sum(0).mean()
    return (rows + columns) / 2


@dataclasses.dataclass(frozen=True)
class DistillationLoss:
    """A distillation loss.

    Attributes:
        function: (logits (B, B), target (B, B)) -> scalar.
        torch: the same as a PyTorch expression of `logits`, `target` and `F` (torch.nn.functional), for the recipe on
            dataset cards; None if there is none.
        correspondence_scale: s, where the target that the loss fits is `softmax(s P)`; None where it is P itself. All
            that reads P beside the loss goes by it (`correspondence.matching_probability`).
    """

    function: Callable
    torch: str | None = None
    correspondence_scale: float | None = None

    def __call__(self, logits, target):
        return self.function(logits, target)


_BOTH_DIRECTIONS = "sum({} for d in (0, 1)) / 2"

DISTILLATION_LOSSES: dict[str, DistillationLoss] = {
    "probability": DistillationLoss(probability, _BOTH_DIRECTIONS.format(
        "-((10 * target).softmax(d) * logits.log_softmax(d)).sum(d).mean()"), CORRESPONDENCE_SCALE),
    "wbce": DistillationLoss(
        wbce, "sum((m * -(target * (logits.sigmoid() + 1e-6).log() + (1 - target) * ((-logits).sigmoid() + 1e-6).log()))"
        ".sum()\n           / m.sum().clamp(min=1) for m in (target > 0.5, target <= 0.5)) / 2"),
    "wbce_published": DistillationLoss(
        wbce_published, "sum((m * -(target * (logits.sigmoid() + 1e-6).log() + (1 - target) * (1 - logits.sigmoid() + 1e-6)"
        ".log()))\n           .sum() / m.sum().clamp(min=1) for m in (target > 0.5, target <= 0.5)) / 2"),
    "bce": DistillationLoss(bce, "F.binary_cross_entropy_with_logits(logits, target)"),
    "nce": DistillationLoss(nce, _BOTH_DIRECTIONS.format("-(target * logits.log_softmax(d)).sum(d).mean()")),
    "cwcl": DistillationLoss(cwcl, _BOTH_DIRECTIONS.format(
        "-((target * logits.log_softmax(d)).sum(d) / target.sum(d)).mean()")),
    "kl": DistillationLoss(kl, _BOTH_DIRECTIONS.format(
        "((10 * target).softmax(d) * ((10 * target).log_softmax(d) - logits.log_softmax(d))).mean()"),
        CORRESPONDENCE_SCALE),
    "mse": DistillationLoss(mse, "F.mse_loss(logits.sigmoid(), target)"),
}


def distillation_loss_entry(name: str) -> DistillationLoss:
    """The distillation loss called `name`.

    Args:
        name: a key of `DISTILLATION_LOSSES`, or `module:function` naming a function of (logits, target) or a
            `DistillationLoss`.

    Raises:
        UserError: there is no such loss.
    """
    entry = lookup(DISTILLATION_LOSSES, name, "distill.loss", "distillation loss")
    return entry if isinstance(entry, DistillationLoss) else DistillationLoss(entry)


def distillation_loss(name: str) -> Callable:
    """The function of a distillation loss, (logits (B, B), target (B, B)) -> scalar.

    Raises:
        UserError: as `distillation_loss_entry`.
    """
    return distillation_loss_entry(name).function
