"""Unrolled trajectory matching: pure functions of pytrees (docs/method.md, sections 5.1 and 5.2).

Parameters and step sizes are dicts with one entry per branch ("image", "text"). With expert snapshots `theta*`:

    theta_0     = theta*_start
    theta_{s+1} = theta_s - a * direction(grad inner_loss(theta_s, batch_s))   (`unroll`)
    L           = |theta_S - theta*_target|^2 / |theta_0 - theta*_target|^2    (`matching_loss`)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mdw_jax.config.options import BATCHES, GRADIENTS, LOSS_MERGES
from mdw_jax.config.plugins import lookup
from mdw_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class StudentOptimizer:
    """An optimizer of the student in the unroll.

    Attributes:
        make: () -> optax transformation from gradients to directions, without the step size, which is learned.
        torch: the same as a PyTorch expression of `groups` (parameter groups, each with its `lr`), for the recipe on
            dataset cards; None if there is none.
    """

    make: Callable[[], optax.GradientTransformation]
    torch: str | None = None

    def __call__(self) -> optax.GradientTransformation:
        return self.make()


STUDENT_OPTIMIZERS: dict[str, StudentOptimizer] = {
    "sgd": StudentOptimizer(optax.identity, "torch.optim.SGD(groups)"),
    "momentum": StudentOptimizer(lambda: optax.trace(0.9), "torch.optim.SGD(groups, momentum=0.9)"),
    # With eps_root = 0 the derivative of the square root is infinite where a gradient is 0.
    "adam": StudentOptimizer(lambda: optax.scale_by_adam(eps_root=1e-12), "torch.optim.Adam(groups)"),
}


def student_optimizer_entry(name: str) -> StudentOptimizer:
    """The student optimizer called `name`.

    Args:
        name: a key of `STUDENT_OPTIMIZERS`, or `module:function` naming a function that takes no arguments and returns
            an `optax.GradientTransformation`, or a `StudentOptimizer`.

    Raises:
        UserError: there is no such optimizer.
    """
    entry = lookup(STUDENT_OPTIMIZERS, name, "distill.inner_optimizer", "student optimizer")
    return entry if isinstance(entry, StudentOptimizer) else StudentOptimizer(entry)


def student_optimizer(name: str) -> optax.GradientTransformation:
    """The optimizer of the student in the unroll: gradients -> directions, without the step size, which is learned.

    Args:
        name: as in `student_optimizer_entry`.

    Raises:
        UserError: there is no such optimizer, or its function returns something else.
    """
    optimizer = student_optimizer_entry(name).make()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UserError(f"distill.inner_optimizer names '{name}', which returns {type(optimizer).__name__}; let it "
                        "return an optax.GradientTransformation.")
    return optimizer


def inner_step(inner_loss: Callable, params: dict, state: dict, batch, step_sizes: dict, gradient: str,
               optimizer: optax.GradientTransformation):
    """One step of the student, `p - a * direction`.

    Args:
        inner_loss: (params, batch) -> scalar.
        params: {branch: pytree}.
        state: {branch: state of the optimizer}.
        batch: one mini-batch.
        step_sizes: {branch: scalar}.
        gradient: `exact` differentiates through the parameters at which the gradient is taken, `detached` (TESLA) does
            not.
        optimizer: what makes a direction of a gradient, one branch at a time.

    Returns:
        (new params, new state), loss.
    """
    at = jax.lax.stop_gradient(params) if gradient == "detached" else params
    loss, grads = jax.value_and_grad(inner_loss)(at, batch)
    new_params, new_state = {}, {}
    for branch in params:
        directions, new_state[branch] = optimizer.update(grads[branch], state[branch], at[branch])
        new_params[branch] = jax.tree.map(lambda p, d, a=step_sizes[branch]: p - a * d, params[branch], directions)
    return (new_params, new_state), loss


def unroll(inner_loss: Callable, params: dict, batches, step_sizes: dict, *, gradient: str = "exact",
           remat: bool = True, optimizer: str = "sgd"):
    """S inner steps of a student.

    With `remat` little is kept in memory and the rest is computed again in the backward pass. Of `exact` gradients the
    parameters (and the optimizer's state) between steps are kept. Of `detached` ones nothing is, if the optimizer has
    no state (TESLA's two passes). An optimizer with state (momentum, adam) needs what `exact` needs: a step's direction
    depends on all earlier gradients, so memory grows with S.

    Args:
        inner_loss: (params, batch) -> scalar; it may close over the distilled data that are being learned.
        params: {branch: pytree}.
        batches: pytree of arrays with leading axis S, one slice per step. It gets no gradient.
        step_sizes: {branch: scalar}.
        gradient: `exact`, or `detached`: each gradient is taken at parameters that count as constants. An optimizer's
            state still carries the dependence of earlier gradients on the learned data.
        remat: see above.
        optimizer: name of the student's optimizer, see `student_optimizer`.

    Returns:
        Final params, (S,) inner losses.

    Raises:
        UserError: the gradient or the optimizer is unknown.
    """
    if gradient not in GRADIENTS:
        raise UserError(f"there is no gradient '{gradient}'; choose one of {', '.join(GRADIENTS)}.")
    direction = student_optimizer(optimizer)
    state = {branch: direction.init(params[branch]) for branch in params}
    if gradient == "detached" and remat and not jax.tree.leaves(state):
        return _two_passes(inner_loss, params, state, batches, step_sizes, direction)

    def step(carry, batch):
        return inner_step(inner_loss, *carry, batch, step_sizes, gradient, direction)

    (final, _), losses = jax.lax.scan(jax.checkpoint(step) if remat else step, (params, state), batches)
    return final, losses


def _two_passes(inner_loss, params, state, batches, step_sizes, optimizer):
    """`unroll`, detached, of an optimizer without state, in memory that does not grow with S (TESLA's two passes).

    With g_s the direction at step s, through whose theta_s no derivative goes:

        theta_S = theta_0 - sum_s a g_s(learned)        dL/dlearned = -sum_s a (dL/dtheta_S) dg_s/dlearned

    The cotangent dL/dtheta_S passes every step unchanged, so the backward pass may run forwards as well: it rolls out
    once more and adds each step's share where it passes.
    """
    inner_loss, learned, constants = closure_to_args(inner_loss, params, _first(batches))

    def step(params, batch, constants, step_sizes, learned):
        loss = lambda at, batch: inner_loss(learned, constants, at, batch)
        (params, _), value = inner_step(loss, params, state, batch, step_sizes, "detached", optimizer)
        return params, value

    @jax.custom_vjp
    def roll_out(params, batches, constants, step_sizes, learned):
        return jax.lax.scan(lambda params, batch: step(params, batch, constants, step_sizes, learned), params, batches)

    def backward(arguments, cotangents):
        params, batches, constants, step_sizes, learned = arguments
        of_final, of_losses = cotangents

        def step_again(carry, inputs):
            (params, total), (batch, of_loss) = carry, inputs
            (params, _), pullback = jax.vjp(functools.partial(step, params, batch, constants), step_sizes, learned)
            return (params, jax.tree.map(jnp.add, total, pullback((of_final, of_loss)))), None

        zeros = jax.tree.map(jnp.zeros_like, (step_sizes, learned))
        (_, total), _ = jax.lax.scan(step_again, (params, zeros), (batches, of_losses))
        return of_final, None, None, *total

    roll_out.defvjp(lambda *arguments: (roll_out(*arguments), arguments), backward)
    return roll_out(params, batches, constants, step_sizes, learned)


def scan_mean(function: Callable, items):
    """Means over the leading axis of `items` of what a function returns, one item after another.

    Where the loss is differentiated, the gradient with respect to what `function` closes over is summed on the way, so
    memory is that of one item, however many there are.

    Args:
        function: (one item) -> (loss, aux). `aux` gives no gradient.
        items: pytree of arrays with a common leading axis. It gets no gradient.

    Returns:
        Mean loss, mean aux.
    """
    function, learned, constants = closure_to_args(function, _first(items))

    @jax.custom_vjp
    def mean(items, constants, learned):
        return _mean(jax.lax.map(lambda item: function(learned, constants, item), items))

    def forward(items, constants, learned):
        def add(total, item):
            outputs, gradient = jax.value_and_grad(function, has_aux=True)(learned, constants, item)
            return jax.tree.map(jnp.add, total, gradient), outputs

        total, outputs = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, learned), items)
        count = len(jax.tree.leaves(items)[0])
        return _mean(outputs), jax.tree.map(lambda x: x / count, total)

    def backward(gradient, cotangents):
        return None, None, jax.tree.map(lambda x: cotangents[0] * x, gradient)

    mean.defvjp(forward, backward)
    return mean(items, constants, learned)


def closure_to_args(function: Callable, *example) -> tuple[Callable, list[Any], list[Any]]:
    """Turn what a function closes over into arguments, since a `custom_vjp` may close over no traced values.

    (`jax.closure_convert` leaves integers where they are, and keeps alive all that it converts.)

    Args:
        function: any function of pytrees of arrays.
        example: arguments for it, of which shapes and dtypes count.

    Returns:
        function(learned, constants, *arguments), learned, constants. learned: the floats that are being traced, by
        which it can be differentiated. constants: all other arrays that it closes over.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*example)
    is_learned = [isinstance(x, jax.core.Tracer) and jnp.issubdtype(x.dtype, jnp.inexact) for x in traced.consts]
    parts = {kind: [x for x, of in zip(traced.consts, is_learned, strict=True) if of == kind] for kind in (True, False)}

    def converted(learned, constants, *arguments):
        sources = {True: iter(learned), False: iter(constants)}
        consts = [next(sources[kind]) for kind in is_learned]
        outputs = jax.core.eval_jaxpr(traced.jaxpr, consts, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return converted, parts[True], parts[False]


def _first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def _mean(tree):
    return jax.tree.map(lambda x: x.mean(0), tree)


def squared_distance(a, b):
    """Sum of squared differences over all leaves of two pytrees of the same structure."""
    return sum(jnp.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def matching_loss(final: dict, start: dict, target: dict, merge: str = "separate"):
    """Squared distance left to the expert's target, in units of the squared distance that the expert traveled.

    Args:
        final, start, target: {branch: pytree} of the student's last parameters and of both ends of the trajectory.
        merge: `separate`, the sum over branches of `|final - target|^2 / |start - target|^2` (VLD, LoRS), or `merged`,
            one ratio of the sums (LoRS's --merge_loss_branches), or `merged_data`, the same in value (see
            `unmerged_step_sizes`).

    Raises:
        UserError: the merge is unknown.
    """
    left = {branch: squared_distance(final[branch], target[branch]) for branch in final}
    traveled = {branch: squared_distance(start[branch], target[branch]) for branch in final}
    if merge == "separate":
        return sum(left[branch] / traveled[branch] for branch in left)
    if merge in ("merged", "merged_data"):
        return sum(left.values()) / sum(traveled.values())
    raise UserError(f"there is no loss merge '{merge}'; choose one of {', '.join(LOSS_MERGES)}.")


def unmerged_step_sizes(step_sizes: dict, start: dict, target: dict) -> dict:
    """The same step sizes, with the gradients that the `separate` loss gives them where the loss is a `merged` one.

    So LoRS's code has it: --merge_loss_branches merges the gradients of data and P, and leaves those of the step sizes.
    With `detached` gradients a step size moves its own branch alone, so its two gradients differ by the factor `sum of
    all |start - target|^2 / |start - target|^2 of its branch`. With `exact` ones they do not.

    Args:
        step_sizes: {branch: scalar}.
        start, target: {branch: pytree} of both ends of the expert's trajectory.
    """
    traveled = {branch: squared_distance(start[branch], target[branch]) for branch in step_sizes}
    factors = {branch: sum(traveled.values()) / traveled[branch] for branch in traveled}
    return {branch: size + (factors[branch] - 1) * (size - jax.lax.stop_gradient(size))
            for branch, size in step_sizes.items()}


def minibatches(key, pairs: int, batch: int, steps: int, kind: str = "rounds"):
    """Rows of the distilled set for each inner step.

    Args:
        key: a typed key.
        pairs: size M of the set.
        batch: rows per step, at most M.
        steps: number of steps.
        kind: `rounds`, without replacement until the set is used up (LoRS), or `fresh`, a random subset for each step,
            whatever the others hold (VLD).

    Returns:
        (steps, batch) int32.

    Raises:
        UserError: the kind is unknown.
    """
    if kind not in BATCHES:
        raise UserError(f"there are no batches '{kind}'; set distill.batches to one of {', '.join(BATCHES)}.")
    if kind == "fresh":
        return jnp.stack([jax.random.permutation(k, pairs)[:batch] for k in jax.random.split(key, steps)]).astype(jnp.int32)
    per_round = pairs // batch
    rounds = -(-steps // per_round)
    orders = [jax.random.permutation(k, pairs)[: per_round * batch] for k in jax.random.split(key, rounds)]
    return jnp.concatenate(orders).reshape(rounds * per_round, batch)[:steps].astype(jnp.int32)
