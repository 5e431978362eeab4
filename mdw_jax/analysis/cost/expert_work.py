"""Work of training experts: all generations of networks, and what their teachers do for them."""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from mdw_jax.analysis.cost.counts import Counts
from mdw_jax.analysis.cost.model_cost import ModelCost
from mdw_jax.analysis.cost.shared_work import decode_seconds, feature_bytes, in_memory, pair_bytes
from mdw_jax.analysis.cost.unit import Amount, Work, compiled_towers, embedding, of_networks, scoring, student_step
from mdw_jax.config.options import DIVIDING
from mdw_jax.config.sections import fields
from mdw_jax.data.stored_rows import MAPPED
from mdw_jax.method.caption_search import captions_compared, search_of
from mdw_jax.method.expert_step import Recipe
from mdw_jax.method.teacher_embeddings import IN_MEMORY, memory_bytes
from mdw_jax.method.teachers import epoch_phase
from mdw_jax.pipeline.preset_run import PresetRun, last_snapshot

# Ranks of closed forms that val chose: of 23 sets of pairs the mean (they reach from 16 to 300, half of them to 75), by
# which time is counted; and what one of them exceeds, by which memory and files are, for these have to be there.
_USUAL_RANK, _LARGE_RANK = 100, 256
_PARTS = 2**27  # bytes of the embeddings of a few steps, or of a block, where all are in files
_OF_PAIR = 40  # bytes of a pair in a network's batches and division
_STATES = 5  # parameters, gradient, two moments, average
CLEAN_SHARE = 0.65  # of the pairs, called clean by a division
_STORED_BYTES = {"float32": 4, "bfloat16": 2}


class TeacherBytes(NamedTuple):
    """Bytes of the embeddings of a generation's teachers (`method.teacher_embeddings`): on each device, on the host, and in
    files, of which the smaller ones are mapped."""

    device: float = 0.0
    host: float = 0.0
    disk: float = 0.0


class Generation(NamedTuple):
    """A generation of networks.

    Attributes:
        name: "teachers", "experts" or "trajectories".
        networks: how many.
        epochs: of each.
        teacher: width of the embeddings of a finished ensemble that teaches them; 0: a closed form does, or they teach each
            other.
        form: whether a closed form teaches them.
        keep: snapshots beside the first that are stored of each.
    """

    name: str
    networks: int
    epochs: int
    teacher: int
    form: bool
    keep: int


def generations(config: ConfigDict, dim: int) -> list[Generation]:
    """The generations that a config trains, in order (`method.experts.expert_epochs`).

    Args:
        config: a resolved config.
        dim: width of the shared space.
    """
    e, keep = config.experts, last_snapshot(config)
    found, teacher = [], 0
    if e.teacher_count:
        found.append(Generation("teachers", 2 * e.teacher_count, e.teacher_epochs, 0, e.closed_form, 0))
        teacher = 2 * e.teacher_count * dim
    form = e.closed_form and not e.teacher_count
    found.append(Generation("experts", 2 * e.count, e.epochs, teacher, form, 0 if e.trajectory_epochs else keep))
    if e.trajectory_epochs:
        found.append(Generation("trajectories", 2 * e.count, e.trajectory_epochs, 2 * e.count * dim, False, keep))
    return found


def _form_rank(rank: int, model: ModelCost) -> int:
    """A closed form's rank, where the features allow it."""
    return min(rank, model.features, model.text_dim)


def _finished(generation: Generation) -> bool:
    """Whether a finished teacher teaches a generation."""
    return generation.form or generation.teacher > 0


def expert_work(run: PresetRun, counts: Counts, model: ModelCost, devices: int) -> Work:
    """The experts of a preset, of all its generations.

    Args:
        run: the preset.
        counts: sizes of the data.
        model: costs of the model.
        devices: how many train at the same time.
    """
    config = run.config
    e, all_of_them = config.experts, generations(config, model.dim)
    total = Amount()
    for generation in all_of_them:
        total += generation_amount(config, generation, counts, model)
    last = all_of_them[-1]
    networks, streamed = last.networks, config.data.stream and not model.projection
    epochs = sum(g.networks * g.epochs for g in all_of_them)
    snapshots = networks * (last.keep + 1) * _STORED_BYTES[e.store_dtype] + 4 * networks
    history = networks * last.epochs * counts.captions / 8
    words = ", ".join(f"{g.networks} x {g.epochs} {g.name}" for g in all_of_them)
    steps = counts.captions // min(e.batch, counts.captions)
    scratch = max(_teacher_bytes(config, g, counts, model).disk for g in all_of_them)
    work = Work(
        "experts", f"{e.recipe}: {words} (networks x epochs), {steps:,} steps each",
        host=2e-5 * counts.captions * len(all_of_them),
        decoding=epochs * counts.captions * decode_seconds(counts, model) if streamed else 0.0,
        programs=4 * len(all_of_them),
        tower_programs=compiled_towers(model, 4),
        device_memory=max(_generation_memory(config, g, counts, model, devices) for g in all_of_them),
        host_memory=2 * history + networks * 4 * model.parameters * (last.keep + 2)
        + max(_host_rows(config, g, counts) + _teacher_bytes(config, g, counts, model).host for g in all_of_them)
        + in_memory(feature_bytes(config, counts.captions, counts.images, model)[0]) + pair_bytes(counts.captions),
        disk=snapshots * model.parameters + history + 4 * counts.captions + scratch, scratch=scratch)
    return of_networks(work, model, total)


def _generation_memory(config: ConfigDict, generation: Generation, counts: Counts, model: ModelCost, devices: int) -> float:
    """Bytes on one device while a generation trains: the data, the networks that are on it, and their teachers'
    embeddings of all images and captions."""
    e = config.experts
    streamed = config.data.stream and not model.projection
    alone = streamed and devices == 1  # then network after network
    together = 1 if alone else generation.networks / math.gcd(generation.networks, devices)
    features = map(in_memory, feature_bytes(config, counts.captions, counts.images, model))
    pixels = 0 if model.projection or streamed else counts.images * model.pixels
    batch = min(e.batch, counts.captions)
    network = 4 * _STATES * model.parameters + 32 * batch * model.dim
    network += 0 if model.projection else batch * model.activations
    return (pixels + sum(features) + together * network
            + _teacher_bytes(config, generation, counts, model).device)


def _teacher_bytes(config: ConfigDict, generation: Generation, counts: Counts, model: ModelCost) -> TeacherBytes:
    """What the teachers of a generation embed, all images and all captions."""
    e, sides, networks = config.experts, (counts.images, counts.captions), generation.networks
    if e.division not in DIVIDING:  # nobody teaches: guidance and recovery are parts of a division
        return TeacherBytes()
    if generation.form:
        files, width = 1, _form_rank(_LARGE_RANK, model)
        held = memory_bytes(width, sum(sides), 0, [[0]])
    elif generation.teacher:
        files, width = generation.teacher // model.dim, model.dim
        held = memory_bytes(generation.teacher, sum(sides), 1, [[0]])
    else:
        files, width, peers = networks, model.dim, min(e.peers, max(networks - 1, 1))
        held = memory_bytes(width, sum(sides), networks, [range(peers)] * networks)
    if held <= IN_MEMORY:
        return TeacherBytes(device=held)
    sizes = [files * 2 * width * rows for rows in sides]
    mapped = sum(size for size in sizes if size <= files * MAPPED)
    return TeacherBytes(_PARTS, _PARTS + mapped, sum(sizes))


def _host_rows(config: ConfigDict, generation: Generation, counts: Counts) -> float:
    """Bytes on the host of what each network has for each pair: its batches, its division, and its candidates."""
    e = config.experts
    candidates = 4 * e.recovery_top_k * counts.images if e.recovery_weight else 0
    return generation.networks * (_OF_PAIR * counts.captions + (1 if _finished(generation) else 2) * candidates)


def generation_amount(config: ConfigDict, generation: Generation, counts: Counts, model: ModelCost) -> Amount:
    """Operations of a generation of networks: its steps, what its teachers do, and its scores on val."""
    e, recipe = config.experts, fields(Recipe, config.experts)
    batch = min(e.batch, counts.captions)
    steps = counts.captions // batch
    width = generation.teacher or model.dim * min(e.peers, max(generation.networks - 1, 1))
    width, finished = _form_rank(_USUAL_RANK, model) if generation.form else width, _finished(generation)
    total = Amount()
    taught = Amount(2 * batch**2 * width, 4 * batch * (width * 8 + 6 * batch))
    everything = embedding(model, counts.images, counts.captions)
    for epoch in range(generation.epochs):
        phase = epoch_phase(recipe, epoch, finished)
        step = student_step(model, batch, expert=True) + (taught if phase.guided else Amount())
        total += (step * steps + scoring(model, counts.val_images, counts.val_captions)) * generation.networks
        first = epoch == 0
        if (phase.divided or phase.guided) and (first or not finished):
            own = 1 if finished else generation.networks
            total += everything * generation.networks  # of the teachers' generation, where it is finished
            if e.division in DIVIDING:
                total += Amount(2 * counts.captions * batch * width, 24 * counts.captions * batch) * own
        way = search_of(e.recovery_search, counts.images, counts.captions)
        if phase.recovering and (first or not finished or way == "sample"):
            risky = 1 - CLEAN_SHARE ** math.sqrt(counts.captions / counts.images)  # of the images
            compared = risky * counts.images * captions_compared(way, counts.captions)
            total += Amount(moved=16 * compared, search=2 * compared * width) * (1 if finished else generation.networks)
    return total


def rate_work(run: PresetRun, counts: Counts, model: ModelCost) -> Work:
    """Estimating the noise rate: two networks on either half of the pairs (`method.noise_rate`)."""
    e = run.config.experts
    batch = min(e.batch, counts.captions)
    epochs = e.teacher_epochs if e.teacher_count else e.epochs
    step = student_step(model, batch, expert=True) * (counts.captions // 2 // batch)
    total = (step + scoring(model, counts.val_images, counts.val_captions)) * (4 * epochs)
    work = Work("experts", f"noise rate: 4 x {epochs} (networks x epochs), half of the pairs each", programs=4,
                tower_programs=compiled_towers(model, 3))
    return of_networks(work, model, total)
