"""What is measured of one preset at one noise rate."""

import copy
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.analysis.certificate import estimate
from mdw_jax.analysis.certificate.estimate import Memory, Units, Upper
from mdw_jax.config.presets import WITHOUT_EXPERTS
from mdw_jax.config.sections import fields
from mdw_jax.errors import UserError
from mdw_jax.io.trajectory import open_trajectory, read_snapshot
from mdw_jax.method import certificate
from mdw_jax.method.expert_step import Recipe
from mdw_jax.method.experts import top_captions
from mdw_jax.models.embedding import Inputs, embeddings, ensemble_embeddings
from mdw_jax.pipeline.experts import experts_stage
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import Preset, division_of, open_preset
from mdw_jax.runtime.rng import named_generator


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
        mean = lambda vmapped_jit, what: np.mean([one[what] for one in vmapped_jit], 0)
        return ({what: np.concatenate(list(np.mean([one[what] for one in on_val], 0)), -1) for what in val},
                {what: mean(on_train, what) for what in trained})

    measured = [measure(epoch) for epoch in range(last + 1)]
    memory, gaps = _memory_rows(measured, trained, losses.index(by[0]), noise.true_rate is None)
    risks = measured[last][0]
    uppers = {(rate.source, loss): _upper(risks, n, loss, rate, val["shuffled_risk"][0], batch, model.tau,
                                          settings.confidence)
              for rate in rates for n, loss in enumerate(losses)}
    networks = [read_snapshot(path, last) for path in paths[:max(recipe.peers, 1)]]
    tracks = _tracks(preset, recipe, rates, prepared, networks, generator("recovered"), settings.pairs, batch)
    return Case(preset, names, recipe, by, batch, rates, losses, last, risks, uppers, memory,
                estimate.first_memorized(gaps) if gaps else None, tracks)


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
            found = estimate.memorized(seen, never, float(on_train["train_matched"].mean()))
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
    late = recipe.teacher_count or recipe.epochs > recipe.recovery_start
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
    images_as, texts_as = (ensemble_embeddings([one[branch] for one in said]) for branch in (0, 1))
    nearest = top_captions(images_as, texts_as, recipe.recovery_top_k)
    return float((noise.true_image_of[nearest] != images[:, None]).mean())

ALTERNATIVES = (("infonce", None), ("gce", 0.7), ("mae", None), ("rince", 0.5), ("ccl_tan", None), ("acl", 1.0))
