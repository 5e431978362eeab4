"""Rows, tables and the picture of a certificate."""

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mdw_jax.analysis.certificate import estimate
from mdw_jax.analysis.certificate.case import Case, Rate
from mdw_jax.io.files import write_atomically
from mdw_jax.method import certificate, losses
from mdw_jax.reporting.text import markdown_table


def label(loss: tuple) -> str:
    """("gce", 0.7) -> "gce 0.7"."""
    return loss[0] if loss[1] is None else f"{loss[0]} {loss[1]:g}"


def case_rows(case: Case) -> list[dict]:
    """All rows of one set of experts but its excess, which needs another."""
    tau = case.preset.config.model.tau
    common = {"preset": case.names, "recipe": case.preset.config.experts.recipe}
    at = lambda rate: {**common, "source": rate.source, "eta": rate.eta, "eta_low": rate.low, "eta_high": rate.high}
    rows = []
    for rate in case.rates:
        for n, loss in enumerate(case.losses):
            row = {**at(rate), "loss": label(loss), "epoch": case.epoch}
            trivial = trivial_loss(loss, case.batch, tau)
            for form in certificate.FORMS:
                rows += [{**row, "measure": f"excess_bound_{form}", "value": certificate.excess_risk_bound(
                    loss[0], case.batch, rate.high, loss[1], tau, form)},
                    {**row, "measure": f"informative_{form}", "value": certificate.max_informative_rate(
                        loss[0], case.batch, loss[1], tau, form)}]
            upper = case.uppers[rate.source, loss]
            measured = {"clean_risk": case.risks["clean_risk"][n], "noisy_risk": case.risks["noisy_risk"][n],
                        "shuffled_risk": case.risks["shuffled_risk"][n]}
            if case.preset.noise.true_rate is None:
                del measured["clean_risk"]  # val as it comes is noisy itself
            for what, values in measured.items():
                count = upper.shuffled_units if what == "shuffled_risk" else len(values)
                error = values.std() / math.sqrt(count)
                rows.append({**row, "measure": what, "value": values.mean(), "low": values.mean() - 1.96 * error,
                             "high": values.mean() + 1.96 * error, "count": count, "trivial": trivial})
            # The risk where it is known, else what is estimated of it.
            risk = (measured["clean_risk"].mean() if "clean_risk" in measured else
                    losses.debiased(upper.noisy, upper.shuffled, min(rate.eta, 0.999)))
            rows += [{**row, "measure": "upper_bound", "value": upper.bound, "trivial": trivial, "count": upper.units},
                     {**row, "measure": "noisy_upper_bound", "value": upper.noisy_up, "trivial": trivial,
                      "count": upper.units},
                     {**row, "measure": "informative_upper", "value": estimate.largest_informative_rate(
                         risk, trivial, upper.noisy_up - upper.noisy, upper.shuffled - upper.shuffled_down)}]
    first = case.rates[0]
    rows += [{**at(first), "loss": label(case.by[0]), **row} for row in case.memory]
    return rows + _track_rows(case, at(first), tau)


def _track_rows(case: Case, row: dict, tau: float) -> list[dict]:
    """Residual noise of each track with Fact C at it, and the bound of all tracks together."""
    by_track = {"clean": (case.recipe.clean_loss, case.recipe.clean_q)}
    tolerant = (case.recipe.tolerant_loss, case.recipe.tolerant_q)
    rows = []
    for source in dict.fromkeys(track["source"] for track in case.tracks):
        tracks = [track for track in case.tracks if track["source"] == source and math.isfinite(track["rate"])]
        total = sum(track["weight"] for track in tracks)
        parts = []
        for track in tracks:
            name, q = by_track.get(track["track"], tolerant)
            parts.append((track["weight"] / total, track["rate"], name, q))
            rows.append({**row, "source": source, "track": track["track"], "loss": name, "measure": "residual",
                         "value": track["rate"], "count": round(track["weight"]),
                         "bound": certificate.excess_risk_bound(name, case.batch, track["rate"], q, tau)})
        if parts:
            mixed = sum(share * rate for share, rate, _, _ in parts)
            rows.append({**row, "source": source, "track": "all", "loss": label(case.by[0]), "measure": "residual",
                         "value": mixed, "count": round(total),
                         "bound": certificate.tracks_bound(parts, case.batch, tau)})
    return rows


def trivial_loss(loss: tuple, batch: int, tau: float) -> float:
    """The loss at equal logits: a network that guesses."""
    return certificate.sum_bounds(loss[0], batch, loss[1], tau)[0] / batch


def reference_of(case: Case, cases: Sequence[Case]) -> tuple[Case, str]:
    """Which experts a case's excess is measured against, and how to call them: trained on clean pairs, by the same
    recipe if there are such; else the best of the run, which may be itself."""
    loss, recipe = case.by[0], lambda one: one.preset.config.experts.recipe
    known = [one for one in cases if one.preset.noise.true_rate is not None and loss in one.losses]
    clean = [one for one in known if one.preset.noise.true_rate == 0]
    risk = lambda one: one.risks["clean_risk"][one.losses.index(loss)].mean()
    for group, words in (([one for one in clean if recipe(one) == recipe(case)], "clean pairs"), (clean, "clean pairs"),
                         (known, "best of the run")):
        if group:
            best = min(group, key=risk)
            return best, f"{words}, {'the same recipe' if recipe(best) == recipe(case) else recipe(best)}"
    raise ValueError("a case whose noise is not known has no excess.")


def excess_rows(cases: Sequence[Case]) -> list[dict]:
    """The clean risk of each case beyond its reference's on the same val images, beside Fact C."""
    rows = []
    for case in cases:
        if case.preset.noise.true_rate is None:
            continue
        reference, words = reference_of(case, cases)
        if reference is case:
            continue
        loss = case.by[0]
        difference = (case.risks["clean_risk"][case.losses.index(loss)]
                      - reference.risks["clean_risk"][reference.losses.index(loss)])
        error, rate = difference.std() / math.sqrt(len(difference)), case.rates[0]
        bound = certificate.excess_risk_bound(loss[0], case.batch, rate.high, loss[1], case.preset.config.model.tau)
        rows.append({"preset": case.names, "recipe": case.preset.config.experts.recipe, "source": rate.source,
                     "eta": rate.eta, "eta_low": rate.low, "eta_high": rate.high, "epoch": case.epoch,
                     "loss": label(loss), "measure": "excess", "value": difference.mean(),
                     "low": difference.mean() - 1.96 * error, "high": difference.mean() + 1.96 * error,
                     "bound": bound, "bound_memory": bound + certificate.memory_cost(_gap(case), rate.high),
                     "count": len(difference), "against": words})
    return rows


def _gap(case: Case) -> float:
    """What the last epoch knows by heart, in units of the loss; 0 where nothing is mismatched."""
    return next((row["value"] for row in reversed(case.memory) if row["measure"] == "memory"), 0.0)


def _written(row: dict) -> dict:
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in row.items()}


def report(cases: Sequence[Case], rows: Sequence[dict], confidence: float) -> str:
    """The tables in Markdown, where the bounds break, and what the certificate does not promise."""
    lines = ["What noise can cost at most (Fact C), in units of the loss, by loss:\n", _bounds_table(cases, rows),
             f"Clean risk on val, and its upper bound from mismatched val pairs at a confidence of {confidence:.0%} "
             "(Hoeffding's or the empirical Bernstein inequality on single images; Fact D):\n",
             _risk_table(cases, rows),
             "Tracks at the end of training, the share of their weight on mismatched pairs, and Fact C at it:\n",
             _track_table(rows)]
    excess = [row for row in rows if row["measure"] == "excess"]
    if excess:
        lines += ["Clean risk beyond that of experts trained on clean pairs, or of the best at hand:\n",
                  markdown_table([{
                      "preset": row["preset"], "eta": f"{row['eta']:.0%}", "loss": row["loss"],
                      "excess": _interval(row),
                      "bound": _number(row["bound"]), "with memory": _number(row["bound_memory"]), "held": _held(row),
                      "against": row["against"]} for row in excess])]
    lines += ["Mean loss by epoch (0: before training):\n", _memory_table(rows)]
    lines += [*breaking_lines(cases, rows), "\nWhat the certificate does not promise:\n"]
    lines += [f"* {line}" for line in LIMITS]
    return "\n".join(lines) + "\n"


def _bounds_table(cases, rows) -> str:
    """One row a loss and rate: what every case of that rate shares."""
    shown = {}
    for case in cases:
        for rate in case.rates:
            for loss in case.losses:
                key = (case.batch, rate.high, label(loss))
                own = shown.setdefault(key, {"used by": [], "case": case, "rate": rate, "loss": loss})
                own["used by"] += [case.names] if loss in case.by else []
    table = []
    for (batch, eta, name), entry in sorted(shown.items(), key=lambda item: item[0][:2]):
        tau = entry["case"].preset.config.model.tau
        bound = lambda form, entry=entry, eta=eta, batch=batch, tau=tau: _number(certificate.excess_risk_bound(
            entry["loss"][0], batch, eta, entry["loss"][1], tau, form))
        point = lambda form, entry=entry, batch=batch, tau=tau: "{:.3f}".format(certificate.max_informative_rate(
            entry["loss"][0], batch, entry["loss"][1], tau, form))
        table.append({"eta": f"{eta:.1%}", "loss": name, "open": bound("open"), "closed": bound("closed"),
                      "to win": _number(certificate.chance_gap(entry["loss"][0], batch, entry["loss"][1], tau)),
                      "informative below (open)": point("open"), "(closed)": point("closed"),
                      "used by": "; ".join(dict.fromkeys(entry["used by"])) or "-"})
    return markdown_table(table)


def _risk_table(cases, rows) -> str:
    table = []
    for case in cases:
        shown = dict.fromkeys([*map(label, case.by), "gce 0.7"])
        for rate in case.rates:
            for name in shown:
                get = lambda measure, case=case, rate=rate, name=name: next(
                    (row for row in rows if row["measure"] == measure and row["loss"] == name
                     and row["preset"] == case.names and row["source"] == rate.source and row["eta"] == rate.eta
                     and row["recipe"] == case.preset.config.experts.recipe), None)
                clean, upper = get("clean_risk"), get("upper_bound")
                table.append({
                    "preset": case.names, "eta": _rate(rate), "loss": name,
                    "as given": _number(get("noisy_risk")["value"]),
                    "random": _number(get("shuffled_risk")["value"]), "clean": _interval(clean) if clean else "-",
                    "upper bound": _number(upper["value"]), "without eta": _number(get("noisy_upper_bound")["value"]),
                    "guessing": _number(upper["trivial"]), "images": str(upper["count"]),
                    "says": ("" if clean is None else "holds, " if clean["value"] <= upper["value"] else "FAILS, ")
                    + ("informative" if upper["value"] < upper["trivial"] else "vacuous")})
    return markdown_table(table)


def _track_table(rows) -> str:
    return markdown_table([{
        "preset": row["preset"], "eta": f"{row['eta']:.1%}", "track": row["track"], "weight": str(row["count"]),
        "mismatched": f"{row['value']:.1%}", "by": "truth" if row["source"] == "known" else "posterior"
        if row["source"] == "estimated" else row["source"], "loss": row["loss"], "bound": _number(row["bound"])}
        for row in rows if row["measure"] == "residual"])


def _memory_table(rows) -> str:
    table = {}
    for row in rows:
        if row["measure"].startswith(("train_", "val_", "memory")):
            entry = table.setdefault((row["preset"], row["eta"], row["epoch"]), {
                "preset": row["preset"], "eta": f"{row['eta']:.1%}", "loss": row["loss"], "epoch": str(row["epoch"])})
            entry[row["measure"]] = (f"{row['value']:.1%}" if row["measure"] == "memory_share" else
                                     _interval(row) if row["measure"] == "memory" else _number(row["value"]))
    names = dict.fromkeys(name for entry in table.values() for name in entry)
    last = {key[:2]: key[2] for key in table}  # of many epochs a few
    shown = [entry for (name, eta, epoch), entry in table.items()
             if epoch % max(1, last[name, eta] // 3) == 0 or epoch == last[name, eta]]
    return markdown_table([{name.replace("_", " "): entry.get(name, "-") for name in names} for entry in shown])


def breaking_lines(cases: Sequence[Case], rows: Sequence[dict]) -> list[str]:
    """Sentences: up to which eta bounds say anything, up to which they held, and from which epoch on pairs are known by
    heart."""
    lines = []
    for case in cases:
        rate = f"{case.preset.noise.label} mismatched" if case.preset.noise.true_rate is not None else "natural noise"
        if case.memory and any(row["measure"] == "memory" for row in case.memory):
            share = next(row["value"] for row in reversed(case.memory) if row["measure"] == "memory_share")
            told = ("no stored epoch shows pairs learned by heart" if case.remembers is None else
                    f"mismatched pairs are learned by heart from epoch {case.remembers} on, where Fact C's assumption "
                    f"fails; {share:.1%} of the way to right pairs by epoch {case.epoch}")
            lines.append(f"* {case.names}, {rate}: {told} (the last epoch stored is {case.epoch}).")
    for recipe in dict.fromkeys(case.preset.config.experts.recipe for case in cases):
        own = [case for case in cases if case.preset.config.experts.recipe == recipe
               and case.preset.noise.true_rate is not None]
        if not own:
            continue
        main, tau = own[0].by[0], own[0].preset.config.model.tau
        point = certificate.max_informative_rate(main[0], own[0].batch, main[1], tau)
        rates = [case.preset.noise.true_rate for case in own]
        upper = [case.uppers["known", main] for case in own]
        clean = [case.risks["clean_risk"][case.losses.index(main)].mean() for case in own]
        trivial = trivial_loss(main, own[0].batch, tau)
        lines.append(f"* {recipe} ({label(main)}): Fact C says something below eta {point:.3f}; at the rates measured "
                     f"({', '.join(f'{rate:.0%}' for rate in sorted(rates))}) the upper bound of the clean risk held "
                     f"up to {_up_to(rates, [c <= u.bound for c, u in zip(clean, upper, strict=True)])}, and was below "
                     f"guessing up to {_up_to(rates, [u.bound < trivial for u in upper])}.")
        excess = [row for row in rows if row["measure"] == "excess" and row["recipe"] == recipe]
        if excess:
            held = [row["value"] <= row["bound"] for row in excess]
            lines.append(f"* {recipe} ({label(main)}): the excess measured was within Fact C up to "
                         f"{_up_to([row['eta'] for row in excess], held)} (against {excess[0]['against']}).")
    return lines


def _up_to(rates, held) -> str:
    largest = estimate.largest_holding(rates, held)
    return "none of them" if largest is None else f"{largest:.0%}"


def _held(row: dict) -> str:
    if row["value"] <= row["bound"]:
        return "yes"
    return "no" if row["low"] > row["bound"] else "within its error"


def _rate(rate: Rate) -> str:
    if rate.low == rate.high:
        return f"{rate.eta:.1%} {rate.source}"
    return f"{rate.eta:.1%} [{rate.low:.1%}, {rate.high:.1%}] {rate.source}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else "inf" if math.isinf(value) else f"{value:.3g}" if abs(value) >= 100 else (
        f"{value:.3f}")


def _interval(row: dict) -> str:
    return f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}]"


def draw_certificate(cases: Sequence[Case], rows: Sequence[dict], path) -> None:
    """A PNG: clean risk and its upper bound, excess and Fact C, both by eta; what was learned by heart by epoch."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    risk, excess, memory = figure.subplots(1, 3)
    for n, recipe in enumerate(dict.fromkeys(row["recipe"] for row in rows)):
        own = [row for row in rows if row["recipe"] == recipe]
        main = next(case.by[0] for case in cases if case.preset.config.experts.recipe == recipe)
        points = lambda measure, own=own, loss=label(main): sorted(
            (row["eta"], row["value"], row.get("bound"), row.get("trivial")) for row in own
            if row["measure"] == measure and row["loss"] == loss and row["source"] in ("known", "given"))
        # Losses of several units on one axis: each as a share of what guessing pays.
        for measure, style in (("clean_risk", "-o"), ("upper_bound", "--^")):
            if found := points(measure):
                risk.plot([p[0] for p in found], [p[1] / p[3] if p[3] else math.nan for p in found], style,
                          color=f"C{n}", markersize=4, label=f"{recipe}, {label(main)}: {measure.replace('_', ' ')}")
        if found := points("excess"):
            excess.plot([p[0] for p in found], [p[1] for p in found], "-o", color=f"C{n}", markersize=4,
                        label=f"{recipe}, {label(main)}: measured")
            grid = np.linspace(0, max(p[0] for p in found) or 0.8, 60)
            case = next(case for case in cases if case.preset.config.experts.recipe == recipe)
            bound = [certificate.excess_risk_bound(main[0], case.batch, eta, main[1], case.preset.config.model.tau)
                     for eta in grid]
            if max(bound) < 3:  # else it would press all else to the axis
                excess.plot(grid, bound, "--", color=f"C{n}", label=f"{recipe}, {label(main)}: Fact C")
    for n, case in enumerate(cases):
        shares = [row for row in case.memory if row["measure"] == "memory_share"]
        if shares:
            memory.plot([row["epoch"] for row in shares], [100 * row["value"] for row in shares], "-o",
                        color=f"C{n % 10}", markersize=4,
                        label=f"{case.preset.config.experts.recipe}, {case.preset.noise.label}")
    risk.axhline(1, color="0.6", linewidth=1)
    risk.set(xlabel="eta", ylabel="loss, guessing = 1", title="Clean risk and its upper bound")
    excess.set(xlabel="eta", ylabel="loss", title="Excess clean risk and Fact C")
    memory.axhline(0, color="0.6", linewidth=1)
    memory.set(xlabel="epoch", ylabel="mismatched pairs known by heart, %", title="Memorization")
    for axes in (risk, excess, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    write_atomically(path, buffer.getvalue())

LIMITS = (
    "Memorization. Fact C is about parameters that do not depend on which pairs were permuted. Networks that learned "
    "mismatched pairs by heart are outside of it from the epoch named above on. The upper bound of the clean risk is "
    "not touched by this: its pairs were held out.",
    "Natural noise. Wrong captions of the web are not random ones: they are half right, or wrong for some kinds of "
    "images more than for others. Then Fact A fails, and with it all else; an eta that was given is taken at its word.",
    "Training. Fact C compares minimisers of the expected loss. It leaves out that fewer right pairs are left to learn "
    "from, that training stops early, recovery's pseudo-captions beyond their own rate, and guidance, whose loss is no "
    "label loss. The excess measured has all of these in it and may exceed the bound without refuting it.",
    "Tracks. Noise is taken to be uniform within a track, though a division chooses by the very loss that is bounded. "
    "Posteriors of the mixture are probabilities only as far as its two bells fit.",
    "Several captions an image. A unit is an image with all its captions, so they may depend on each other; within a "
    "training batch two captions of one image make each other's row ambiguous, which Facts A to C ignore.",
    "Candidates. A clean risk is that among B - 1 fixed candidates of this data set: neither among thousands nor of "
    "another distribution, and a loss, not a recall.",
    "Estimated eta. The interval of a bootstrap holds about as often as it says; the estimate errs upwards for weak "
    "networks, and the upper bound errs downwards with it. The bound that needs no eta is safe, and looser.",
    "Choices. Confidence is for one row at a time and for networks that were not chosen by val. Several rows hold "
    "together only with their failures added up; distilled sets and their students are not certified at all.",
)
