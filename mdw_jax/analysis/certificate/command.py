"""`mdw certify`: what the certificate promises for the experts of a run, and what is measured where the truth is known.

In the run folder:

    certificate.csv             every number, one a row: see `COLUMNS`
    pictures/certificate.png    bounds and measurements by noise rate; what was learned by heart by epoch

The networks certified are those that distillation reads: the last snapshot stored of every network, its mean loss over
networks. Their noisy loss is measured on val, which no snapshot was trained on or chosen by, with mismatches drawn
there at the rate of the training pairs (of natural noise val has its own, and is taken as it comes). To hold out
training pairs instead would certify other networks, those trained on the rest. Candidates are images and captions of
test, drawn apart from each other: which of them belong together is not asked.
"""

import copy
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from mdw_jax.analysis.certificate import estimate
from mdw_jax.analysis.certificate.estimate import Memory, Units, Upper
from mdw_jax.config import resolve
from mdw_jax.config.presets import WITHOUT_EXPERTS
from mdw_jax.errors import UserError
from mdw_jax.io.files import write_atomically
from mdw_jax.io.trajectory import open_trajectory, read_snapshot
from mdw_jax.method import certificate
from mdw_jax.method.experts import Inputs, Recipe, embeddings, together, top_captions
from mdw_jax.pipeline.experts import experts_stage
from mdw_jax.pipeline.prepared import Prepared, prepare
from mdw_jax.pipeline.preset_run import Preset, division_of, fields, open_preset
from mdw_jax.pipeline.run import run_folder, write_csv
from mdw_jax.reporting.html import markdown_table
from mdw_jax.runtime.rng import named_generator

COLUMNS = ("preset", "recipe", "eta", "source", "eta_low", "eta_high", "epoch", "track", "loss", "measure", "value",
           "low", "high", "bound", "bound_memory", "trivial", "count", "against")
"""eta: the rate in force, by `source`: known (a drawn noise), given (noise.rate of natural noise) or estimated, then
with its interval. measure, of a loss at an epoch unless said otherwise:
excess_bound_open, excess_bound_closed   Fact C; informative_open, informative_closed: the eta up to which it is
excess            clean risk beyond that of `against`; bound: Fact C, open form; bound_memory: with what is known by
                  heart (`certificate.memory_cost`)
clean_risk        on val as truly paired; noisy_risk: as mismatched; shuffled_risk: at random partners; trivial: the
                  loss of a network that guesses
upper_bound       of the clean risk at this eta; noisy_upper_bound: that needs no eta
informative_upper the eta up to which that bound would be below `trivial` for a network this good
residual          share of a track's weight on mismatched pairs; bound: Fact C at it (track "all": of all together)
train_mismatched, train_never, train_matched, val_mismatched, val_matched (natural noise: train_given, val_given)
                  mean losses by epoch; memory: train_never - train_mismatched; memory_share: of the way to right pairs
"""
ALTERNATIVES = (("infonce", None), ("gce", 0.7), ("mae", None), ("rince", 0.5), ("ccl_tan", None), ("acl", 1.0))

LIMITS = (
    "Memorisation. Fact C is about parameters that do not depend on which pairs were permuted. Networks that learned "
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


class Rate(NamedTuple):
    """eta as somebody says it; failing: the probability that it is not in [low, high]."""

    source: str
    eta: float
    low: float
    high: float
    failing: float


class Case(NamedTuple):
    """One set of experts. names: presets that share it. by: the losses it was trained under, the first is the main
    one. batch: candidates B. rates: see `rates_of`. risks: {what: (losses, units)} at the last epoch. memory: rows."""

    preset: Preset
    names: str
    recipe: Recipe
    by: tuple
    batch: int
    rates: list[Rate]
    losses: tuple
    epoch: int
    risks: dict[str, np.ndarray]
    uppers: dict[tuple, Upper]
    memory: list[dict]
    remembers: int | None  # the first epoch from which on pairs are known by heart
    tracks: list[dict]


def certify_command(config: ConfigDict) -> None:
    """Train what is missing of the experts, write certificate.csv and the picture, print the tables and the limits."""
    resolved = resolve(config)
    settings = resolved.certify
    rates = _rates(resolved)
    if not 0 < settings.confidence < 1 or settings.candidates < 1 or settings.pairs < 2:
        raise UserError(f"certify.confidence ({settings.confidence}) must lie between 0 and 1, certify.candidates "
                        f"({settings.candidates}) be at least 1 and certify.pairs ({settings.pairs}) at least 2.")
    folder = run_folder(config)
    prepared = prepare(resolved)
    cases = [_case(names, preset, prepared, settings) for names, preset in _experts(config, prepared, rates)]
    rows = [row for case in cases for row in case_rows(case)] + excess_rows(cases)
    write_csv(folder / "certificate.csv", list(COLUMNS), [_written(row) for row in rows])
    picture = folder / "pictures" / "certificate.png"
    draw_certificate(cases, rows, picture)
    print(report(cases, rows, settings.confidence))
    print(f"numbers: {folder / 'certificate.csv'}\npicture: {picture}")


def _rates(config: ConfigDict) -> list[float | None]:
    """The noise rates to certify; None stands for the config's own."""
    try:
        rates = [float(rate) for rate in config.certify.rates]
    except ValueError:
        raise UserError(f"certify.rates holds {', '.join(map(str, config.certify.rates))}; give numbers, such as "
                        "0,0.2,0.4.") from None
    if rates and (config.noise.file or config.noise.protocol in ("natural", "none")):
        raise UserError("certify.rates draws noise of several rates, which needs noise.protocol image or caption and "
                        "no noise.file; change them or leave certify.rates empty.")
    if not all(0 <= rate < 1 for rate in rates):
        raise UserError(f"certify.rates must lie in [0, 1), not {', '.join(map(str, rates))}.")
    return rates or [None]


def _experts(config: ConfigDict, prepared: Prepared, rates) -> list[tuple[str, Preset]]:
    """(names of the presets that share them, a preset) of all different experts, at all rates."""
    found = {}
    for rate in rates:
        changed = copy.deepcopy(config)
        if rate is not None:
            changed.noise.rate = rate
        for name in config.run.presets:
            if name not in WITHOUT_EXPERTS:
                preset = open_preset(changed, prepared, name)
                names, first = found.get(preset.experts_key, ([], preset))
                found[preset.experts_key] = (list(dict.fromkeys([*names, name])), first)
    if not found:
        raise UserError(f"none of run.presets ({', '.join(config.run.presets)}) has experts to certify; add mdw or "
                        "experts.")
    return [(", ".join(names), preset) for names, preset in found.values()]


# Measuring


def rates_of(preset: Preset, record: dict) -> list[Rate]:
    """What is known of a preset's noise rate, best first: known, given, estimated."""
    noise, estimated = preset.noise, record["rate"]["estimated"]
    rates = []
    if noise.true_rate is not None:
        rates.append(Rate("known", noise.true_rate, noise.true_rate, noise.true_rate, 0.0))
    elif noise.rate:
        rates.append(Rate("given", noise.rate, noise.rate, noise.rate, 0.0))
    if estimated:
        rates.append(Rate("estimated", estimated["eta"], estimated["low"], estimated["high"],
                          1 - estimated["confidence"]))
    return rates


def losses_of(recipe: Recipe) -> tuple:
    """(name, q) of the label losses that a recipe trains under, that of its risky pairs first."""
    clean, tolerant = ((name, None if name in ("infonce", "mae", "ccl_tan") else q) for name, q in (
        (recipe.clean_loss, recipe.clean_q), (recipe.tolerant_loss, recipe.tolerant_q)))
    used = {"clean": (clean,), "tolerant": (tolerant,)}.get(recipe.division, (tolerant, clean))
    return tuple(dict.fromkeys(used))


def _case(names: str, preset: Preset, prepared: Prepared, settings: ConfigDict) -> Case:
    """Train, or read, one set of experts and measure it."""
    record = experts_stage(preset, prepared)
    recipe, noise = fields(Recipe, preset.config.experts), preset.noise
    by, rates = losses_of(recipe), rates_of(preset, record)
    losses = tuple(dict.fromkeys((*by, *ALTERNATIVES)))
    model, seed, last = prepared.model, preset.config.run.seed, record["snapshots"] - 1
    batch = min(recipe.batch, len(prepared.test.images) + 1, len(prepared.test.texts) + 1)
    generator = lambda *name: named_generator(seed, "certify", *name)
    others = estimate.candidate_rows(generator("candidates"), len(prepared.test.images), len(prepared.test.texts),
                                    batch - 1, settings.candidates)
    image_of = np.asarray(prepared.val.image_of)
    val = {"clean_risk": [estimate.as_given(image_of)],
           "shuffled_risk": estimate.matchings(generator("matchings"), image_of, 4),
           "noisy_risk": [estimate.as_given(image_of) if noise.true_rate is None else
                          estimate.with_noise(generator("noise", noise.rate), image_of, noise.true_rate)]}
    trained = _training_pairs(generator("pairs", noise.sha256), noise, settings.pairs)
    paths = [open_trajectory(preset.experts / f"net_{n:02d}", key=preset.experts_key)
             for n in range(record["networks"])]

    def measure(epoch: int):
        """{what: (losses, units)} on val and {what: (P,)} of the main loss on training pairs, means over networks."""
        on_val, on_train = [], []
        for path in paths:
            params = read_snapshot(path, epoch)
            embed = lambda data, params=params: embeddings(model, params, data)
            sets, size = others[0].shape
            rows = Inputs(prepared.test.images[others[0].ravel()], prepared.test.texts[others[1].ravel()], None)
            candidates = [part.reshape(sets, size, -1) for part in embed(rows)]
            pairs = lambda v, t, some, candidates=candidates: estimate.losses_among(some, v, t, candidates, model.tau)
            v, t = embed(prepared.val)
            on_val.append({what: [estimate.by_unit(pairs(v[one.images], t[one.captions], losses), one)
                                  for one in units] for what, units in val.items()})
            found = {}
            for what, (images, captions) in trained.items():
                texts = jnp.asarray(prepared.captions.train[captions])
                v, t = embed(Inputs(prepared.train_images[images], texts, None))
                found[what] = pairs(v, t, by[:1])[0]
            on_train.append(found)
        mean = lambda all_of, what: np.mean([one[what] for one in all_of], 0)
        return ({what: np.concatenate(list(np.mean([one[what] for one in on_val], 0)), -1) for what in val},
                {what: mean(on_train, what) for what in trained})

    measured = [measure(epoch) for epoch in range(last + 1)]
    memory, gaps = _memory_rows(measured, trained, losses.index(by[0]), noise.true_rate is None)
    risks = measured[last][0]
    uppers = {(rate.source, loss): _upper(risks, n, loss, rate, val["shuffled_risk"][0], batch, model.tau,
                                          settings.confidence)
              for rate in rates for n, loss in enumerate(losses)}
    networks = [read_snapshot(path, last) for path in paths[:max(recipe.teachers, 1)]]
    tracks = _tracks(preset, recipe, rates, prepared, networks, generator("recovered"), settings.pairs, batch)
    return Case(preset, names, recipe, by, batch, rates, losses, last, risks, uppers, memory,
                estimate.first_memorised(gaps) if gaps else None, tracks)


def _upper(risks, n: int, loss, rate: Rate, matching: Units, batch: int, tau: float, confidence: float) -> Upper:
    failing = 1 - confidence - rate.failing
    if failing <= 1e-9:
        raise UserError(f"the noise rate was estimated at a confidence of {1 - rate.failing:.2f}, and no bound that "
                        f"builds on it can have {confidence}; lower certify.confidence.")
    return estimate.upper_bound(risks["noisy_risk"][n], risks["shuffled_risk"][n], matching.count, (rate.low, rate.high),
                               certificate.loss_range(loss[0], batch, loss[1], tau), failing)


def _training_pairs(generator, noise, most: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{what: (images, captions)} of up to `most` training pairs each, whose losses show what was learned by heart."""
    pick = lambda rows: np.sort(generator.permutation(rows)[:most])
    image_of, true = np.asarray(noise.image_of), np.asarray(noise.true_image_of)
    if noise.mismatched is None:
        rows = pick(np.arange(len(image_of)))
        return {"train_given": (image_of[rows], rows)}
    matched = pick(np.flatnonzero(~noise.mismatched))
    found = {"train_matched": (image_of[matched], matched)} if len(matched) else {}
    wrong = pick(np.flatnonzero(noise.mismatched))
    other = generator.permutation(wrong)
    # The same images and captions, but for pairs that chance makes right or as they were trained on.
    new = (image_of[other] != image_of[wrong]) & (true[other] != image_of[wrong])
    if new.sum() > 1:
        found |= {"train_mismatched": (image_of[wrong[new]], wrong[new]),
                  "train_never": (image_of[wrong[new]], other[new])}
    return found


def _memory_rows(measured, trained, main: int, natural: bool) -> tuple[list[dict], list[Memory]]:
    """Rows of mean losses by epoch, and what was learned by heart at each (nothing where the truth is not known)."""
    rows, gaps = [], []
    row = lambda epoch, measure, value, error, count: {
        "epoch": epoch, "measure": measure, "value": value, "low": value - 1.96 * error, "high": value + 1.96 * error,
        "count": count}
    for epoch, (on_val, on_train) in enumerate(measured):
        means = dict(on_train)
        means["val_given" if natural else "val_matched"] = on_val["clean_risk"][main]
        means["val_mismatched"] = on_val["shuffled_risk"][main]
        for measure, values in means.items():
            # Units of the matchings occur several times: their own number is that of one.
            images = len(np.unique(trained[measure][0])) if measure in trained else on_val["clean_risk"].shape[1]
            rows.append(row(epoch, measure, float(values.mean()), float(values.std() / math.sqrt(images)), images))
        if "train_mismatched" in on_train and "train_matched" in on_train:
            images, position = np.unique(trained["train_mismatched"][0], return_inverse=True)
            seen, never = (np.bincount(position, on_train[what]) / np.bincount(position)
                           for what in ("train_mismatched", "train_never"))
            found = estimate.memorised(seen, never, float(on_train["train_matched"].mean()))
            gaps.append(found)
            rows += [row(epoch, "memory", found.gap, found.error, len(images)),
                     {"epoch": epoch, "measure": "memory_share", "value": found.share, "count": len(images)}]
    return rows, gaps


def _tracks(preset: Preset, recipe: Recipe, rates, prepared, networks, generator, most: int, batch: int) -> list[dict]:
    """The tracks at the end of training: weight, rate of the mismatched that is left, known or by posterior."""
    noise = preset.noise
    mismatched = noise.mismatched
    if recipe.division not in ("gmm", "oracle"):
        ones = np.ones(len(noise.image_of))
        weights = {"clean": {"clean": 1.0}, "tolerant": {"tolerant": 1.0},
                   "both": {"clean": 1.0, "tolerant": recipe.tolerant_weight}}[recipe.division]
        return [{"track": name, "weight": weight * len(ones), "source": rate.source, "rate": rate.high}
                for rate in rates for name, weight in weights.items()]
    probability = division_of(preset)
    clean = probability >= 0.5
    late = recipe.scouts or recipe.epochs > recipe.recovery_start
    recovers = recipe.recovery_weight > 0 and bool(late)
    rest = "recovered" if recovers else "tolerant"
    weight = recipe.recovery_weight if recovers else recipe.tolerant_weight
    found: list[dict] = []
    for source, truth in (("known", mismatched), ("estimated", None)):
        if source == "known" and truth is None:
            continue
        left = estimate.residual_noise(probability, (~clean).astype(float), truth)
        if recovers:  # with the captions that it is given; of those nothing is known where nothing is of the others
            left = 1.0 if truth is None else _recovered_rate(noise, clean, recipe, prepared, networks, generator, most)
        found += [{"track": "clean", "weight": float(probability[clean].sum()), "source": source,
                   "rate": estimate.residual_noise(probability, np.where(clean, probability, 0), truth)},
                  {"track": rest, "weight": weight * float((~clean).sum()), "source": source, "rate": left}]
    return [track for track in found if track["weight"] > 0]


def _recovered_rate(noise, clean, recipe: Recipe, prepared: Prepared, networks, generator, most: int) -> float:
    """How many of the captions that risky images are recovered with are not theirs, by the last stored snapshots."""
    risky = np.unique(noise.image_of[~clean])
    if not len(risky):
        return math.nan
    images = np.sort(generator.permutation(risky)[:most])
    texts = jnp.asarray(prepared.captions.train)
    pairs = Inputs(prepared.train_images[images], texts, None)
    said = [embeddings(prepared.model, params, pairs) for params in networks]
    images_as, texts_as = (together([one[branch] for one in said]) for branch in (0, 1))
    nearest = top_captions(images_as, texts_as, recipe.recovery_top_k)
    return float((noise.true_image_of[nearest] != images[:, None]).mean())


# Rows


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
                    {**row, "measure": f"informative_{form}", "value": certificate.breaking_point(
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
                    certificate.debiased(upper.noisy, upper.shuffled, min(rate.eta, 0.999)))
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


# What is shown


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
        point = lambda form, entry=entry, batch=batch, tau=tau: "{:.3f}".format(certificate.breaking_point(
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
        point = certificate.breaking_point(main[0], own[0].batch, main[1], tau)
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
    memory.set(xlabel="epoch", ylabel="mismatched pairs known by heart, %", title="Memorisation")
    for axes in (risk, excess, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    write_atomically(path, buffer.getvalue())
