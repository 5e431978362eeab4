"""Evaluation: fresh students train on a distilled set alone and are scored (docs/method.md, section 6)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
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
from mdw_jax.method.student_schedule import Schedule, schedule_of
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
    patience: int = 0
    grow: int = 0
    schedule: str = "constant"


_GAIN = 1.01  # val is flat while its r_mean has not grown by a hundredth (this work)


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

    def with_hard_targets(self) -> "StudentData":
        """The images and texts alone: each image matches its own text, under InfoNCE, and no step size is learned."""
        return self._replace(correspondence={}, step_sizes={}, loss="nce")

    @property
    def has_hard_targets(self) -> bool:
        """Whether this is all that it consists of, as of coresets."""
        return not self.correspondence and not self.step_sizes and self.loss == "nce"


class EvalResult(NamedTuple):
    """Scores of the students of one set.

    Attributes:
        scores: (students, 7) on test, in the order of `METRICS`; on val where test was not read.
        val: (students, 7) on val.
        lr_scale: the scale of the step sizes that was chosen.
        steps: the number of steps that was chosen.
        select_on: what it was chosen on, "val" or "test".
        params: parameters of each student.
        at_edge: what still lies at the end of what was allowed, so that a wider search might do better: of "steps" and
            "lr_scale". Empty where test chose: there the search is part of the published protocol.
    """

    scores: np.ndarray
    val: np.ndarray
    lr_scale: float
    steps: int
    select_on: str
    params: list
    at_edge: tuple[str, ...] = ()


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

    `select_on` "val": students train until val is flat, at ever better scales of the step sizes, and of these the scale
    and the number of steps with the highest mean r_mean on val are chosen; then test is read once. "test": at the
    learned step sizes (scale 1) and on a published schedule, each student's best evaluation on test, as published
    baselines report; this is optimistic.

    Args:
        model: the students' dual encoder.
        data: what they learn from.
        val: the val split.
        test: the test split. None reads no test data and reports scores on val, to choose between distilled sets.
        protocol: how students are trained and chosen.
        seed: student n is initialized from (seed, n).
        students: how many; None is `protocol.students`.

    Raises:
        UserError: `select_on`, the schedule or the loss is unknown.
    """
    if protocol.select_on not in SELECT_ON:
        raise UserError(f"evaluate.select_on must be one of {', '.join(SELECT_ON)}, not '{protocol.select_on}'.")
    on_test = protocol.select_on == "test" and test is not None
    schedule = schedule_of(protocol, len(data.texts), on_test)
    train = functools.partial(trained, model, data, protocol, schedule, seed=seed, count=students or protocol.students)
    if on_test:
        return _chosen_on_test(model, train, val, test)
    best = _chosen_on_val(model, train, val, protocol, schedule)
    return best._replace(scores=best.val if test is None else scores(model, best.params, test))


def trained(model: DualEncoder, data: StudentData, protocol: Protocol, schedule: Schedule, scale: float, *, seed: int,
            count: int) -> Iterator[tuple[int, list]]:
    """Train `count` fresh students at one scale of the step sizes; yield (steps done, parameters of each) at each stop."""
    start, advance = make_trainer(model, dataclasses.replace(protocol, every=schedule.every), data.loss, data.alpha)
    base = data.step_sizes or {"image": protocol.lr, "text": protocol.lr}
    students, done = [start(named_key(seed, "student", n)) for n in range(count)], 0
    for stop in schedule.stops:
        while done < stop:
            preemption.raise_if_interrupted()  # students are not saved: a resumed run trains those of this set anew
            sizes = {branch: jnp.float32(scale * size) for branch, size in schedule.step_sizes(base, done).items()}
            students = advance(students, data.inputs, data.texts, data.correspondence, sizes)
            done += schedule.every
        yield stop, [student[0] for student in students]


def _chosen_on_val(model: DualEncoder, train: Callable, val: Inputs, protocol: Protocol, schedule: Schedule) -> EvalResult:
    """The scale and the stop that val chooses: from the middle of the grid, uphill to the best of its neighbors."""
    scales = _ladder(protocol.lr_scales, protocol.grow if schedule.searched else 0)
    patience = protocol.patience if schedule.searched else 0
    results: dict[int, EvalResult] = {}

    def at_scale(n: int) -> EvalResult:
        if n not in results:
            rival = max(results.values(), key=_r_mean, default=None)
            results[n] = _best_stop(model, train, val, patience, scales[n], rival)
        return results[n]

    place = scales.index(sorted(protocol.lr_scales)[len(protocol.lr_scales) // 2])
    for step in (1, -1):
        while 0 <= place + step < len(scales) and _r_mean(at_scale(place)) < _r_mean(at_scale(place + step)):
            place += step
    best = at_scale(place)
    at_edge = {"steps": schedule.searched and best.steps == schedule.stops[-1],
               "lr_scale": len(scales) > 1 and place in (0, len(scales) - 1)}
    return best._replace(at_edge=tuple(name for name, holds in at_edge.items() if holds))


def _best_stop(model: DualEncoder, train: Callable, val: Inputs, patience: int, scale: float, rival: EvalResult | None
               ) -> EvalResult:
    """The best stop of one scale; training ends when val was flat for `patience` (0: any number of) evaluations.

    `rival` is the best of other scales: where it took no more steps, anything that is no better than it is flat too.
    """
    best, flat_at, waited = None, -math.inf, 0
    for stop, params in train(scale):
        result = EvalResult(None, scores(model, params, val), scale, stop, "val", params)
        if best is None or _r_mean(result) > _r_mean(best):
            best = result
        waited += 1
        behind = rival is not None and stop > rival.steps and _r_mean(best) <= _r_mean(rival)
        if _r_mean(best) > _GAIN * flat_at and not behind:
            flat_at, waited = _r_mean(best), 0
        if patience and waited == patience:
            break
    return best


def _ladder(lr_scales: Sequence[float], grow: int) -> list[float]:
    """The scales in order, with `grow` more on each side, in the ratio of the last two there.

    A single scale is no grid, and stays alone.
    """
    scales = sorted(set(lr_scales))
    if len(scales) > 1:
        below, above = scales[0] / scales[1], scales[-1] / scales[-2]
        scales = [*(float(f"{scales[0] * below**n:.3g}") for n in range(grow, 0, -1)), *scales,
                  *(float(f"{scales[-1] * above**n:.3g}") for n in range(1, grow + 1))]
    return scales


def _r_mean(result: EvalResult) -> float:
    return result.val[:, -1].mean()


def _chosen_on_test(model: DualEncoder, train: Callable, val: Inputs, test: Inputs) -> EvalResult:
    """Each student's best evaluation on test, at the learned step sizes."""
    best = None
    for stop, params in train(1.0):
        result = EvalResult(scores(model, params, test), scores(model, params, val), 1.0, stop, "test", params)
        best = result if best is None else _best_on_test(best, result)
    return best


def _best_on_test(old: EvalResult, new: EvalResult) -> EvalResult:
    """For each student, the evaluation with the higher r_mean on test."""
    better = new.scores[:, -1] > old.scores[:, -1]
    params = [n if is_better else o for is_better, n, o in zip(better, new.params, old.params, strict=True)]
    return new._replace(scores=np.where(better[:, None], new.scores, old.scores),
                        val=np.where(better[:, None], new.val, old.val), params=params)
