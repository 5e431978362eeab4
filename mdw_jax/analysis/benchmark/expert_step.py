"""The expert steps of the benchmark: one network on two batches of random pairs, against PyTorch."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.analysis.benchmark.case import Case
from mdw_jax.analysis.benchmark.compare import difference, outputs_match, rounded_differently
from mdw_jax.analysis.benchmark.rows import MDW_JAX, TORCH, Measured, cost_rows, ratio_row, value_row
from mdw_jax.analysis.benchmark.timing import Program, compiled, flatten, medians
from mdw_jax.analysis.benchmark.torch_problem import torch_settings
from mdw_jax.config.options import DIVIDING
from mdw_jax.config.sections import fields
from mdw_jax.data.registry import image_shape
from mdw_jax.method.expert_step import EpochBatches, EpochInputs, Recipe, make_epoch_batches, make_expert_steps
from mdw_jax.runtime.rng import named_generator, named_key


class ExpertProblem(NamedTuple):
    """Random pairs, and a network that trains on them.

    Attributes:
        recipe: how it trains, without augmentation.
        params: the network.
        images: (K, ...) uint8 pixels, or features.
        texts: (K, d) features.
        batches: of one epoch.
        teacher: embeddings by teachers of all images and all captions, (K, D) each, or None without guidance.
    """

    recipe: Recipe
    params: Any
    images: np.ndarray
    texts: np.ndarray
    batches: EpochBatches
    teacher: tuple | None


def expert_problem(case: Case) -> ExpertProblem:
    """The problem of a case: two batches of pairs."""
    config, recipe = case.config, dataclasses.replace(fields(Recipe, case.config.experts), augment="none")
    generator = named_generator(config.run.seed, "bench", "experts")
    pairs, text_dim = 2 * recipe.batch, case.learned["texts"].shape[1]
    if config.model.mode == "projection":
        images = generator.uniform(size=(pairs, case.tower.width)).astype(np.float32)
    else:
        images = generator.integers(256, size=(pairs, *image_shape(config.data)), dtype=np.uint8)
    texts = generator.normal(size=(pairs, text_dim)).astype(np.float32)
    clean = generator.integers(2, size=pairs)
    params = case.model.init(named_key(config.run.seed, "bench", 0))
    teacher = None
    if recipe.guidance_weight > 0 and recipe.division in DIVIDING:
        width = case.model.embed_text(params["text"], texts[:1]).shape[1] * recipe.peers
        teacher = tuple(generator.normal(size=(2, pairs, width)).astype(np.float32) / np.sqrt(width))
    batches = make_epoch_batches(generator, np.arange(pairs), recipe.batch, clean, 1 - clean, np.arange(pairs))
    return ExpertProblem(recipe, params, images, texts, batches, teacher)


def expert_step(case: Case, reference, repeats: int) -> Measured:
    """Measure the expert steps of a case.

    Args:
        case: what is measured.
        reference: the module `torch_reference`, or None.
        repeats: timed calls.
    """
    problem = expert_problem(case)
    steps = make_expert_steps(case.model, problem.recipe, 0.0)
    keys = jax.random.split(named_key(case.config.run.seed, "bench"), len(problem.batches.rows))
    epoch, shared = jax.jit(steps.epoch), (jnp.asarray(problem.images), jnp.asarray(problem.texts), None)
    inputs = EpochInputs(steps.init(problem.params), problem.batches, keys, problem.teacher)
    program = compiled(epoch, inputs, *shared)
    programs, remarks = {MDW_JAX: program}, []
    if reference:
        missing = _missing_in(reference, problem.recipe)
        if missing:
            remarks.append(f"the PyTorch reference has no {missing}: no ratio for expert steps.")
        else:
            torch_program = _torch_program(case, reference, problem)
            params, average, losses = torch_program.run()
            on_host = reference.to_host(params), reference.to_host(average), losses.cpu()
            run = lambda begin: _run(epoch, inputs, shared, begin)
            matches, remark = outputs_match(
                "expert steps", TORCH, run(problem.params), _changes(problem.params, *on_host),
                difference(run(problem.params), run(rounded_differently(problem.params)))[0])
            remarks.append(remark)
            if matches:
                programs[TORCH] = torch_program
    seconds = medians({name: program.run for name, program in programs.items()}, repeats)
    measure, pairs = "expert steps of one network", len(problem.images)
    rows = [value_row(measure, pairs / seconds[MDW_JAX], "pairs/s"), *cost_rows(measure, program, seconds[MDW_JAX])]
    if TORCH in seconds:
        rows.append(ratio_row(measure, TORCH, pairs / seconds[MDW_JAX], pairs / seconds[TORCH], "pairs/s"))
    return Measured(rows, remarks)


def _missing_in(reference, recipe: Recipe) -> str:
    """What of a recipe the reference does not have, "" if it has all."""
    if recipe.debias:
        return "debiased loss"
    losses = [loss for loss in (recipe.clean_loss, recipe.tolerant_loss) if loss not in reference.EXPERT_LOSSES]
    return f"loss '{losses[0]}'" if losses else ""


def _torch_program(case: Case, reference, problem: ExpertProblem) -> Program:
    """The same steps in PyTorch: params, averaged params, losses."""
    batches = problem.batches
    data = {"images": problem.images, "texts": problem.texts, "image_rows": batches.images,
            "text_rows": batches.captions, "clean": batches.clean, "tolerant": batches.tolerant}
    if problem.teacher:
        data |= {"teacher_images": problem.teacher[0], "teacher_texts": problem.teacher[1]}
    return Program(reference.finished(functools.partial(
        reference.expert_steps, reference.to_torch(flatten(problem.params)), reference.to_torch(data),
        dataclasses.asdict(problem.recipe), torch_settings(case, reference, "exact"))))


def _run(epoch, inputs: EpochInputs, shared: tuple, begin) -> dict:
    """Outputs of the steps from the parameters `begin`."""
    state = inputs.state._replace(params=begin, average=begin)
    end, losses, _ = epoch(inputs._replace(state=state), *shared)
    return _changes(begin, end.params, end.average, losses)


def _changes(begin, params, average, losses) -> dict:
    """Losses, and by how much parameters changed: parameters themselves are mostly where they began."""
    begin, outputs = flatten(begin), {"losses": losses}
    for name, end in (("params", flatten(params)), ("average", flatten(average))):
        outputs |= {f"{name}/{path}": np.asarray(end[path]) - np.asarray(begin[path]) for path in begin}
    return outputs
