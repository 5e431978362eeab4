"""What is certified: the experts of one preset at one noise rate, trained where they are missing, and measured."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.analysis.certificate import estimate
from mdw_jax.analysis.certificate.estimate import Memory, Units, Upper
from mdw_jax.analysis.certificate.measure import EpochLosses, Sample, draw_sample, measure_losses, memorization
from mdw_jax.analysis.certificate.tracks import (
    Track,
    divided_tracks,
    has_recovery,
    recovered_rate,
    undivided_tracks,
)
from mdw_jax.config.options import DIVIDING
from mdw_jax.config.presets import preset_spec
from mdw_jax.config.sections import fields
from mdw_jax.errors import UserError
from mdw_jax.io.trajectory import open_trajectory, read_snapshot
from mdw_jax.method import certificate
from mdw_jax.method.expert_step import Recipe
from mdw_jax.method.losses import expert_loss_entry
from mdw_jax.pipeline.experts import experts_stage
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun, open_preset, read_division
from mdw_jax.runtime.rng import named_generator

# Losses that every case is measured by, beside its own: (name, q).
ALTERNATIVES = (("infonce", None), ("gce", 0.7), ("mae", None), ("rince", 0.5), ("ccl_tan", None), ("acl", 1.0))


class Rate(NamedTuple):
    """A noise rate eta and its source.

    Attributes:
        source: "known", "given" or "estimated".
        eta: the rate.
        low, high: its interval.
        delta: probability that the rate is not in it.
    """

    source: str
    eta: float
    low: float
    high: float
    delta: float


# Of val under natural noise: what is estimated, or given, is the rate of the training pairs, and val has its own. It may
# be clean. (With the rate of noisy training pairs, the bound of clean val pairs would be far below their risk.)
UNKNOWN_RATE = Rate("unknown", 0.5, 0.0, 1.0, 0.0)


class Case(NamedTuple):
    """One set of experts and everything measured of it.

    Attributes:
        preset: a preset that these experts belong to.
        names: names of all presets that share them.
        recipe: how they were trained.
        trained_losses: (name, q) of the losses they were trained under, the main one first.
        batch: number B of candidates.
        rates: of `rates_of`.
        losses: (name, q) of the losses they are measured by.
        sample: the pairs measured.
        by_epoch: losses at every stored epoch.
        uppers: {(source of the rate, loss): upper bound of the clean risk}, for losses with a certificate.
        memory: memorization by epoch, nothing where it is unknown which pairs are mismatched.
        memorized_from: the first epoch from which on pairs are memorized, through the last stored one.
        tracks: at the end of training.
    """

    preset: PresetRun
    names: str
    recipe: Recipe
    trained_losses: tuple
    batch: int
    rates: list[Rate]
    losses: tuple
    sample: Sample
    by_epoch: list[EpochLosses]
    uppers: dict[tuple, Upper]
    memory: list[Memory]
    memorized_from: int | None
    tracks: list[Track]

    @property
    def epoch(self) -> int:
        """The last stored epoch."""
        return len(self.by_epoch) - 1

    @property
    def risks(self) -> dict[str, np.ndarray]:
        """{measure: (losses, units)} on val at the last epoch."""
        return self.by_epoch[-1].val

    @property
    def tau(self) -> float:
        return self.preset.config.model.tau

    @property
    def recipe_name(self) -> str:
        return self.preset.config.experts.recipe

    @property
    def true_rate(self) -> float | None:
        """The noise rate where it is known, else None."""
        return self.preset.noise.true_rate


def rates_to_certify(config: ConfigDict) -> list[float | None]:
    """The noise rates of `certify.rates`; without any, None stands for the config's own.

    Raises:
        UserError: they are no rates, or the config's noise is not drawn at a rate.
    """
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


def at_rates(config: ConfigDict, rates: Sequence[float | None]) -> list[ConfigDict]:
    """The config of a run at each noise rate; None: at its own."""
    configs = [copy.deepcopy(config) for _ in rates]
    for changed, rate in zip(configs, rates, strict=True):
        if rate is not None:
            changed.noise.rate = rate
    return configs


def experts_to_certify(config: ConfigDict, prepared: Prepared,
                       rates: Sequence[float | None]) -> list[tuple[str, PresetRun]]:
    """(names of the presets that share them, one of these presets) of all different experts of unfiltered pairs.

    Raises:
        UserError: no preset of the run has experts.
    """
    by_experts: dict[str, tuple[list[str], PresetRun]] = {}
    for changed in at_rates(config, rates):
        for name in config.run.presets:
            if preset_spec(name).needs_experts:
                preset = open_preset(changed, prepared, name)
                if preset.filter is not None:  # the mismatches that a filter leaves are not random: no bound holds
                    continue
                names, first = by_experts.get(preset.experts.key, ([], preset))
                by_experts[preset.experts.key] = (list(dict.fromkeys([*names, name])), first)
    if not by_experts:
        raise UserError(f"none of run.presets ({', '.join(config.run.presets)}) has experts of unfiltered pairs to "
                        "certify; add mdw or experts.")
    return [(", ".join(names), preset) for names, preset in by_experts.values()]


def rates_of(preset: PresetRun, record: dict) -> list[Rate]:
    """The noise rates of a preset, the surest first: known (drawn) or given (`noise.rate` of natural noise), estimated.

    Args:
        preset: the preset.
        record: of its experts.
    """
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
    """(name, q) of the expert losses that a recipe trains under, that of its risky pairs first."""
    clean, tolerant = ((name, None if expert_loss_entry(name).q is None else q) for name, q in (
        (recipe.clean_loss, recipe.clean_q), (recipe.tolerant_loss, recipe.tolerant_q)))
    used = {"clean": (clean,), "tolerant": (tolerant,)}.get(recipe.division, (tolerant, clean))
    return tuple(dict.fromkeys(used))


def measure_case(names: str, preset: PresetRun, prepared: Prepared, settings: ConfigDict) -> Case:
    """Train one set of experts, or read it, and measure it.

    Args:
        names: the presets that share it.
        preset: one of them.
        prepared: the data and the model.
        settings: `config.certify`.

    Raises:
        UserError: the confidence asked for is above that of the estimated noise rate.
    """
    record = experts_stage(preset, prepared)
    recipe, noise = fields(Recipe, preset.config.experts), preset.noise
    rates, trained_losses = rates_of(preset, record), losses_of(recipe)
    losses = tuple(dict.fromkeys((*trained_losses, *ALTERNATIVES)))
    batch = min(recipe.batch, len(prepared.test.images) + 1, len(prepared.test.texts) + 1)
    generator = lambda *name: named_generator(preset.config.run.seed, "certify", *name)
    sample = draw_sample(generator, noise, prepared, settings, batch)
    trajectories = [open_trajectory(preset.experts.path / f"net_{n:02d}", key=preset.experts.key)
                    for n in range(record["networks"])]
    snapshots = lambda epoch: (read_snapshot(trajectory, epoch) for trajectory in trajectories)
    by_epoch = [measure_losses(sample, prepared, snapshots(epoch), losses) for epoch in range(record["snapshots"])]
    memory = memorization(sample, by_epoch)
    drawn = noise.true_rate is not None  # then val is mismatched at the rate of the training pairs, on purpose
    uppers = {(rate.source, loss): _upper(by_epoch[-1].val, n, loss, rate if drawn else UNKNOWN_RATE,
                                          sample.val["shuffled_risk"][0], batch, prepared.model.tau, settings.confidence)
              for rate in rates for n, loss in enumerate(losses) if certificate.has_certificate(loss[0])}
    peers = [read_snapshot(trajectory, len(by_epoch) - 1) for trajectory in trajectories[:max(recipe.peers, 1)]]
    tracks = _tracks(preset, recipe, rates, prepared, peers, generator("recovered"), settings.pairs)
    return Case(preset, names, recipe, trained_losses, batch, rates, losses, sample, by_epoch, uppers, memory,
                estimate.first_memorized(memory) if memory else None, tracks)


def _upper(risks: dict, n: int, loss: tuple, rate: Rate, matching: Units, batch: int, tau: float,
           confidence: float) -> Upper:
    """The upper bound of the clean risk by loss number `n`, at one noise rate."""
    delta = 1 - confidence - rate.delta
    if delta <= 1e-9:
        raise UserError(f"the noise rate was estimated at a confidence of {1 - rate.delta:.2f}, and no bound that "
                        f"builds on it can have {confidence}; lower certify.confidence.")
    return estimate.upper_bound(risks["noisy_risk"][n], risks["shuffled_risk"][n], matching.count,
                                (rate.low, rate.high), certificate.loss_range(loss[0], batch, loss[1], tau), delta)


def _tracks(preset: PresetRun, recipe: Recipe, rates: Sequence[Rate], prepared: Prepared, networks,
            generator: np.random.Generator, limit: int) -> list[Track]:
    noise = preset.noise
    if recipe.division not in DIVIDING:
        return undivided_tracks(recipe, len(noise.image_of), [(rate.source, rate.high) for rate in rates])
    probability, recovered = read_division(preset), None
    if has_recovery(recipe) and noise.mismatched is not None:
        recovered = recovered_rate(generator, recipe, noise, probability, prepared, networks, limit)
    return divided_tracks(recipe, noise, probability, recovered)
