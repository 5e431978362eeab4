"""Rows of fairness.csv on retrieval: recalls by group of a preset's students or networks, and gaps between groups."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.analysis.fairness import metrics
from mdw_jax.analysis.fairness.attributes import ALL, MIN_GROUP, REST, Attribute
from mdw_jax.analysis.fairness.metrics import Gap
from mdw_jax.config.plugin_values import plugin_sources
from mdw_jax.config.sections import fields
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.io.files import digest
from mdw_jax.io.keyed import read_keyed_arrays, write_keyed_arrays
from mdw_jax.io.scores import METRICS
from mdw_jax.io.trajectory import is_finished, open_trajectory, read_snapshot
from mdw_jax.method.students import Protocol, evaluate
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs, similarities
from mdw_jax.pipeline.closed_form import test_embeddings
from mdw_jax.pipeline.distill import distill_stage
from mdw_jax.pipeline.evaluate import evaluate_stage, student_seed
from mdw_jax.pipeline.experts import experts_stage, kept_pairs
from mdw_jax.pipeline.prepared import Prepared, student_model
from mdw_jax.pipeline.preset_run import PresetRun
from mdw_jax.pipeline.sets import student_data
from mdw_jax.runtime.progress import progress
from mdw_jax.runtime.rng import named_generator

_log = logging.getLogger(__name__)

Hits = tuple[np.ndarray, np.ndarray]  # by caption (networks, K, 3) and by image (networks, N, 3): `metrics.hits`


# ---- hits ------------------------------------------------------------------------------------------------------------


def preset_hits(preset: PresetRun, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Hits on test, (K, 3) by caption and (N, 3) by image: means over the preset's students of all sets, or networks."""
    hits = _student_hits(preset, prepared) if preset.spec.has_sets else [_network_hits(preset, prepared)]
    captions, images = (np.concatenate([of_set[side] for of_set in hits]).mean(0) for side in (0, 1))
    return captions, images


def _student_hits(preset: PresetRun, prepared: Prepared) -> list[Hits]:
    """The hits of each set's students, trained again with the seeds of the evaluation.

    Where the scores were selected on val, these are the students that were scored. Scores selected on test belong to
    students that were chosen by the very queries counted here; their place take students selected on val.
    """
    scores = evaluate_stage(preset, prepared)
    student, hits = None, []
    for index, folder in enumerate(distill_stage(preset, prepared)):
        distilled, card = load_distilled(folder, preset.config.distill.loss)
        protocol = _protocol(preset.config.evaluate, next(row for row in scores if row["set"] == index))
        key = digest("hits", card["key"], preset.config.evaluate.to_dict(), preset.config.model.to_dict(),
                     dataclasses.asdict(protocol), *plugin_sources(preset.config, "evaluate"))
        of_set = _cached_hits(folder, key)
        if of_set is None:
            student = student or student_model(preset.config, prepared)  # one for all sets: a new one is compiled anew
            model, val, test = student
            with progress(f"students of {preset.name} {index}", 1, "sets") as advance:
                result = evaluate(model, student_data(model, distilled), val, None, protocol,
                                  seed=student_seed(preset, index))
                advance(1)
            of_set = _store_hits(folder, key, model_hits(model, result.params, test))
        hits.append(of_set)
    return hits


def _protocol(settings: ConfigDict, score: Mapping) -> Protocol:
    """How a set's students are trained: selected on val, at once at the scale and step that val chose, if it did."""
    protocol = dataclasses.replace(fields(Protocol, settings), select_on="val")
    if settings.tower:
        protocol = dataclasses.replace(protocol, lr_scales=settings.tower_lr_scales)
    if score["select_on"] == "val":
        protocol = dataclasses.replace(protocol, lr_scales=(score["lr_scale"],), steps=score["steps"])
    return protocol


def _network_hits(preset: PresetRun, prepared: Prepared) -> Hits:
    """The hits of a preset's networks at their best epoch on val: those that are scored.

    Experts of earlier versions did not store these; then the last snapshots take their place, with a warning.
    """
    if preset.spec.closed_form:
        return _closed_form_hits(preset, prepared)
    record, directory = experts_stage(preset, prepared), preset.experts.path
    kind = "best" if all(is_finished(directory / f"best_{n:02d}") for n in range(record["networks"])) else "net"
    if kind != "best":
        _log.warning("the networks of '%s' at their best epoch are not stored in '%s': its recalls by group are of the "
                     "networks after epoch %d, not of those in scores.csv. Delete that directory to train them again.",
                     preset.name, directory, record["snapshots"] - 1)
    key = digest("hits", preset.experts.key, kind)
    hits = _cached_hits(directory, key)
    if hits is None:
        trajectories = [open_trajectory(directory / f"{kind}_{n:02d}", key=preset.experts.key)
                        for n in range(record["networks"])]
        networks = [read_snapshot(trajectory, trajectory.length - 1) for trajectory in trajectories]
        hits = _store_hits(directory, key, model_hits(prepared.model, networks, prepared.test))
    return hits


def _closed_form_hits(preset: PresetRun, prepared: Prepared) -> Hits:
    """The hits of a closed form, as of one network."""
    v, t = test_embeddings(preset, prepared, kept_pairs(preset, prepared))
    captions, images = metrics.hits(v @ t.T, prepared.test.image_of)
    return captions[None], images[None]


def _hits_path(directory: Path, key: str) -> Path:
    return directory / f"hits-{key[:10]}.safetensors"


def _cached_hits(directory: Path, key: str) -> Hits | None:
    arrays = read_keyed_arrays(_hits_path(directory, key), key)
    return None if arrays is None else (arrays["captions"], arrays["images"])


def _store_hits(directory: Path, key: str, hits: Hits) -> Hits:
    write_keyed_arrays(_hits_path(directory, key), dict(zip(("captions", "images"), hits, strict=True)), key)
    return hits


def model_hits(model: DualEncoder, networks: Sequence[Any], test: Inputs) -> Hits:
    """`metrics.hits` of several networks.

    Args:
        model: the model.
        networks: parameters of each network.
        test: the split.

    Returns:
        (networks, K, 3) bool by caption and (networks, N, 3) bool by image.
    """
    hits = [metrics.hits(similarities(model, params, test), test.image_of) for params in networks]
    captions, images = (np.stack([of_network[side] for of_network in hits]) for side in (0, 1))
    return captions, images


# ---- rows ------------------------------------------------------------------------------------------------------------


def recall_rows(attributes: Sequence[Attribute], sums: Mapping[str, np.ndarray], reference: str | None, resamples: int,
                seed: int) -> list[dict]:
    """Recalls by group, their gaps, and the gaps' ratios to the reference's.

    Groups of less than ten test images get recalls but enter no gap, and neither do images without a value.

    Args:
        attributes: whose groups are compared.
        sums: {preset: (N, 8) of `metrics.per_image`}.
        reference: the preset that gaps are compared with, or None.
        resamples: of the bootstrap.
        seed: of the bootstrap and the shuffles.
    """
    images = len(next(iter(sums.values())))
    weights = metrics.image_weights(named_generator(seed, "fairness", "images"), images, resamples)
    rows = []
    for name, of_preset in sums.items():
        rows += _group_recall_rows(ALL, [ALL], np.ones((images, 1), bool), name, of_preset, weights)
    for attribute in attributes:
        large = [g for g in range(len(attribute.values)) if attribute.test[:, g].sum() >= MIN_GROUP]
        gaps = {}
        for name, of_preset in sums.items():
            rows += _group_recall_rows(attribute.name, (*attribute.values, REST), metrics.with_rest(attribute.test),
                                       name, of_preset, weights)
            if len(large) > 1:
                gaps[name] = metrics.gap(of_preset, attribute.test[:, large], weights,
                                         named_generator(seed, "fairness", "shuffle"))
        for name, gap in gaps.items():
            rows += _gap_rows(attribute, [attribute.values[g] for g in large], name, gap, gaps.get(reference))
    return rows


def _group_recall_rows(attribute: str, groups: Sequence[str], members, name: str, sums, weights) -> list[dict]:
    """One row per group with test images and metric."""
    present = np.flatnonzero(members.any(0))
    recalls = metrics.interval(metrics.group_recalls(sums, members[:, present]),
                               metrics.group_recalls(sums, members[:, present], weights))
    return [{"attribute": attribute, "group": groups[int(column)], "source": name, "measure": metric,
             "count": int(members[:, column].sum()), **recalls.at(g, m).columns()}
            for g, column in enumerate(present) for m, metric in enumerate(METRICS)]


def _gap_rows(attribute: Attribute, groups: Sequence[str], name: str, gap: Gap, reference: Gap | None) -> list[dict]:
    common = {"attribute": attribute.name, "group": f"{groups[gap.best]} - {groups[gap.worst]}", "source": name}
    rows = [{**common, "measure": "gap", "chance": gap.chance, **gap.difference.columns()}]
    if reference is not None and reference is not gap:
        rows.append({**common, "measure": "gap_ratio", **metrics.gap_ratio(gap, reference).columns()})
    return rows
