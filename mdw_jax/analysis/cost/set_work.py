"""Work of the sets of a preset: their start, the outer steps, candidates on val, and students."""

import dataclasses
import math

from ml_collections import ConfigDict

from mdw_jax.analysis.cost.counts import Counts
from mdw_jax.analysis.cost.expert_work import CLEAN_SHARE, generations
from mdw_jax.analysis.cost.model_cost import ModelCost
from mdw_jax.analysis.cost.shared_work import feature_bytes, in_memory, pair_bytes
from mdw_jax.analysis.cost.unit import (
    Amount,
    Work,
    compiled_towers,
    embedding,
    forward,
    of_networks,
    scoring,
    student_step,
)
from mdw_jax.config.sections import fields
from mdw_jax.method.student_schedule import schedule_of
from mdw_jax.method.students import Protocol
from mdw_jax.pipeline.candidates import CANDIDATE_STUDENTS
from mdw_jax.pipeline.preset_run import PresetRun
from mdw_jax.pipeline.prototypes import MOST_PAIRS
from mdw_jax.reporting.text import plural

# FLOP of an outer step, in units of a forward pass of a student on a mini-batch, for each inner step. Exact gradients go
# through the student's gradients (3 passes, once more to remember less, and 5 of second order), detached ones do not.
INNER_PASSES = {"exact": 10.5, "detached": 9.0}
# Steps after which val is flat, as medians of configs/studies/flickr8k_128.csv and flickr8k_224.csv: of real pairs, of
# distilled sets, of pairs with P from teachers (for each pair, up to 100 pairs).
_STEPS_REAL, _STEPS_DISTILLED, _STEPS_TAUGHT_PER_PAIR = 80, 600, 14
# Steps trained, in units of the best: `evaluate.patience` evaluations, each a fifth later. Where several scales of the step
# sizes are tried, most are given up as soon as they are behind the best.
_BEYOND_ONE, _BEYOND_SEVERAL = 1.7, 1.4
_SCALES = 3  # scales that the search tries, where there are several
_CLUSTERING_BATCHES, _CLUSTERING_BATCH = 60, 4096  # of mini-batch k-means
_EMBED_PAIR = 2.5e-5  # seconds of the host to bring a pair to the experts and back
_FORMAT_BYTES = {"safetensors": 4.0, "folder": 1.5, "webdataset": 1.5, "parquet": 1.5}  # per number of an image


def prototype_work(run: PresetRun, counts: Counts, model: ModelCost) -> Work:
    """Clusters of pairs in the experts' space, and images that are fitted to their means, for every set."""
    d, sets = run.config.distill, run.config.distill.sets
    networks = generations(run.config, model.dim)[-1].networks
    pairs = min(CLEAN_SHARE * counts.captions, MOST_PAIRS)
    embedded = embedding(model, counts.images, counts.captions) * networks
    clustering = 2 * (pairs + _CLUSTERING_BATCHES * _CLUSTERING_BATCH) * d.pairs * 2 * networks * model.dim
    fitting = 2 * d.pairs * d.prototype_steps * model.tower
    return Work("prototypes", f"{plural(sets * d.pairs, 'image')}, {d.prototype_steps} steps each", sets * embedded.flops,
                tower_gradient=sets * fitting, moved=sets * embedded.moved, host=sets * _EMBED_PAIR * counts.captions,
                host_flops=sets * clustering, programs=2,
                tower_programs=3,
                device_memory=4 * model.backbone + min(25, d.pairs) * model.activations,
                host_memory=4 * pairs * (2 * networks * model.dim + model.features + counts.text_dim)
                + in_memory(feature_bytes(run.config, counts.captions, counts.images, model)[0])
                + pair_bytes(counts.captions))


def outer_work(run: PresetRun, model: ModelCost, devices: int) -> Work:
    """The outer steps of every set, CEO's weights included."""
    d = run.config.distill
    inner, tower = outer_flops(run.config, model)
    if d.ceo:
        tower += 3 * d.pairs * model.tower / d.ceo_every
    steps = d.sets * d.steps
    trajectories = math.ceil(d.trajectories / math.gcd(d.trajectories, devices))
    unrolled = (d.inner_steps + 6) * 4 * model.parameters
    image_bytes = 4 * d.pairs * model.pixels
    batches = held_images(run.config, model) * model.activations
    return Work(
        "distillation", f"{steps} outer steps of {d.inner_steps} inner ones, {d.trajectories} at a time ({d.gradient})",
        steps * inner, tower_gradient=steps * tower, moved=steps * (20 * image_bytes + 12 * d.trajectories * unrolled),
        programs=10, tower_programs=4 if model.projection else 12,
        device_memory=5 * image_bytes + trajectories * (unrolled + batches) + 4 * model.backbone)


def outer_flops(config: ConfigDict, model: ModelCost) -> tuple[float, float]:
    """FLOP of one outer step without CEO's weights: of heads, and of the image tower."""
    d, batch = config.distill, min(config.distill.batch, config.distill.pairs)
    # Features, and their gradient by the pixels; of chunks, features once more.
    passes = 3 if 0 < d.chunk < d.pairs else 2
    tower = passes * d.pairs * model.tower if model.projection else 0
    if d.objective == "covariance":  # embeds the set for a gradient, and a batch of real pairs; trains the network a step
        real = config.experts.batch
        inner = 3 * d.pairs * model.pair + real * model.pair + student_step(model, real).flops
    else:
        inner = d.trajectories * d.inner_steps * INNER_PASSES[d.gradient] * forward(model, batch)
    return (inner, tower) if model.projection else (0.0, inner)


def held_images(config: ConfigDict, model: ModelCost) -> int:
    """Of how many images an outer step holds what the tower's gradient needs: a chunk, or three mini-batches."""
    d = config.distill
    if not model.projection:
        return 3 * min(d.batch, d.pairs)
    return min(d.pairs, d.chunk or d.pairs)


def candidate_work(run: PresetRun, counts: Counts, model: ModelCost) -> Work:
    """Scoring candidates on val: at the start, and at every checkpoint."""
    d = run.config.distill
    taught = d.correspondence_init == "experts"
    checkpoints = math.ceil(d.steps / d.checkpoint_every)
    at_start = len(d.correspondence_tau) if taught else int(d.steps == 0 or d.on_divergence == "keep")
    later = checkpoints * (2 if taught else 1)
    total = Amount()
    for _ in range(at_start):
        total += _students(run.config, steps_taught(d.pairs), CANDIDATE_STUDENTS, counts, model, None)
    for number in range(later):
        searched = number == 0 and not at_start
        total += _students(run.config, _STEPS_DISTILLED, CANDIDATE_STUDENTS, counts, model, None if searched else 1)
    candidates = plural(d.sets * (at_start + later), "candidate")
    work = Work("distillation", f"{candidates} on val, {CANDIDATE_STUDENTS} students each", programs=1,
                tower_programs=compiled_towers(model, 3))
    return of_networks(work, model, total * d.sets)


def steps_taught(pairs: int) -> int:
    """Steps until val is flat, of students of so many pairs with P from teachers."""
    return _STEPS_TAUGHT_PER_PAIR * min(pairs, 100)


def student_work(run: PresetRun, counts: Counts, model: ModelCost) -> Work:
    """The students of every set of a preset, with hard targets too where they are asked for; the sets' bytes on disk."""
    c, real = run.config, run.spec.kind == "coreset"
    best = _STEPS_REAL if real else steps_taught(c.distill.pairs) if not c.distill.steps else _STEPS_DISTILLED
    total = _students(c, best, c.evaluate.students, counts, model, None)
    if c.evaluate.hard_targets and not real:
        total += _students(c, _STEPS_REAL, c.evaluate.students, counts, model, None)
    total += scoring(model, counts.test_images, counts.test_captions) * c.evaluate.students
    sets = c.distill.sets
    work = Work("students", plural(sets * c.evaluate.students, "student"), programs=3,
                tower_programs=compiled_towers(model, 3),
                device_memory=c.evaluate.students * 16 * model.parameters + 12 * counts.val_images * counts.val_captions + (
                    0 if model.projection else c.evaluate.batch * model.activations),
                disk=sets * set_bytes(c, model))
    return of_networks(work, model, total * sets)


def set_bytes(config: ConfigDict, model: ModelCost) -> float:
    """Bytes of a set on disk, and of its exports in the formats of the config."""
    d = config.distill
    side = (d.image_size / config.data.size) ** 2 if d.image_size else 1.0
    images, rest = d.pairs * model.pixels * side, 4 * d.pairs * (model.text_dim + d.pairs)
    exports = sum(_FORMAT_BYTES[name] * images + rest for name in config.export.formats)
    return 4 * images + rest + exports


def coreset_work(run: PresetRun, counts: Counts, model: ModelCost) -> Work:
    """Choosing real pairs, by comparing as many with all."""
    compared = 4 * counts.images * run.config.distill.pairs * (model.features + counts.text_dim)
    sets = run.config.distill.sets
    return Work("distillation", f"{plural(sets, 'set')} chosen by {run.spec.coreset}", host_flops=sets * compared)


def _students(config: ConfigDict, best: int, students: int, counts: Counts, model: ModelCost, scales: int | None) -> Amount:
    """Students of one set: their steps and their scores on val, at all scales of the step sizes that are tried."""
    e, pairs = config.evaluate, config.distill.pairs
    protocol = dataclasses.replace(fields(Protocol, e), students=students)
    schedule = schedule_of(protocol, pairs, protocol.select_on == "test")
    if scales is None:
        several = schedule.searched and len(e.lr_scales) > 1
        scales = _SCALES if several else 1
    flat = schedule.searched and e.patience
    beyond = _BEYOND_ONE if scales == 1 else _BEYOND_SEVERAL
    trained = min(schedule.stops[-1], best * beyond) if flat else schedule.stops[-1]
    scored = sum(stop <= trained for stop in schedule.stops) or 1
    steps = student_step(model, min(e.batch, pairs)) * trained
    return (steps + scoring(model, counts.val_images, counts.val_captions) * scored) * (students * scales)
