"""What `mdw certify` prints: tables in Markdown, sentences on where the bounds end, and what they do not promise."""

import math
from collections.abc import Mapping, Sequence

from mdw_jax.analysis.certificate.case import Case, Rate
from mdw_jax.analysis.certificate.estimate import MEMORIZED_ERRORS, largest_holding, memorized_epochs
from mdw_jax.analysis.certificate.rows import excess_row, label, trivial_loss
from mdw_jax.method import certificate
from mdw_jax.reporting.text import markdown_table

LIMITS = (
    "Memorization. Proposition 3 is about parameters that do not depend on which pairs were permuted. Networks that "
    "memorized mismatched pairs are outside of it, at every epoch at which they have. The upper bound of the clean risk "
    "is not affected: its pairs were held out.",
    "Natural noise. Wrong captions of the web are not random ones: they are half right, or wrong for some kinds of "
    "images more than for others. Then Proposition 1 fails, and everything else with it. A given eta is not checked, and "
    "the interval of an estimated one holds about as often as it says.",
    "Training. Proposition 3 compares minimizers of the expected loss. It leaves out that fewer right pairs are left to "
    "learn from, that training stops early, recovery's pseudo-captions beyond their own rate, and guidance, whose loss "
    "is no expert loss. The excess measured contains all of these and may exceed the bound without refuting it.",
    "Tracks. Noise is assumed to be uniform within a track, though a division chooses by the very loss that is bounded. "
    "Posteriors of the mixture are probabilities only as far as its two components fit.",
    "Several captions per image. A unit is an image with all its captions, so they may depend on each other. Within a "
    "training batch two captions of one image make each other's row ambiguous, which Propositions 1 to 3 ignore.",
    "Candidates. A clean risk is measured among B - 1 fixed candidates of this data set: not among thousands, not on "
    "another distribution, and it is a loss, not a recall.",
    "Natural noise again. What is given or estimated is the rate of the training pairs; that of val is unknown, and may "
    "be 0. The upper bound of the clean risk therefore holds there for any rate of val, and is that of its pairs as given.",
    "Choices. Confidence is for one row at a time and for networks that were not chosen by val. Several rows hold "
    "together only with their failure probabilities added up. Distilled sets and their students are not certified.",
    "Other losses. A loss that does not state its bounds has no certificate: its risks are measured, nothing is bounded.",
)


def report(cases: Sequence[Case], rows: Sequence[dict], confidence: float) -> str:
    """The text of `mdw certify`.

    Args:
        cases: everything measured.
        rows: of `rows.all_rows`.
        confidence: of the upper bound.
    """
    parts = ["Largest cost of noise (Proposition 3), in units of the loss:\n", _bounds_table(cases),
             f"Clean risk on val, and its upper bound from mismatched val pairs at a confidence of {confidence:.0%} "
             "(Hoeffding's or the empirical Bernstein inequality on single images; Proposition 4):\n",
             _risk_table(cases, rows),
             "Tracks at the end of training, the share of their weight on mismatched pairs, and Proposition 3 at it:\n",
             _track_table(rows)]
    if any(row["measure"] == "excess" for row in rows):
        parts += ["Clean risk above that of experts trained on clean pairs, or of the best of the run, beside Proposition "
                  "3 (finite-batch form), which is about minimizers of the expected loss:\n", _excess_table(rows)]
    parts += ["Mean loss by epoch (0: before training). Mismatched pairs count as memorized where memory exceeds "
              f"{MEMORIZED_ERRORS:g} standard errors:\n", _memory_table(rows), *summary_lines(cases),
              "\nWhat the certificate does not promise:\n", *(f"* {line}" for line in LIMITS)]
    return "\n".join(parts) + "\n"


def _bounds_table(cases: Sequence[Case]) -> str:
    """One row per loss and rate: what every case of that rate shares."""
    entries: dict[tuple, dict] = {}
    for case in cases:
        for rate in case.rates:
            for loss in case.losses:
                entry = entries.setdefault((case.batch, rate.high, label(loss)),
                                           {"case": case, "rate": rate, "loss": loss, "presets": []})
                entry["presets"] += [case.names] if loss in case.trained_losses else []
    table = []
    for _, entry in sorted(entries.items(), key=lambda item: item[0][:2]):
        table.append({"eta": f"{entry['rate'].high:.1%}", "loss": label(entry["loss"]),
                      **_bound_columns(entry["case"], entry["rate"], entry["loss"]),
                      "used by": "; ".join(dict.fromkeys(entry["presets"])) or "-"})
    return markdown_table(table)


def _bound_columns(case: Case, rate: Rate, loss: tuple) -> dict[str, str]:
    name, q = loss
    if not certificate.has_certificate(name):
        return {"large-N": certificate.NO_CERTIFICATE, "finite-batch": "-", "chance gap": "-",
                "informative below (large-N)": "-", "(finite-batch)": "-"}
    bound = lambda form: _number(certificate.excess_risk_bound(name, case.batch, rate.high, q, case.tau, form))
    informative = lambda form: f"{certificate.max_informative_rate(name, case.batch, q, case.tau, form):.3f}"
    return {"large-N": bound("large_n"), "finite-batch": bound("finite_batch"),
            "chance gap": _number(certificate.chance_gap(name, case.batch, q, case.tau)),
            "informative below (large-N)": informative("large_n"), "(finite-batch)": informative("finite_batch")}


def _risk_table(cases: Sequence[Case], rows: Sequence[dict]) -> str:
    by_key = {(row["preset"], row["recipe"], row["source"], row["eta"], row["loss"], row["measure"]): row
              for row in rows}
    table = []
    for case in cases:
        for rate in case.rates:
            for loss in dict.fromkeys([*map(label, case.trained_losses), "gce 0.7"]):
                find = lambda measure: by_key.get((case.names, case.recipe_name, rate.source, rate.eta, loss, measure))
                noisy, clean, upper = find("noisy_risk"), find("clean_risk"), find("upper_bound")
                table.append({
                    "preset": case.names, "eta": _rate(rate), "loss": loss, "noisy": _number(noisy["value"]),
                    "shuffled": _number(find("shuffled_risk")["value"]), "clean": _interval(clean) if clean else "-",
                    "upper bound": _number(upper["value"]) if upper else "-",
                    "without eta": _number(find("noisy_upper_bound")["value"]) if upper else "-",
                    "guessing": _number(noisy["trivial"]), "images": str(noisy["count"]),
                    "verdict": _verdict(clean, upper) if upper else certificate.NO_CERTIFICATE})
    return markdown_table(table)


def _verdict(clean: dict | None, upper: dict) -> str:
    """Whether the upper bound holds, where the clean risk is known, and whether it is below the loss of guessing."""
    holds = "" if clean is None else "holds, " if clean["value"] <= upper["value"] else "FAILS, "
    return holds + ("informative" if upper["value"] < upper["trivial"] else "vacuous")


def _track_table(rows: Sequence[dict]) -> str:
    sources = {"known": "truth", "estimated": "posterior"}
    return markdown_table([{
        "preset": row["preset"], "eta": f"{row['eta']:.1%}", "track": row["track"], "weight": str(row["count"]),
        "mismatched": _percent(row["value"]), "by": sources.get(row["source"], row["source"]), "loss": row["loss"],
        "bound": _number(row["bound"])} for row in rows if row["measure"] == "residual"])


def _excess_table(rows: Sequence[dict]) -> str:
    return markdown_table([{
        "preset": row["preset"], "eta": f"{row['eta']:.0%}", "loss": row["loss"], "excess": _interval(row),
        "bound of a minimizer": _number(row["bound"]), "with memorization": _number(row["bound_memory"]),
        "within bound": _within_bound(row), "reference": row["reference"]}
        for row in rows if row["measure"] == "excess"])


def _memory_table(rows: Sequence[dict]) -> str:
    table: dict[tuple, dict] = {}
    for row in rows:
        if row["measure"].startswith(("train_", "val_", "memory")):
            entry = table.setdefault((row["preset"], row["eta"], row["epoch"]), {
                "preset": row["preset"], "eta": f"{row['eta']:.1%}", "loss": row["loss"], "epoch": str(row["epoch"])})
            entry[row["measure"]] = (_percent(row["value"]) if row["measure"] == "memory_share" else
                                     _interval(row) if row["measure"] == "memory" else _number(row["value"]))
    names = dict.fromkeys(name for entry in table.values() for name in entry)
    last = {key[:2]: key[2] for key in table}
    shown = [entry for (name, eta, epoch), entry in table.items()  # a few of many epochs
             if epoch % max(1, last[name, eta] // 3) == 0 or epoch == last[name, eta]]
    return markdown_table([{name.replace("_", " "): entry.get(name, "-") for name in names} for entry in shown])


def summary_lines(cases: Sequence[Case]) -> list[str]:
    """Sentences: whether pairs are memorized, and up to which eta the bounds of every trained loss are informative."""
    lines = [_memorization_line(case) for case in cases if case.memory]
    known = [case for case in cases if case.true_rate is not None]
    for recipe, loss in dict.fromkeys((case.recipe_name, loss) for case in known for loss in case.trained_losses):
        own = [case for case in known if case.recipe_name == recipe and loss in case.trained_losses]
        lines += _bounds_lines(recipe, loss, own, cases)
    return lines


def _memorization_line(case: Case) -> str:
    finding = f"mismatched pairs are not memorized at any stored epoch (the last is {case.epoch})"
    epochs = memorized_epochs(case.memory)
    if case.memorized_from is not None:
        share = case.memory[-1].share
        by_then = "" if math.isnan(share) else f"; {share:.1%} of the way to right pairs by the last one, {case.epoch}"
        finding = (f"mismatched pairs are memorized from epoch {case.memorized_from} through the last stored one, where "
                   f"the assumption of Proposition 3 fails{by_then}")
    elif epochs:
        earlier = (f"at epoch {epochs[0]}" if len(epochs) == 1 else
                   f"at {len(epochs)} of the epochs {epochs[0]} to {epochs[-1]}")
        finding = f"mismatched pairs are not memorized at the last stored epoch, {case.epoch} (they were {earlier})"
    return f"* {case.names}, {case.preset.noise.label} mismatched: {finding}."


def _bounds_lines(recipe: str, loss: tuple, cases: Sequence[Case], run: Sequence[Case]) -> list[str]:
    """Of one recipe and loss at several known rates: up to which bounds are informative, and up to which they held.

    Args:
        recipe: name of the recipe.
        loss: (name, q) of a loss that all of `cases` were trained under.
        cases: of this recipe, at known rates.
        run: all cases of the run, among which the reference of the excess is.
    """
    head, tau = f"* {recipe} ({label(loss)}):", cases[0].tau
    if not certificate.has_certificate(loss[0]):
        return [f"{head} {certificate.NO_CERTIFICATE}; its risks are measured only."]
    informative = certificate.max_informative_rate(loss[0], cases[0].batch, loss[1], tau)
    rates = [case.true_rate for case in cases]
    upper = [case.uppers["known", loss].bound for case in cases]
    clean = [case.risks["clean_risk"][case.losses.index(loss)].mean() for case in cases]
    trivial = trivial_loss(loss, cases[0].batch, tau)
    measured = ", ".join(f"{rate:.0%}" for rate in sorted(set(rates)))
    lines = [f"{head} Proposition 3 is informative below eta {informative:.3f}. Of the rates measured ({measured}) the "
             f"upper bound of the clean risk held {_where(rates, [c <= u for c, u in zip(clean, upper, strict=True)])}, "
             f"and was below the loss of guessing {_where(rates, [u < trivial for u in upper])}."]
    excess = [row for case in cases if (row := excess_row(case, run, loss)) is not None]
    if excess:
        where = _where([row["eta"] for row in excess], [row["value"] <= row["bound"] for row in excess])
        lines.append(f"{head} the excess measured was within Proposition 3 {where} (reference: {excess[0]['reference']}); "
                     "where it was not, these networks are not the minimizers that it is about.")
    return lines


def _where(rates: Sequence[float], holds: Sequence[bool]) -> str:
    """At which of the measured rates something holds: "up to 40%", "only at 60%", "at no rate"."""
    largest = largest_holding(rates, holds)
    if largest is not None:
        return f"up to {largest:.0%}"
    failed = {rate for rate, held in zip(rates, holds, strict=True) if not held}
    held = sorted(set(rates) - failed)
    return f"only at {', '.join(f'{rate:.0%}' for rate in held)}" if held else "at no rate"


def _within_bound(row: dict) -> str:
    if row["bound"] is None:
        return certificate.NO_CERTIFICATE
    if row["value"] <= row["bound"]:
        return "yes"
    if row["low"] <= row["bound"]:
        return "within its error"
    times = f"{row['value'] / row['bound']:.1f} times it: " if row["bound"] > 0 else ""
    return f"no, {times}no minimizers"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _rate(rate: Rate) -> str:
    if rate.low == rate.high:
        return f"{rate.eta:.1%} {rate.source}"
    return f"{rate.eta:.1%} [{rate.low:.1%}, {rate.high:.1%}] {rate.source}"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return "inf" if math.isinf(value) else f"{value:.3g}" if abs(value) >= 100 else f"{value:.3f}"


def _interval(row: Mapping) -> str:
    return f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}]"
