"""Evaluation: fresh students train on a distilled set alone and are scored (docs/method.md, section 6)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdw_jax.config.options import SELECT_ON
from mdw_jax.errors import UserError
from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.losses import distillation_loss
from mdw_jax.method.matching import minibatches
from mdw_jax.method.retrieval import scores
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs
from mdw_jax.models.jit import use_vmap
from mdw_jax.runtime import preemption
from mdw_jax.runtime.mesh import map_replicas, shard_rows
from mdw_jax.runtime.rng import named_key


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How students are trained and chosen: fields of `config.evaluate`, explained there."""

    select_on: str
    students: int
    steps: int
    every: int
    batch: int
    momentum: float
    weight_decay: float
    lr_scales: tuple
    lr: float


class StudentData(NamedTuple):
    """What a student learns from.

    Attributes:
        inputs: (M, ...) what `embed_image` takes.
        texts: (M, d) or (M, L, h).
        correspondence: parameters of P.
        step_sizes: {branch: float}, empty if none were learned.
        loss: name of the distillation loss.
        alpha: scale of a low-rank P.
    """

    inputs: Any
    texts: Any
    correspondence: Any
    step_sizes: Any
    loss: str
    alpha: float


class EvalResult(NamedTuple):
    """Scores of the students of one set.

    Attributes:
        scores: (students, 7) on test, in the order of `METRICS`; on val where test was not read.
        val: (students, 7) on val.
        lr_scale: the scale of the step sizes that was chosen.
        steps: the number of steps that was chosen.
        select_on: what it was chosen on, "val" or "test".
        params: parameters of each student.
    """

    scores: np.ndarray
    val: np.ndarray
    lr_scale: float
    steps: int
    select_on: str
    params: list


@functools.lru_cache(maxsize=8)  # distillation evaluates one candidate after another: compile once
def make_trainer(model: DualEncoder, protocol: Protocol, loss: str, alpha: float) -> tuple[Callable, Callable]:
    """Compiled training of students: SGD with momentum and weight decay, as LoRS and VLD evaluate.

    A student is (params, optimizer state, key).

    Returns:
        start: key -> a fresh student.
        advance: (list of students, inputs, texts, parameters of P, step sizes) -> the students after `protocol.every`
            more steps.
    """
    soft = distillation_loss(loss)

    def optimizer(lr):
        return optax.chain(optax.add_decayed_weights(protocol.weight_decay), optax.sgd(lr, protocol.momentum))

    def segment(student, inputs, texts, p, step_sizes):
        batch = min(protocol.batch, len(texts))

        def step(student, _):
            params, states, key = student
            key, by_rows = jax.random.split(key)
            rows = minibatches(by_rows, len(texts), batch, 1)[0]

            def inner_loss(params):
                logits = model.logits(params, shard_rows(inputs[rows]), shard_rows(texts[rows]))
                return soft(logits, correspondence(p, rows, alpha))

            grads = jax.grad(inner_loss)(params)
            new, new_states = {}, {}
            for branch in params:
                updates, new_states[branch] = optimizer(step_sizes[branch]).update(
                    grads[branch], states[branch], params[branch]
                )
                new[branch] = optax.apply_updates(params[branch], updates)
            return (new, new_states, key), None

        return jax.lax.scan(step, student, None, length=protocol.every)[0]

    jitted_segment = jax.jit(segment)

    def start(key):
        params = model.init(key)
        return params, {branch: optimizer(0.1).init(params[branch]) for branch in params}, key

    def advance(students, *shared):
        if use_vmap(model):
            return map_replicas(segment, students, *shared)
        return [jitted_segment(student, *shared) for student in students]

    return start, advance


def evaluate(model: DualEncoder, data: StudentData, val: Inputs, test: Inputs | None, protocol: Protocol, *, seed: int,
             students: int | None = None) -> EvalResult:
    """Train fresh students on a set and score them.

    `select_on` "val": over all `lr_scales` and all numbers of steps, the pair with the highest mean r_mean on val is
    chosen, then test is read once. "test": at the learned step sizes (scale 1), each student's best evaluation on test,
    as published baselines report; this is optimistic.

    Args:
        model: the students' dual encoder.
        data: what they learn from.
        val: the val split.
        test: the test split. None reads no test data and reports scores on val, to choose between distilled sets.
        protocol: how students are trained and chosen.
        seed: student n is initialized from (seed, n).
        students: how many; None is `protocol.students`.

    Raises:
        UserError: `select_on` or the loss is unknown.
    """
    if protocol.select_on not in SELECT_ON:
        raise UserError(f"evaluate.select_on must be one of {', '.join(SELECT_ON)}, not '{protocol.select_on}'.")
    count = students or protocol.students
    base = data.step_sizes or {"image": protocol.lr, "text": protocol.lr}
    selects_on_test = protocol.select_on == "test" and test is not None
    best = None
    for scale in (1.0,) if selects_on_test else protocol.lr_scales:
        steps = {branch: jnp.float32(scale * size) for branch, size in base.items()}
        for stop, params in _train(model, data, protocol, steps, seed, count):
            on_val = scores(model, params, val)
            on_test = scores(model, params, test) if selects_on_test else None
            result = EvalResult(on_test, on_val, scale, stop, protocol.select_on, params)
            if best is None:
                best = result
            elif selects_on_test:
                best = _best_on_test(best, result)
            elif on_val[:, -1].mean() > best.val[:, -1].mean():
                best = result
    if selects_on_test:
        return best
    return best._replace(scores=best.val if test is None else scores(model, best.params, test))


def _train(model: DualEncoder, data: StudentData, protocol: Protocol, step_sizes: dict, seed: int, count: int):
    """Train `count` fresh students; yield (steps done, parameters of each) every `protocol.every` steps."""
    start, advance = make_trainer(model, protocol, data.loss, data.alpha)
    students = [start(named_key(seed, "student", n)) for n in range(count)]
    for done in range(protocol.every, protocol.steps + 1, protocol.every):
        preemption.raise_if_interrupted()  # students are not saved: a resumed run trains those of this set anew
        students = advance(students, data.inputs, data.texts, data.correspondence, step_sizes)
        yield done, [student[0] for student in students]


def _best_on_test(old: EvalResult, new: EvalResult) -> EvalResult:
    """For each student, the evaluation with the higher r_mean on test."""
    better = new.scores[:, -1] > old.scores[:, -1]
    params = [n if is_better else o for is_better, n, o in zip(better, new.params, old.params, strict=True)]
    return new._replace(scores=np.where(better[:, None], new.scores, old.scores),
                        val=np.where(better[:, None], new.val, old.val), params=params)
