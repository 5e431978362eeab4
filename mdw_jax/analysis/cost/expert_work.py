"""Work of training experts: all generations of networks, and what their teachers do for them."""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from mdw_jax.analysis.cost.counts import Counts
from mdw_jax.analysis.cost.model_cost import ModelCost
from mdw_jax.analysis.cost.shared_work import decode_seconds, feature_bytes
from mdw_jax.analysis.cost.unit import Amount, Work, compiled_towers, embedding, of_networks, scoring, student_step
from mdw_jax.config.options import DIVIDING
from mdw_jax.config.sections import fields
from mdw_jax.io.row_cache import ON_DEVICES
from mdw_jax.method.caption_search import captions_compared, search_of
from mdw_jax.method.expert_step import Recipe
from mdw_jax.method.teacher_embeddings import IN_MEMORY, memory_bytes
from mdw_jax.method.teachers import epoch_phase
from mdw_jax.pipeline.preset_run import PresetRun, last_snapshot

_CLOSED_FORM_WIDTH = 256  # the largest rank that val chooses, in most cases
_PARTS = 3 * 2**27  # bytes of the embeddings of a few steps, or of a block, where all are in files
_OF_PAIR = 40  # bytes of a pair in a network's batches and division
_STATES = 5  # parameters, gradient, two moments, average
CLEAN_SHARE = 0.65  # of the pairs, called clean by a division
_STORED_BYTES = {"float32": 4, "bfloat16": 2}


class Generation(NamedTuple):
    """A generation of networks.

    Attributes:
        name: "teachers", "experts" or "trajectories".
        networks: how many.
        epochs: of each.
        teacher: width of the embeddings of a finished teacher; 0: they teach each other.
        form: whether that teacher is a closed form, and no ensemble of networks.
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
    found, teacher = [], _CLOSED_FORM_WIDTH if e.closed_form else 0
    if e.teacher_count:
        found.append(Generation("teachers", 2 * e.teacher_count, e.teacher_epochs, teacher, e.closed_form, 0))
        teacher = 2 * e.teacher_count * dim
    form = e.closed_form and not e.teacher_count
    found.append(Generation("experts", 2 * e.count, e.epochs, teacher, form, 0 if e.trajectory_epochs else keep))
    if e.trajectory_epochs:
        found.append(Generation("trajectories", 2 * e.count, e.trajectory_epochs, 2 * e.count * dim, False, keep))
    return found


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
    scratch = max(_teacher_bytes(config, g, counts, model)[1] for g in all_of_them)
    work = Work(
        "experts", f"{e.recipe}: {words} (networks x epochs), {steps:,} steps each",
        host=2e-5 * counts.captions * len(all_of_them),
        decoding=epochs * counts.captions * decode_seconds(counts, model) if streamed else 0.0,
        programs=4 * len(all_of_them),
        tower_programs=compiled_towers(model, 4),
        device_memory=max(_generation_memory(config, g, counts, model, devices) for g in all_of_them),
        host_memory=2 * history + networks * 4 * model.parameters * (last.keep + 2)
        + max(_host_rows(config, g, counts) for g in all_of_them)
        + sum(feature_bytes(config, counts.captions, counts.images, model))
        + max(_teacher_bytes(config, g, counts, model)[0] for g in all_of_them),
        disk=snapshots * model.parameters + history + 4 * counts.captions + scratch, scratch=scratch)
    return of_networks(work, model, total)


def _generation_memory(config: ConfigDict, generation: Generation, counts: Counts, model: ModelCost, devices: int) -> float:
    """Bytes on one device while a generation trains: the data, the networks that are on it, and their teachers'
    embeddings of all images and captions."""
    e = config.experts
    streamed = config.data.stream and not model.projection
    alone = streamed and devices == 1  # then network after network
    together = 1 if alone else generation.networks / math.gcd(generation.networks, devices)
    features = [size for size in feature_bytes(config, counts.captions, counts.images, model)
                if size <= ON_DEVICES]  # larger ones stay in files, and are read by the batch
    pixels = 0 if model.projection or streamed else counts.images * model.pixels
    batch = min(e.batch, counts.captions)
    network = 4 * _STATES * model.parameters + 32 * batch * model.dim
    network += 0 if model.projection else batch * model.activations
    return (pixels + sum(features) + together * network
            + _teacher_bytes(config, generation, counts, model)[0])


def _teacher_bytes(config: ConfigDict, generation: Generation, counts: Counts, model: ModelCost) -> tuple[float, float]:
    """Bytes of teachers' embeddings on a device, and in files (`method.teacher_embeddings`)."""
    e, rows, networks = config.experts, counts.images + counts.captions, generation.networks
    if e.division not in DIVIDING:  # nobody teaches: guidance and recovery are parts of a division
        return 0.0, 0.0
    if generation.form:
        width, held = generation.teacher, memory_bytes(generation.teacher, rows, 0, [[0]])
    elif generation.teacher:
        width, held = generation.teacher, memory_bytes(generation.teacher, rows, 1, [[0]])
    else:
        peers = min(e.peers, max(networks - 1, 1))
        width, held = networks * model.dim, memory_bytes(model.dim, rows, networks, [range(peers)] * networks)
    return (held, 0.0) if held <= IN_MEMORY else (_PARTS, 2 * width * rows)


def _host_rows(config: ConfigDict, generation: Generation, counts: Counts) -> float:
    """Bytes on the host of what each network has for each pair: its batches, its division, and its candidates."""
    e = config.experts
    candidates = 4 * e.recovery_top_k * counts.images if e.recovery_weight else 0
    return generation.networks * (_OF_PAIR * counts.captions + (1 if generation.teacher else 2) * candidates)


def generation_amount(config: ConfigDict, generation: Generation, counts: Counts, model: ModelCost) -> Amount:
    """Operations of a generation of networks: its steps, what its teachers do, and its scores on val."""
    e, recipe = config.experts, fields(Recipe, config.experts)
    batch = min(e.batch, counts.captions)
    steps = counts.captions // batch
    width = generation.teacher or model.dim * min(e.peers, max(generation.networks - 1, 1))
    total = Amount()
    taught = Amount(2 * batch**2 * width, 4 * batch * (width * 8 + 6 * batch))
    everything = embedding(model, counts.images, counts.captions)
    for epoch in range(generation.epochs):
        phase = epoch_phase(recipe, epoch, generation.teacher > 0)
        step = student_step(model, batch, expert=True) + (taught if phase.guided else Amount())
        total += (step * steps + scoring(model, counts.val_images, counts.val_captions)) * generation.networks
        first = epoch == 0
        if (phase.divided or phase.guided) and (first or not generation.teacher):
            own = 1 if generation.teacher else generation.networks
            total += everything * generation.networks  # of the teachers' generation, where it is finished
            if e.division in DIVIDING:
                total += Amount(2 * counts.captions * batch * width, 24 * counts.captions * batch) * own
        way = search_of(e.recovery_search, counts.images, counts.captions)
        if phase.recovering and (first or not generation.teacher or way == "sample"):
            risky = 1 - CLEAN_SHARE ** math.sqrt(counts.captions / counts.images)  # of the images
            compared = risky * counts.images * captions_compared(way, counts.captions)
            total += Amount(2 * compared * width, 16 * compared) * (1 if generation.teacher else generation.networks)
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
