"""Unrolled trajectory matching: pure functions of pytrees.

Parameters and step sizes are dicts with one entry a branch ("image", "text"). With expert snapshots `theta*`:

    theta_0     = theta*_start
    theta_{s+1} = theta_s - a * grad inner_loss(theta_s, batch_s)          (`unroll`)
    L           = |theta_S - theta*_target|^2 / |theta_0 - theta*_target|^2   (`matching_loss`)
"""

import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError

GRADIENTS = ("exact", "detached")
MERGES = ("separate", "merged")


def inner_step(inner_loss, params, batch, step_sizes, gradient: str):
    """One plain SGD step of the student. Returns (new params, loss). A fork that wants another optimiser edits this.

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
    params: {branch: pytree}. batches: pytree of arrays with leading axis S, one slice a step.
    step_sizes: {branch: scalar}. gradient: `exact` or `detached`. remat: keep only the parameters between steps in
    memory and recompute the rest of each step on the way back.
    Returns (final params, (S,) inner losses). Raises UserError for an unknown gradient.
    """
    if gradient not in GRADIENTS:
        raise UserError(f"there is no gradient '{gradient}'; choose one of {', '.join(GRADIENTS)}.")

    def step(params, batch):
        return inner_step(inner_loss, params, batch, step_sizes, gradient)

    return jax.lax.scan(jax.checkpoint(step) if remat else step, params, batches)


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
