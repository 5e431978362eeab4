"""The filter of a preset: which training pairs it sees at all (`config.filter`).

Row numbers are those of the data set everywhere: `Noise.image_of`, division.npy and correct.npy have an entry for every
training pair, also for those that were dropped, whose clean probability is 0. Only the training of the experts sees an
array of the kept pairs alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mdw_jax.data.stored_rows import select_rows
from mdw_jax.errors import UserError
from mdw_jax.io.checksums import write_listed_json
from mdw_jax.io.locks import locked
from mdw_jax.io.records import complete, stored_array, write_array
from mdw_jax.method import closed_form, filtering
from mdw_jax.models.embedding import Inputs
from mdw_jax.pipeline.closed_form import load_closed_form
from mdw_jax.pipeline.expert_networks import network_embeddings
from mdw_jax.pipeline.prepared import Prepared, backbone_features
from mdw_jax.pipeline.preset_run import PresetRun
from mdw_jax.runtime.rng import named_generator

TrainExperts = Callable[[PresetRun, Prepared], dict]  # `experts_stage`, handed in because it needs this module itself


class Scored(NamedTuple):
    """What a filter goes by.

    Attributes:
        scores: (K,) larger where image and caption fit better.
        estimated_rate: share of mismatched pairs that the scorer found; None where it did not look.
    """

    scores: np.ndarray
    estimated_rate: float | None


def kept_rows(run: PresetRun, prepared: Prepared, train_experts: TrainExperts) -> np.ndarray:
    """The training pairs that a preset sees; the filter is made where it is missing, its experts included.

    Args:
        run: the preset.
        prepared: data and model.
        train_experts: the stage that trains the experts of a preset.

    Returns:
        (n,) rows into the training captions, in order; all K of them where the preset has no filter.

    Raises:
        UserError: so many pairs are dropped that too few are left for the preset.
    """
    pairs = len(run.noise.image_of)
    if run.filter is None:
        return np.arange(pairs)
    directory, key = run.filter.folder
    with locked(directory.with_suffix(".lock")):  # processes of one sweep may want the same filter
        if complete(directory / "filter.json", key, "kept") is None:
            _make(run, prepared, train_experts)
    rows = stored_array(directory / "kept.npy", (None,))
    _require_enough(run, rows)
    return rows


def filter_record(run: PresetRun) -> dict | None:
    """`filter.json` of a finished filter; None where the preset has none."""
    return None if run.filter is None else complete(run.filter.folder.path / "filter.json", run.filter.folder.key)


def training_inputs(run: PresetRun, prepared: Prepared, rows: np.ndarray) -> Inputs:
    """The training split with these pairs alone: all images (N, ...), the captions (n, ...), (n,) image of each."""
    data = prepared.train(run.noise)
    return data if len(rows) == len(data.image_of) else Inputs(data.images, select_rows(data.texts, rows),
                                                               data.image_of[rows])


def _make(run: PresetRun, prepared: Prepared, train_experts: TrainExperts) -> None:
    """Score all pairs and write kept.npy, then the record."""
    settings, noise = run.config.filter, run.noise
    drop = settings.drop or (noise.rate if noise.true_rate is None else noise.true_rate)
    rows = np.arange(len(noise.image_of))
    if drop or noise.true_rate is None:
        scored = score_pairs(run, prepared, train_experts)
        drop = drop or scored.estimated_rate or 0.0
        rows = filtering.best_pairs(scored.scores, drop)
    record = {"key": run.filter.folder.key, "score": settings.score, "drop": drop, "pairs": len(noise.image_of),
              "kept": len(rows)}
    if noise.mismatched is not None:
        record |= filtering.filter_quality(rows, noise.mismatched)
    write_array(run.filter.folder.path / "kept.npy", rows)
    write_listed_json(run.filter.folder.path / "filter.json", record)


def score_pairs(run: PresetRun, prepared: Prepared, train_experts: TrainExperts) -> Scored:
    """Score every training pair as `filter.score` says."""
    image_of = np.asarray(run.noise.image_of)
    if run.filter.scorer is None:
        return _by_closed_form(run, prepared)
    record = train_experts(run.filter.scorer, prepared)
    estimated = record["rate"]["estimated"]
    networks = network_embeddings(run.filter.scorer.experts, prepared.model, prepared.train(run.noise))
    if run.config.filter.score == "neg_clip_loss":
        generator = named_generator(run.config.run.seed, "filter")
        scores = (filtering.neg_clip_loss(generator, *both, image_of, prepared.model.tau) for both in networks)
    else:
        scores = (filtering.cosines(*both, image_of) for both in networks)
    return Scored(filtering.mean_score(scores), estimated and estimated["eta"])


def _by_closed_form(run: PresetRun, prepared: Prepared) -> Scored:
    """Excess cosines of the closed form of all pairs, and the share that its own division calls mismatched."""
    image_of = np.asarray(run.noise.image_of)
    stored = load_closed_form(run._replace(filter=None), prepared, np.arange(len(image_of)))
    features, texts = backbone_features(prepared)[1], prepared.texts.train
    return Scored(closed_form.excess_cosine(stored.form, features, texts, image_of),
                  float((stored.clean_probability < 0.5).mean()))


def _require_enough(run: PresetRun, rows: np.ndarray) -> None:
    """Raises UserError where a filter leaves too few pairs for the preset."""
    c, images = run.config, len(np.unique(run.noise.image_of[rows]))
    if run.spec.has_sets and c.distill.pairs > images:
        raise UserError(f"the filter of '{run.name}' leaves pairs of {images} images, but distill.pairs is "
                        f"{c.distill.pairs}; lower it, or drop fewer with filter.drop.")
    least = max(c.experts.batch, c.experts.recovery_top_k if c.experts.recovery_weight else 1)
    if run.spec.needs_experts and least > len(rows):
        raise UserError(f"the filter of '{run.name}' leaves {len(rows)} pairs, but its experts need {least} "
                        "(experts.batch, experts.recovery_top_k); lower these, or drop fewer with filter.drop.")
