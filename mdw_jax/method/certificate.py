"""What random-permutation noise can cost: the certificate (ours; the closed form and GCE's sums are the literature's).

Setting: N clean pairs, a random subset of captions permuted at random, `rate` = the fraction really mismatched,
batches of B drawn without replacement, parameters not fitted to that permutation. R is the clean risk of a label
loss L (`losses.py`), R~ the noisy risk, R_shuf the risk with all captions permuted, S = sum_y L the row sum.

A  R~ = (1 - rate) R + rate R_shuf, up to O(1/N), for any loss. As N grows, R_shuf -> E[S]/B over rows whose true
   caption is outside the batch. (Inside a batch the rows do contain it: their mean is *not* R_shuf for InfoNCE.)
B  S constant: grad R~ = (1 - rate) grad R as N grows (at finite N the factor is (1 - rate - rate / (N - 1))).
C  lo <= S <= hi: the noisy minimiser has a bounded excess clean risk. A mismatched row finds its true caption in the
   batch, under another image, with probability (B - 1) / (N - 1). If it never does, it pays S/B on average and the
   excess is at most rate (hi - lo) / (B (1 - rate)): the *open* form, N -> infinity. If it always does, it pays
   (S - L_true) / (B - 1), hence rate (hi - lo) / (B - 1 - rate B): the *closed* form (Ghosh et al. 2017, Zhang and
   Sabuncu 2018), N = B. Every other N lies between the two, so the closed form holds whatever N is.
D  R = (R~ - rate R_shuf) / (1 - rate): `debiased`, any loss, no clean data.

Training averages both directions, image to text and text to image. Each is a label loss over B candidates and obeys
the same bounds, so their average does too.

Not covered: parameters that memorized the permutation (late epochs), noise that is not uniform, several captions of
one image in a batch, and the sampling error of a finite training set.
"""

import inspect
import math

import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.method.losses import LABEL_LOSSES, label_loss

FORMS = ("open", "closed")
LOWEST_TAU = 0.002  # below it exp(1 / tau) leaves float64


def sum_bounds(loss: str, batch: int, q: float | None = None, tau: float = 0.07) -> tuple[float, float]:
    """Bounds (lo, hi) of one row's sum of `loss` over its `batch` = B candidates, with logits cos / tau.

    lo is attained at equal logits. hi is attained by `infonce` and `rince`, at logits +-1/tau; the other losses
    depend on p = softmax(row) alone, hold for any logits (tau is not used), and approach hi as p becomes one-hot.
    `q` None is the default of the loss. Raises UserError for an unknown loss, a batch under 2 or a q or tau out of
    range.
    """
    q = _checked(loss, batch, q, tau)
    ups = np.arange(1, batch)  # corners of the box of logits, up to order: how many of them are at +1/tau
    if loss == "infonce":
        # B logsumexp(s) - sum(s) is convex: lowest at equal logits, highest at a corner of [-1/tau, 1/tau]^B.
        corners = batch * np.log(_mass(ups, batch, tau)) + 2 * (batch - ups) / tau
        return batch * math.log(batch), float(corners.max())
    if loss == "gce":
        # (B - sum p^q) / q, and 1 <= sum p^q <= B^(1 - q) (Zhang and Sabuncu 2018)
        return (batch - batch ** (1 - q)) / q, (batch - 1) / q
    if loss == "mae":
        return batch - 1.0, batch - 1.0
    if loss == "rince":
        # With x = exp(s): (B / q) (mean(x)^q - mean(x^q)), which is >= 0 (Jensen) and, as a function of one x_i,
        # falls below the mean and rises above it, so that its maximum over the box is at a corner.
        gap = (_mass(ups, batch, tau) / batch) ** q - (ups + (batch - ups) * math.exp(-2 * q / tau)) / batch
        return 0.0, float((batch / q * math.exp(q / tau) * gap).max())
    # (B - 1) T for ccl_tan and (B - 1) T^(1 - q) for acl, T = sum tan p convex: B tan(1/B) <= T <= tan 1
    power = 1.0 if loss == "ccl_tan" else 1 - q
    return (batch - 1) * (batch * math.tan(1 / batch)) ** power, (batch - 1) * math.tan(1) ** power


def loss_range(loss: str, batch: int, q: float | None = None, tau: float = 0.07) -> tuple[float, float]:
    """Between which values `loss` of one row lies, whatever its logits cos / tau: what concentration bounds need.

    `infonce`, `rince` and the lower end of `gce` and `mae` use that logits lie in [-1/tau, 1/tau]. Raises UserError as
    `sum_bounds`.
    """
    q = _checked(loss, batch, q, tau)
    sure = 1 / _mass(1, batch, tau)  # the largest p there is: one logit at +1/tau, the others at -1/tau
    if loss == "infonce":
        return -math.log(sure), 2 / tau + math.log(batch - 1 + math.exp(-2 / tau))
    if loss == "gce":
        return (1 - sure**q) / q, 1 / q
    if loss == "mae":
        return 1 - sure, 1.0
    if loss == "rince":
        # Rises with every other logit and falls with its own: e^s >= 0 is raised to q - 1 < 0 in its own slope.
        end = lambda own: (math.exp(-q * own / tau) * ((math.exp(2 * own / tau) + batch - 1) / batch) ** q
                           - math.exp(q * own / tau)) / q
        return end(1), end(-1)
    # sum_{j != y} tan p_j, at most tan 1 (convex), over T^q, where T is at least that and at most tan 1
    return 0.0, math.tan(1) ** (1.0 if loss == "ccl_tan" else 1 - q)


def tracks_bound(tracks, batch: int, tau: float = 0.07) -> float:
    """Fact C, open form, for a sum of tracks: `sum_k a_k eta_k (hi_k - lo_k) / B` over `sum_k a_k (1 - eta_k)`.

    tracks: (share a_k of the weight, rate eta_k of the mismatched, loss, q) each. The risk that it bounds is the mean
    of the tracks' clean risks, weighted by a_k (1 - eta_k); it holds where noise is uniform *within* each track, though
    a division looks at the pairs. With one track it is `excess_risk_bound`. Raises UserError as that does.
    """
    paid = left = 0.0
    for share, rate, loss, q in tracks:
        lo, hi = sum_bounds(loss, batch, q, tau)
        if not 0 <= rate <= 1:
            raise UserError(f"the noise rate must be between 0 and 1, not {rate}.")
        paid += share * rate * (hi - lo) / batch
        left += share * (1 - rate)
    return paid / left if left > 0 else math.inf


def excess_risk_bound(loss: str, batch: int, rate: float, q: float | None = None, tau: float = 0.07,
                      form: str = "open") -> float:
    """Fact C: how much more clean risk (in units of the loss) the noisy minimiser can have than the clean one.

    `form` "open" is the limit of a data set much larger than the batch, rate (hi - lo) / ((1 - rate) B); "closed" is
    slightly larger, holds for every size, and is rate (hi - lo) / (B - 1 - rate B). Infinite at rates where the
    noise leaves no information: 1 (open), (B - 1) / B and above (closed). Raises UserError as `sum_bounds`, for a
    rate outside [0, 1] and for an unknown form.
    """
    lo, hi = sum_bounds(loss, batch, q, tau)
    if not 0 <= rate <= 1:
        raise UserError(f"the noise rate must be between 0 and 1, not {rate}.")
    left = _candidates(batch, form) - rate * batch
    return rate * (hi - lo) / left if left > 0 else math.inf


def chance_gap(loss: str, batch: int, q: float | None = None, tau: float = 0.07) -> float:
    """Loss of chance guessing (equal logits) minus the lowest possible loss: all that training can win.

    The lowest loss is 0 but for `infonce` and `rince`, where it is what logits in [-1/tau, 1/tau] allow. Raises
    UserError as `sum_bounds`.
    """
    q = _checked(loss, batch, q, tau)
    certain = _mass(1, batch, tau)
    tangents = batch * math.tan(1 / batch)
    return float({
        "infonce": lambda: math.log(batch) - math.log(certain),
        "gce": lambda: (1 - batch**-q) / q,
        "mae": lambda: 1 - 1 / batch,
        "rince": lambda: math.exp(q / tau) * (1 - (certain / batch) ** q) / q,
        "ccl_tan": lambda: (1 - 1 / batch) * tangents,
        "acl": lambda: (1 - 1 / batch) * tangents ** (1 - q),
    }[loss]())


def max_informative_rate(loss: str, batch: int, q: float | None = None, tau: float = 0.07, form: str = "open") -> float:
    """The noise rate up to which Fact C is informative: its bound is below `chance_gap`.

    Where the bound reaches that gap, it no longer excludes a model that guesses, however good the clean one is. The
    value is the supremum: informative at every rate strictly below, at none above. Losses of constant sum hold out
    to 1 (open) or (B - 1) / B (closed). Raises UserError as `excess_risk_bound`.
    """
    lo, hi = sum_bounds(loss, batch, q, tau)
    gap = chance_gap(loss, batch, q, tau)
    return gap * _candidates(batch, form) / (hi - lo + gap * batch)  # the bound solved for the rate


def memory_cost(gap: float, rate: float) -> float:
    """What to add to Fact C for parameters that know mismatched pairs by heart: `rate gap / (1 - rate)`.

    gap: by how much their mean loss at the mismatched pairs they were trained on is below that at random ones: so much
    the noisy risk that they minimise is below the mixture of Fact A (of the clean minimiser it is not, which has not
    seen them). Infinite at rate 1.
    """
    return rate * max(gap, 0.0) / (1 - rate) if rate < 1 else math.inf


def _candidates(batch: int, form: str) -> int:
    """How many captions a mismatched row may carry: its own is among the batch in the closed form only."""
    if form not in FORMS:
        raise UserError(f"there is no form '{form}' of the bound; choose open or closed.")
    return batch if form == "open" else batch - 1


def _mass(ups, batch: int, tau: float):
    """`sum_j exp(s_j - 1/tau)` with `ups` logits at +1/tau and the others at -1/tau."""
    return ups + (batch - ups) * math.exp(-2 / tau)


def _checked(loss: str, batch: int, q: float | None, tau: float) -> float | None:
    """The exponent in force, None for losses without one; raises UserError for arguments that have no bound."""
    label_loss(loss)
    if batch < 2:
        raise UserError(f"a certificate needs batches of at least 2 pairs, not {batch}.")
    if tau < LOWEST_TAU:
        raise UserError(f"the temperature must be at least {LOWEST_TAU} for a certificate, not {tau}.")
    parameter = inspect.signature(LABEL_LOSSES[loss]).parameters.get("q")
    if parameter is None:
        return None
    q = parameter.default if q is None else q
    if not (0 < q <= 1 or (loss == "acl" and q == 0)):
        raise UserError(f"the exponent q of '{loss}' must be above 0 and at most 1 for a certificate, not {q}.")
    return q
