"""Unrolled trajectory matching: pure functions of pytrees.

Parameters and step sizes are dicts with one entry a branch ("image", "text"). With expert snapshots `theta*`:

    theta_0     = theta*_start
    theta_{s+1} = theta_s - a * grad inner_loss(theta_s, batch_s)          (`unroll`)
    L           = |theta_S - theta*_target|^2 / |theta_0 - theta*_target|^2   (`matching_loss`)
"""

import functools

import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError

GRADIENTS = ("exact", "detached")
MERGES = ("separate", "merged")


def inner_step(inner_loss, params, batch, step_sizes, gradient: str):
    """One plain SGD step of the student. Returns (new params, loss). A fork that wants another optimizer edits this.

    `exact` differentiates through the place where the gradient is taken, `detached` (TESLA) does not.
    """
    at = jax.lax.stop_gradient(params) if gradient == "detached" else params
    loss, grads = jax.value_and_grad(inner_loss)(at, batch)
    new = {
        branch: jax.tree.map(lambda p, g, a=step_sizes[branch]: p - a * g, params[branch], grads[branch])
        for branch in params
    }
    return new, loss


def unroll(inner_loss, params, batches, step_sizes, *, gradient: str = "exact", remat: bool = True):
    """S inner steps.

    inner_loss: (params, batch) -> scalar; it may close over the distilled data that is being learned.
    params: {branch: pytree}. batches: pytree of arrays with leading axis S, one slice a step; not to be
    differentiated by. step_sizes: {branch: scalar}. gradient: `exact` or `detached`. remat: keep little in memory and
    compute the rest again on the way back: of `exact` the parameters between steps are kept, of `detached` nothing.
    Returns (final params, (S,) inner losses). Raises UserError for an unknown gradient.
    """
    if gradient not in GRADIENTS:
        raise UserError(f"there is no gradient '{gradient}'; choose one of {', '.join(GRADIENTS)}.")
    if gradient == "detached" and remat:
        return _two_passes(inner_loss, params, batches, step_sizes)

    def step(params, batch):
        return inner_step(inner_loss, params, batch, step_sizes, gradient)

    return jax.lax.scan(jax.checkpoint(step) if remat else step, params, batches)


def _two_passes(inner_loss, params, batches, step_sizes):
    """`unroll`, detached, in memory that does not grow with S (TESLA's two passes).

    With g_s the gradient at step s, taken where no derivative goes through theta_s:

        theta_S = theta_0 - sum_s a g_s(learned)        dL/dlearned = -sum_s a (dL/dtheta_S) dg_s/dlearned

    What L pulls on passes every step unchanged, so the way back may as well run forwards: it rolls out once more and
    takes each step's share where it passes.
    """
    inner_loss, learned, others = _opened(inner_loss, params, _first(batches))

    def step(params, batch, others, step_sizes, learned):
        loss = lambda at, batch: inner_loss(learned, others, at, batch)
        return inner_step(loss, params, batch, step_sizes, "detached")

    @jax.custom_vjp
    def roll_out(params, batches, others, step_sizes, learned):
        return jax.lax.scan(lambda params, batch: step(params, batch, others, step_sizes, learned), params, batches)

    def backward(arguments, pulls):
        params, batches, others, step_sizes, learned = arguments
        on_final, on_losses = pulls

        def again(carry, now):
            (params, total), (batch, on_loss) = carry, now
            (params, _), pull = jax.vjp(functools.partial(step, params, batch, others), step_sizes, learned)
            return (params, jax.tree.map(jnp.add, total, pull((on_final, on_loss)))), None

        nothing = jax.tree.map(jnp.zeros_like, (step_sizes, learned))
        (_, total), _ = jax.lax.scan(again, (params, nothing), (batches, on_losses))
        return on_final, None, None, *total

    roll_out.defvjp(lambda *arguments: (roll_out(*arguments), arguments), backward)
    return roll_out(params, batches, others, step_sizes, learned)


def scan_mean(function, each):
    """Means over the leading axis of `each` of the (loss, aux) that function(one) returns, one after another.

    Where the loss is differentiated, the gradient by what `function` closes over is summed on the way, so memory is
    that of one, however many there are. `each` gets no gradient, and `aux` gives none.
    """
    function, learned, others = _opened(function, _first(each))

    @jax.custom_vjp
    def mean(each, others, learned):
        return _mean(jax.lax.map(lambda one: function(learned, others, one), each))

    def forward(each, others, learned):
        def add(total, one):
            found, gradient = jax.value_and_grad(function, has_aux=True)(learned, others, one)
            return jax.tree.map(jnp.add, total, gradient), found

        total, found = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, learned), each)
        count = len(jax.tree.leaves(each)[0])
        return _mean(found), jax.tree.map(lambda x: x / count, total)

    def backward(gradient, pulls):
        return None, None, jax.tree.map(lambda x: pulls[0] * x, gradient)

    mean.defvjp(forward, backward)
    return mean(each, others, learned)


def _opened(function, *example):
    """(function(learned, others, *arguments), learned, others): what `function` closes over, handed in as arguments.

    learned: the floats that are being traced, by which it can be differentiated; others: all else of that kind. A
    `custom_vjp` may close over neither. (`jax.closure_convert` leaves integers where they are, and keeps all of it
    alive.)
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*example)
    floats = [isinstance(x, jax.core.Tracer) and jnp.issubdtype(x.dtype, jnp.inexact) for x in traced.consts]
    parts = {kind: [x for x, is_float in zip(traced.consts, floats, strict=True) if is_float == kind]
             for kind in (True, False)}

    def opened(learned, others, *arguments):
        sides = {True: iter(learned), False: iter(others)}
        consts = [next(sides[is_float]) for is_float in floats]
        found = jax.core.eval_jaxpr(traced.jaxpr, consts, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return opened, parts[True], parts[False]


def _first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def _mean(tree):
    return jax.tree.map(lambda x: x.mean(0), tree)


def squared_distance(a, b):
    """Sum of squared differences over all leaves of two pytrees of the same structure."""
    return sum(jnp.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def matching_loss(final, start, target, merge: str = "separate"):
    """Distance left, in units of the distance the expert travelled.

    `separate`: sum over branches of `|final - target|^2 / |start - target|^2` (VLD, LoRS); `merged`: one ratio of the
    sums (LoRS's --merge_loss_branches). Raises UserError for an unknown merge.
    """
    left = {branch: squared_distance(final[branch], target[branch]) for branch in final}
    travelled = {branch: squared_distance(start[branch], target[branch]) for branch in final}
    if merge == "separate":
        return sum(left[branch] / travelled[branch] for branch in left)
    if merge == "merged":
        return sum(left.values()) / sum(travelled.values())
    raise UserError(f"there is no merge '{merge}'; choose one of {', '.join(MERGES)}.")


def minibatches(key, pairs: int, batch: int, steps: int):
    """Rows for `steps` inner steps: (steps, batch) int32, without replacement until the distilled set is used up."""
    each = pairs // batch
    rounds = -(-steps // each)
    orders = [jax.random.permutation(k, pairs)[: each * batch] for k in jax.random.split(key, rounds)]
    return jnp.concatenate(orders).reshape(rounds * each, batch)[:steps].astype(jnp.int32)
