"""What random-permutation noise can cost: the certificate (docs/method.md, section 3).

Setting: N clean pairs, a random subset of captions permuted at random, `rate` = the fraction really mismatched,
batches of B drawn without replacement, parameters that do not depend on that permutation. R is the clean risk of a
expert loss L (`losses.py`), R~ the noisy risk, R_shuf the risk with all captions permuted, S = sum_y L the row sum.

Proposition 1, mixture: R~ = (1 - rate) R + rate R_shuf, up to O(1/N), for any loss. As N grows, R_shuf -> E[S]/B over
    rows whose true caption is outside the batch. (Inside a batch the rows do contain it: their mean is *not* R_shuf
    for InfoNCE.)
Proposition 2, symmetric loss: if S is constant, grad R~ = (1 - rate) grad R as N grows (at finite N the factor is
    1 - rate - rate / (N - 1)).
Proposition 3, bounded sum: if lo <= S <= hi, the noisy minimizer has a bounded excess clean risk. A mismatched row finds
    its true caption in the batch, under another image, with probability (B - 1) / (N - 1). If it never does, it pays
    S/B on average and the excess is at most rate (hi - lo) / (B (1 - rate)): the *large-N* form. If it always does, it
    pays (S - L_true) / (B - 1), hence rate (hi - lo) / (B - 1 - rate B): the *finite-batch* form (Ghosh et al. 2017,
    Zhang and Sabuncu 2018), N = B. Every other N lies between the two, so the finite-batch form holds for every N.
Proposition 4, debiasing: R = (R~ - rate R_shuf) / (1 - rate), `losses.debiased`, any loss, no clean data.

The propositions are this work's; the finite-batch form and the bounds of GCE's sum are the literature's. Training
averages both directions, image to text and text to image. Each is an expert loss over B candidates and obeys the same
bounds, so their average does too.

Not covered: parameters that memorized the permutation (late epochs), noise that is not uniform, several captions of
one image in a batch, and the sampling error of a finite training set.
"""

import math
from collections.abc import Iterable

from mdw_jax.errors import UserError
from mdw_jax.method.losses import expert_loss_entry

FORMS = ("large_n", "finite_batch")
LOWEST_TAU = 0.002  # below it exp(1 / tau) leaves float64
NO_CERTIFICATE = "no certificate for this loss"  # what tables and files say of such a loss


def has_certificate(loss: str) -> bool:
    """Whether the bounds of an expert loss are known, by its name. Raises UserError for an unknown loss."""
    entry = expert_loss_entry(loss)
    return None not in (entry.sum_bounds, entry.value_range, entry.chance_gap)


def sum_bounds(loss: str, batch: int, q: float | None = None, tau: float = 0.07) -> tuple[float, float]:
    """Bounds (lo, hi) of one row's sum of an expert loss over its candidates.

    Args:
        loss: name of the expert loss.
        batch: number B of candidates, at least 2.
        q: exponent of the loss; None is its default.
        tau: temperature; logits are cos / tau.

    Raises:
        UserError: the loss is unknown or has no certificate, or batch, q or tau is out of range.
    """
    return _bound("sum_bounds", loss, batch, q, tau)


def loss_range(loss: str, batch: int, q: float | None = None, tau: float = 0.07) -> tuple[float, float]:
    """The lowest and the highest value that an expert loss of one row can have: what concentration bounds need.

    Args and Raises: as `sum_bounds`.
    """
    return _bound("value_range", loss, batch, q, tau)


def chance_gap(loss: str, batch: int, q: float | None = None, tau: float = 0.07) -> float:
    """Loss of chance guessing (equal logits) minus the lowest possible loss: all that training can win.

    Args and Raises: as `sum_bounds`.
    """
    return _bound("chance_gap", loss, batch, q, tau)


def excess_risk_bound(loss: str, batch: int, rate: float, q: float | None = None, tau: float = 0.07,
                      form: str = "large_n") -> float:
    """How much more clean risk the noisy minimizer can have than the clean one (Proposition 3).

    Args:
        loss, batch, q, tau: as in `sum_bounds`.
        rate: share of the pairs that is mismatched, in [0, 1].
        form: "large_n", the limit of a data set much larger than the batch, or "finite_batch", which is slightly
            larger and holds for every size of the data set.

    Returns:
        The bound in units of the loss; infinite at rates where the noise leaves no information: 1 (large_n),
        (B - 1) / B and above (finite_batch).

    Raises:
        UserError: as `sum_bounds`, and for a rate outside [0, 1] or an unknown form.
    """
    lo, hi = sum_bounds(loss, batch, q, tau)
    _check_rate(rate)
    information = _candidates(batch, form) - rate * batch
    return rate * (hi - lo) / information if information > 0 else math.inf


def tracks_bound(tracks: Iterable[tuple[float, float, str, float | None]], batch: int, tau: float = 0.07) -> float:
    """Proposition 3, large-N form, for a sum of tracks: `sum_k a_k eta_k (hi_k - lo_k) / B` over `sum_k a_k (1 - eta_k)`.

    The risk that it bounds is the mean of the tracks' clean risks, weighted by a_k (1 - eta_k). It holds where noise is
    uniform *within* each track, though a division looks at the pairs. With one track it is `excess_risk_bound`.

    Args:
        tracks: (share a_k of the weight, rate eta_k of the mismatched, loss, q) of each.
        batch, tau: as in `sum_bounds`.

    Raises:
        UserError: as `excess_risk_bound`.
    """
    cost = information = 0.0
    for share, rate, loss, q in tracks:
        lo, hi = sum_bounds(loss, batch, q, tau)
        _check_rate(rate)
        cost += share * rate * (hi - lo) / batch
        information += share * (1 - rate)
    return cost / information if information > 0 else math.inf


def max_informative_rate(loss: str, batch: int, q: float | None = None, tau: float = 0.07,
                         form: str = "large_n") -> float:
    """The noise rate up to which Proposition 3 is informative: its bound is below `chance_gap`.

    Where the bound reaches that gap, it no longer excludes a model that guesses, however good the clean one is. The
    value is the supremum: the bound is informative at every rate strictly below it and at none above. For losses of
    constant sum it is 1 (large_n) or (B - 1) / B (finite_batch).

    Args and Raises: as `excess_risk_bound`.
    """
    lo, hi = sum_bounds(loss, batch, q, tau)
    gap = chance_gap(loss, batch, q, tau)
    return gap * _candidates(batch, form) / (hi - lo + gap * batch)  # the bound solved for the rate


def memory_cost(gap: float, rate: float) -> float:
    """What to add to Proposition 3 for parameters that memorized mismatched pairs: `rate gap / (1 - rate)` (this work).

    Args:
        gap: mean loss at random mismatched pairs minus that at the mismatched pairs the parameters were trained on.
            The noisy risk that they minimize is `rate gap` below the mixture of Proposition 1; that of the clean
            minimizer, which has not seen those pairs, is not.
        rate: share of the pairs that is mismatched.

    Returns:
        The cost in units of the loss, infinite at rate 1.
    """
    return rate * max(gap, 0.0) / (1 - rate) if rate < 1 else math.inf


def _bound(field: str, loss: str, batch: int, q: float | None, tau: float):
    """One of the three functions of a `ExpertLoss`, at arguments that were checked."""
    entry = expert_loss_entry(loss)
    if batch < 2:
        raise UserError(f"a certificate needs batches of at least 2 pairs, not {batch}.")
    if tau < LOWEST_TAU:
        raise UserError(f"the temperature must be at least {LOWEST_TAU} for a certificate, not {tau}.")
    function = getattr(entry, field)
    if function is None:
        raise UserError(f"there is no certificate for the loss '{loss}': it states no {field}; state its bounds in a "
                        "mdw_jax.method.losses.ExpertLoss, or choose another loss.")
    if entry.q is None:
        return function(batch, None, tau)
    q = entry.q if q is None else q
    if not (0 < q <= 1 or (q == 0 and entry.zero_exponent)):
        raise UserError(f"the exponent q of '{loss}' must be above 0 and at most 1 for a certificate, not {q}.")
    return function(batch, q, tau)


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise UserError(f"the noise rate must be between 0 and 1, not {rate}.")


def _candidates(batch: int, form: str) -> int:
    """How many captions a mismatched row may carry: all of the batch, or in the finite-batch form all but its own."""
    counts = {"large_n": batch, "finite_batch": batch - 1}
    if form not in counts:
        raise UserError(f"there is no form '{form}' of the bound; choose one of {', '.join(FORMS)}.")
    return counts[form]
