"""The outer step of the benchmark, and its gradient against two references."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from mdw_jax.analysis.benchmark.case import Case
from mdw_jax.analysis.benchmark.compare import difference, outputs_match, rounded_differently
from mdw_jax.analysis.benchmark.rows import LOOP, MDW_JAX, TORCH, Measured, cost_rows, memory_of, ratio_row, value_row
from mdw_jax.analysis.benchmark.timing import Program, compile_program, compiled, flatten, medians
from mdw_jax.analysis.benchmark.torch_problem import torch_memory, torch_problem, torch_settings
from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.distill import init_state, make_outer_step
from mdw_jax.method.losses import distillation_loss
from mdw_jax.method.matching import GRADIENTS, matching_loss, unroll
from mdw_jax.method.objective import Blend, Draws, Method, objective, step_sizes
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.jit import jit_with_frozen


def outer_gradient(model: DualEncoder, method: Method) -> Callable:
    """The jitted function (learned, starts, targets, batches) -> (loss, gradient by all that is learned) of mdw_jax."""
    def matching(model, learned, starts, targets, batches):
        return objective(model, method, learned, starts, targets, Draws(batches, Blend(), jax.random.key(0)))[0]

    return jit_with_frozen(model, jax.value_and_grad(matching, argnums=1))


def outer_gradient_by_loop(model: DualEncoder, method: Method) -> Callable:
    """The same function in `projection` mode, with the backbone run in every inner step.

    Inner steps are rematerialized, as in mdw_jax; trajectories follow one another.
    """
    soft = distillation_loss(method.loss)

    def matching(model, learned, starts, targets, batches):
        def inner_loss(params, rows):
            logits = model.logits(params, model.inputs(learned["images"][rows]), learned["texts"][rows])
            return soft(logits, correspondence(learned["correspondence"], rows, method.alpha))

        def trajectory(snapshots):
            start, target, batches = snapshots
            steps = step_sizes(learned)
            final, _ = unroll(inner_loss, start, batches, steps, gradient=method.gradient,
                              optimizer=method.inner_optimizer)
            return matching_loss(final, start, target, method.loss_merge)

        return jax.lax.map(trajectory, (starts, targets, batches)).mean()

    return jit_with_frozen(model, jax.value_and_grad(matching, argnums=1))


def outer_step(case: Case, reference, repeats: int) -> Measured:
    """Measure both gradients of the matching loss against their references, and an outer step with its optimizer.

    Args:
        case: what is measured.
        reference: the module `torch_reference`, or None.
        repeats: timed calls.
    """
    remarks = []
    if reference and (missing := _missing_in(reference, case.method)):
        remarks.append(f"the PyTorch reference has no {missing}: no ratio for outer gradients.")
        reference = None
    programs = {(f"outer step, {case.method.gradient}", MDW_JAX): _step_program(case)}
    for gradient in GRADIENTS:
        measure, method = f"outer gradient, {gradient}", dataclasses.replace(case.method, gradient=gradient)
        function = outer_gradient(case.model, method)
        programs[measure, MDW_JAX] = compiled(function, *case.outer_arguments)
        outputs, rounded = (_outputs(*function(*arguments)) for arguments in (
            case.outer_arguments, rounded_differently(case.outer_arguments)))
        rounding, _ = difference(outputs, rounded)
        for name, program, reference_outputs in _references(case, method, reference):
            matches, remark = outputs_match(measure, name, outputs, reference_outputs, rounding)
            remarks.append(remark)
            if matches:
                programs[measure, name] = program
    seconds = medians({key: program.run for key, program in programs.items()}, repeats)
    return Measured(_rows(programs, seconds), remarks)


def _rows(programs: dict[tuple[str, str], Program], seconds: dict[tuple[str, str], float]) -> list[dict]:
    rows = []
    for (measure, name), program in programs.items():
        own = programs[measure, MDW_JAX]
        if name == MDW_JAX:
            rows += [value_row(measure, seconds[measure, name], "s"), *cost_rows(measure, own, seconds[measure, name])]
            continue
        rows.append(ratio_row(measure, name, seconds[measure, MDW_JAX], seconds[measure, name], "s"))
        if program.memory and own.memory:
            rows.append(ratio_row(memory_of(measure), name, own.memory / 2**20, program.memory / 2**20, "MiB"))
        if program.compile_seconds:
            rows.append(ratio_row(f"compiling {measure}", name, own.compile_seconds, program.compile_seconds, "s"))
    return rows


def _missing_in(reference, method: Method) -> str:
    """What of a method the reference does not have, "" if it has all."""
    if method.loss not in reference.DISTILLATION_LOSSES:
        return f"loss '{method.loss}'"
    if method.inner_optimizer not in reference.STUDENT_OPTIMIZERS:
        return f"student optimizer '{method.inner_optimizer}'"
    return ""


def _references(case: Case, method: Method, reference) -> Iterator[tuple[str, Program, dict]]:
    """(name, program, outputs) of the loop, in `projection` mode, and of PyTorch, if it is there."""
    if case.model.mode == "projection":
        program = compiled(outer_gradient_by_loop(case.model, method), *case.outer_arguments)
        yield LOOP, program, _outputs(*program.run())
    if reference:
        problem, settings = torch_problem(case, reference), torch_settings(case, reference, method.gradient)
        tensors = reference.Problem(*map(reference.to_torch, problem))
        run = reference.finished(functools.partial(reference.outer_gradient, tensors, settings))
        loss, gradients = run()
        memory = reference.gpu_memory(run) or torch_memory(reference, problem, settings)
        yield TORCH, Program(run, memory=memory), reference.to_host({"loss": loss, **gradients})


def _outputs(loss, gradients) -> dict:
    return {"loss": loss, **flatten(gradients)}


class _OuterSteps:
    """Calls the outer step on a state that goes on from call to call; each step takes its buffers."""

    def __init__(self, step: Callable, state, arguments: tuple):
        self.step, self.state, self.arguments = step, state, arguments

    def __call__(self) -> None:
        self.state, metrics = self.step(self.state, *self.arguments)
        jax.block_until_ready(metrics)


def step_and_arguments(case: Case) -> tuple:
    """The jitted outer step with the config's own gradient, and its arguments, the state first."""
    images, texts = (jnp.copy(case.learned[name]) for name in ("images", "texts"))
    state = init_state(jax.random.key(0), case.method, images, texts)
    arguments = (case.starts, case.targets, jnp.ones((*images.shape[:3], 1)), jax.random.key(0))
    return make_outer_step(case.model, case.method), state, *arguments


def _step_program(case: Case) -> Program:
    step, state, *arguments = step_and_arguments(case)
    return compile_program(_OuterSteps(step, state, tuple(arguments)), step, state, *arguments)
