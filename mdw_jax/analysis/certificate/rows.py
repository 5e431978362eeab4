"""The rows of certificate.csv."""

import math
from collections.abc import Sequence

import numpy as np

from mdw_jax.analysis.certificate import estimate
from mdw_jax.analysis.certificate.case import Case, Rate
from mdw_jax.method import certificate
from mdw_jax.method.losses import expert_loss

COLUMNS = ("preset", "recipe", "eta", "source", "eta_low", "eta_high", "epoch", "track", "loss", "measure", "value",
           "low", "high", "bound", "bound_memory", "trivial", "count", "reference")
"""Columns of certificate.csv.

preset: names of the presets that share the experts. recipe: of the experts. eta, eta_low, eta_high: the noise rate and
its interval. source: known (a drawn noise), given (noise.rate of natural noise) or estimated. loss: with its exponent.
epoch: of the snapshots measured; 0 is before training. low, high: 95 % interval of the value. bound: the bound that the
value is compared with; bound_memory: the same with memorization (`certificate.memory_cost`). trivial: the loss of a
network that guesses. count: number of independent observations. reference: the experts that an excess is measured
against.

measure, by loss:
excess_bound_large_n, excess_bound_finite_batch   the bound of Proposition 3
informative_large_n, informative_finite_batch     the noise rate up to which it is informative
certificate       "no certificate for this loss", in place of all bounds
clean_risk        mean loss on val as truly paired; noisy_risk: as mismatched; shuffled_risk: at random partners
upper_bound       upper confidence bound of the clean risk at this noise rate; under natural noise at any rate, for that of
                  val is unknown; noisy_upper_bound: of the risk on the pairs as given
informative_upper the noise rate up to which that bound would be below `trivial` for a network this good
excess            clean risk above that of the reference
residual          share of a track's weight on mismatched pairs (track "all": of all together)

measure, by epoch, of the loss trained under:
train_matched, train_mismatched   mean loss on training pairs; train_unseen: the same images and captions, paired otherwise
val_matched, val_mismatched       mean loss on val
train_given, val_given            the pairs as given, where it is unknown which are mismatched
memory            train_unseen - train_mismatched; memory_share: relative to train_unseen - train_matched

measure, of the training pairs, without networks:
noise_edge_top, noise_edge_directions   the top singular value of their whitened cross-covariance, and how many of its
                  directions lie above that of shuffled captions, `bound`; bernstein_edge_...: above the proved edge
"""


def label(loss: tuple) -> str:
    """("gce", 0.7) -> "gce 0.7"."""
    return loss[0] if loss[1] is None else f"{loss[0]} {loss[1]:g}"


def trivial_loss(loss: tuple, batch: int, tau: float) -> float:
    """The loss at equal logits: a network that guesses.

    Args:
        loss: (name, q).
        batch: number of candidates.
        tau: temperature.
    """
    if certificate.has_certificate(loss[0]):
        return certificate.sum_bounds(loss[0], batch, loss[1], tau)[0] / batch
    return float(expert_loss(*loss)(np.zeros((batch, batch), np.float32))[0, 0])


def excess_bound(loss: tuple, case: Case, eta: float, form: str = "large_n") -> float | None:
    """The bound of Proposition 3 for a case; None for a loss without a certificate. form: one of `certificate.FORMS`."""
    if not certificate.has_certificate(loss[0]):
        return None
    return certificate.excess_risk_bound(loss[0], case.batch, eta, loss[1], case.tau, form)


def all_rows(cases: Sequence[Case]) -> list[dict]:
    """Every row of certificate.csv."""
    return [row for case in cases for row in case_rows(case)] + excess_rows(cases)


def case_rows(case: Case) -> list[dict]:
    """All rows of one set of experts except its excess, which needs other experts."""
    rows = []
    for rate in case.rates:
        for n, loss in enumerate(case.losses):
            common = {**_rate_columns(case, rate), "loss": label(loss), "epoch": case.epoch}
            rows += [{**common, **row} for row in [*_bound_rows(case, rate, loss), *_risk_rows(case, rate, n, loss)]]
    common = _rate_columns(case, case.rates[0])
    rows += [{**common, "loss": label(case.trained_losses[0]), **row} for row in _epoch_rows(case)]
    return rows + [{**common, **row} for row in _track_rows(case)]


def _rate_columns(case: Case, rate: Rate) -> dict:
    return {"preset": case.names, "recipe": case.recipe_name, "source": rate.source, "eta": rate.eta,
            "eta_low": rate.low, "eta_high": rate.high}


def _bound_rows(case: Case, rate: Rate, loss: tuple) -> list[dict]:
    """Proposition 3 for one loss, in both forms."""
    name, q = loss
    if not certificate.has_certificate(name):
        return [{"measure": "certificate", "value": certificate.NO_CERTIFICATE}]
    rows = []
    for form in certificate.FORMS:
        rows += [{"measure": f"excess_bound_{form}",
                  "value": certificate.excess_risk_bound(name, case.batch, rate.high, q, case.tau, form)},
                 {"measure": f"informative_{form}",
                  "value": certificate.max_informative_rate(name, case.batch, q, case.tau, form)}]
    return rows


def _risk_rows(case: Case, rate: Rate, n: int, loss: tuple) -> list[dict]:
    """Risks on val by loss number `n`, and the upper bound of the clean one where the loss has a certificate."""
    trivial = trivial_loss(loss, case.batch, case.tau)
    risks = {measure: case.risks[measure][n] for measure in ("clean_risk", "noisy_risk", "shuffled_risk")}
    if case.true_rate is None:
        del risks["clean_risk"]  # the pairs of val are noisy themselves
    rows = []
    for measure, values in risks.items():
        count = case.sample.val["shuffled_risk"][0].count if measure == "shuffled_risk" else len(values)
        rows.append({"measure": measure, **_interval(values.mean(), values.std() / math.sqrt(count)), "count": count,
                     "trivial": trivial})
    upper = case.uppers.get((rate.source, loss))
    if upper is None:
        return rows
    # Under natural noise the risk on the pairs as given: at least the clean one, for a network better than chance.
    risk = risks["clean_risk"].mean() if "clean_risk" in risks else upper.noisy
    informative = estimate.largest_informative_rate(risk, trivial, upper.noisy_up - upper.noisy,
                                                    upper.shuffled - upper.shuffled_down)
    return [*rows,
            {"measure": "upper_bound", "value": upper.bound, "trivial": trivial, "count": upper.units},
            {"measure": "noisy_upper_bound", "value": upper.noisy_up, "trivial": trivial, "count": upper.units},
            {"measure": "informative_upper", "value": informative}]


def _epoch_rows(case: Case) -> list[dict]:
    """Mean losses by epoch, and how far mismatched pairs are memorized."""
    main, rows = case.losses.index(case.trained_losses[0]), []
    images_of = {measure: len(np.unique(images)) for measure, (images, _) in case.sample.train.items()}
    val_images = case.sample.val["clean_risk"][0].count
    for epoch, losses in enumerate(case.by_epoch):
        means = {**losses.train,
                 "val_given" if case.true_rate is None else "val_matched": losses.val["clean_risk"][main],
                 "val_mismatched": losses.val["shuffled_risk"][main]}
        for measure, values in means.items():
            count = images_of.get(measure, val_images)  # units of the matchings occur several times: count them once
            rows.append({"epoch": epoch, "measure": measure, "count": count,
                         **_interval(float(values.mean()), float(values.std() / math.sqrt(count)))})
        if case.memory:
            memory, count = case.memory[epoch], images_of["train_mismatched"]
            rows += [{"epoch": epoch, "measure": "memory", **_interval(memory.gap, memory.error), "count": count},
                     {"epoch": epoch, "measure": "memory_share", "value": memory.share, "count": count}]
    return rows


def _track_rows(case: Case) -> list[dict]:
    """Residual noise of each track with Proposition 3 at it, and the bound of all tracks together."""
    loss_of = {"clean": (case.recipe.clean_loss, case.recipe.clean_q)}
    tolerant = (case.recipe.tolerant_loss, case.recipe.tolerant_q)
    rows = []
    for source in dict.fromkeys(track.source for track in case.tracks):
        tracks = [track for track in case.tracks if track.source == source and math.isfinite(track.rate)]
        total = sum(track.weight for track in tracks)
        parts = []
        for track in tracks:
            name, q = loss_of.get(track.name, tolerant)
            parts.append((track.weight / total, track.rate, name, q))
            rows.append({"source": source, "track": track.name, "loss": name, "measure": "residual",
                         "value": track.rate, "count": round(track.weight),
                         "bound": excess_bound((name, q), case, track.rate)})
        if parts:
            certified = all(certificate.has_certificate(name) for _, _, name, _ in parts)
            rows.append({"source": source, "track": "all", "loss": label(case.trained_losses[0]), "measure": "residual",
                         "value": sum(share * rate for share, rate, _, _ in parts), "count": round(total),
                         "bound": certificate.tracks_bound(parts, case.batch, case.tau) if certified else None})
    return rows


def reference_of(case: Case, cases: Sequence[Case], loss: tuple) -> tuple[Case, str]:
    """The experts that a case's excess is measured against, and words for them.

    Trained on clean pairs, by the same recipe if possible; without such experts the best of the run, which may be the
    case itself.

    Args:
        case: the case.
        cases: all cases of the run.
        loss: (name, q) of the loss to measure by.

    Raises:
        ValueError: the noise of no case is known.
    """
    known = [other for other in cases if other.true_rate is not None and loss in other.losses]
    clean = [other for other in known if other.true_rate == 0]
    risk = lambda other: other.risks["clean_risk"][other.losses.index(loss)].mean()
    for group, words in (([other for other in clean if other.recipe_name == case.recipe_name], "clean pairs"),
                         (clean, "clean pairs"), (known, "best of the run")):
        if group:
            best = min(group, key=risk)
            same = best.recipe_name == case.recipe_name
            return best, f"{words}, {'the same recipe' if same else best.recipe_name}"
    raise ValueError("a case whose noise is not known has no excess.")


def excess_rows(cases: Sequence[Case]) -> list[dict]:
    """The excess of each case by the first loss it was trained under."""
    rows = [excess_row(case, cases, case.trained_losses[0]) for case in cases]
    return [row for row in rows if row is not None]


def excess_row(case: Case, cases: Sequence[Case], loss: tuple) -> dict | None:
    """The clean risk of a case above its reference's on the same val images, beside Proposition 3.

    Args:
        case: the case.
        cases: all cases of the run.
        loss: (name, q) of the loss to measure by.

    Returns:
        The row; None where the noise is not known or the case is its own reference.
    """
    if case.true_rate is None:
        return None
    reference, words = reference_of(case, cases, loss)
    if reference is case:
        return None
    rate = case.rates[0]
    difference = (case.risks["clean_risk"][case.losses.index(loss)]
                  - reference.risks["clean_risk"][reference.losses.index(loss)])
    bound = excess_bound(loss, case, rate.high, "finite_batch")  # that which holds for data sets of every size
    gap = case.memory[-1].gap if case.memory else 0.0
    return {**_rate_columns(case, rate), "epoch": case.epoch, "loss": label(loss), "measure": "excess",
            **_interval(difference.mean(), difference.std() / math.sqrt(len(difference))), "bound": bound,
            "bound_memory": None if bound is None else bound + certificate.memory_cost(gap, rate.high),
            "count": len(difference), "reference": words}


def _interval(value, error) -> dict:
    """A mean and its 95 % interval from its standard error."""
    return {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error}


def to_csv(row: dict) -> dict:
    """A row with numpy's numbers as Python's."""
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in row.items()}
