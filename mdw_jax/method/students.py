"""Honest evaluation: fresh students on a distilled set alone, every choice made on val, test read once."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.losses import soft_loss
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
    """How students are trained: fields of `config.evaluate`, explained there."""

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
    """What a student learns from: inputs (M, ...) and texts (M, d), the parameters of P, the loss, the step sizes."""

    inputs: Any
    texts: Any
    correspondence: Any
    step_sizes: Any
    loss: str
    alpha: float


class EvalResult(NamedTuple):
    """scores: (students, 7) on test, in the order of `METRICS`; val: likewise on val; what val chose; the students."""

    scores: np.ndarray
    val: np.ndarray
    lr_scale: float
    steps: int
    select_on: str
    params: list


@functools.lru_cache(maxsize=8)  # distillation evaluates one candidate after another: compile once
def make_trainer(model: DualEncoder, protocol: Protocol, loss: str, alpha: float):
    """The jitted segment: (students, lesson arrays, step sizes) -> students after `every` more SGD steps.

    A student is (params, optimizer state, key); plain SGD with momentum and weight decay, as the peers evaluate.
    """
    soft = soft_loss(loss)

    def optimizer(lr):
        return optax.chain(optax.add_decayed_weights(protocol.weight_decay), optax.sgd(lr, protocol.momentum))

    def segment(student, inputs, texts, p, step_sizes):
        batch = min(protocol.batch, len(texts))

        def step(student, _):
            params, states, key = student
            key, now = jax.random.split(key)
            now = minibatches(now, len(texts), batch, 1)[0]

            def inner_loss(params):
                logits = model.logits(params, shard_rows(inputs[now]), shard_rows(texts[now]))
                return soft(logits, correspondence(p, now, alpha))

            grads = jax.grad(inner_loss)(params)
            new, new_states = {}, {}
            for branch in params:
                updates, new_states[branch] = optimizer(step_sizes[branch]).update(
                    grads[branch], states[branch], params[branch]
                )
                new[branch] = optax.apply_updates(params[branch], updates)
            return (new, new_states, key), None

        return jax.lax.scan(step, student, None, length=protocol.every)[0]

    one = jax.jit(segment)

    def start(key):
        params = model.init(key)
        return params, {branch: optimizer(0.1).init(params[branch]) for branch in params}, key

    def advance(students, *shared):
        if use_vmap(model):
            return map_replicas(segment, students, *shared)
        return [one(student, *shared) for student in students]

    return start, advance


def evaluate(model: DualEncoder, lesson: StudentData, val: Inputs, test: Inputs | None, protocol: Protocol, *, seed: int,
             students: int | None = None) -> EvalResult:
    """Train students and score them.

    `honest`: over all `lr_scales` and all stops, the pair with the best mean val r_mean is chosen, then test is read
    once. `peer`: at the learned step sizes (scale 1), each student's best of all test evaluations, as the peers report:
    optimistic. test None: nothing is read, `scores` are those on val (for choosing between distilled sets).
    """
    count = students or protocol.students
    start, advance = make_trainer(model, protocol, lesson.loss, lesson.alpha)
    base = lesson.step_sizes or {"image": protocol.lr, "text": protocol.lr}
    peer = protocol.select_on == "test" and test is not None
    best = None
    for scale in (1.0,) if peer else protocol.lr_scales:
        steps = {branch: jnp.float32(scale * size) for branch, size in base.items()}
        group = [start(named_key(seed, "student", n)) for n in range(count)]
        for stop in range(protocol.every, protocol.steps + 1, protocol.every):
            preemption.raise_if_interrupted()  # nothing is kept of the students of one set: they are trained anew
            group = advance(group, lesson.inputs, lesson.texts, lesson.correspondence, steps)
            params = [student[0] for student in group]
            on_val = scores(model, params, val)
            on_test = scores(model, params, test) if peer else None
            found = EvalResult(on_test, on_val, scale, stop, protocol.select_on, params)
            if peer and best is not None:
                found = _better_of_each(best, found)
            if best is None or peer or on_val[:, -1].mean() > best.val[:, -1].mean():
                best = found
    if peer:
        return best
    return best._replace(scores=best.val if test is None else scores(model, best.params, test))


def _better_of_each(old: EvalResult, new: EvalResult) -> EvalResult:
    """Per student, whichever moment scored more on test: the peers' habit."""
    better = (new.scores[:, -1] > old.scores[:, -1])[:, None]
    return new._replace(scores=np.where(better, new.scores, old.scores), val=np.where(better, new.val, old.val),
                        params=[n if b else o for b, n, o in zip(better[:, 0], new.params, old.params, strict=True)])


