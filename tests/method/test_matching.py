import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.method.matching import matching_loss, minibatches, scan_mean, unroll


def quadratic(params, batch):
    return sum(0.5 * jnp.sum((p - batch) ** 2) for p in jax.tree.leaves(params))


START = {"image": {"w": jnp.array([1.0, 2.0])}, "text": {"w": jnp.array([3.0])}}


def test_unroll_of_a_quadratic_has_a_closed_form():
    steps = {"image": jnp.float32(0.1), "text": jnp.float32(0.3)}
    final, losses = unroll(quadratic, START, jnp.zeros(4), steps)
    np.testing.assert_allclose(final["image"]["w"], START["image"]["w"] * 0.9**4, rtol=1e-6)
    np.testing.assert_allclose(final["text"]["w"], START["text"]["w"] * 0.7**4, rtol=1e-6)
    np.testing.assert_allclose(losses[0], 0.5 * (1 + 4 + 9), rtol=1e-6)


def step_gradient(gradient, remat=True):
    def final_weight(a):
        return unroll(quadratic, START, jnp.zeros(3), {"image": a, "text": a}, gradient=gradient, remat=remat)[0]

    return jax.grad(lambda a: final_weight(a)["text"]["w"][0])(jnp.float32(0.2))


def test_exact_and_detached_step_size_gradients_have_their_closed_forms():
    # exact: d/da 3 (1 - a)^3; detached: minus the sum of the gradients met on the way.
    np.testing.assert_allclose(step_gradient("exact"), -3 * 3 * 0.8**2, rtol=1e-5)
    np.testing.assert_allclose(step_gradient("detached"), -3 * (1 + 0.8 + 0.64), rtol=1e-5)


@pytest.mark.parametrize("gradient", ["exact", "detached"])
def test_rematerialization_changes_nothing(gradient):
    np.testing.assert_allclose(step_gradient(gradient), step_gradient(gradient, remat=False), rtol=1e-6)


WIDTH = 400  # parameters that dwarf the rest: WIDTH^2 floats


def network_loss(shared):
    """A regression by two layers, towards what is learned."""

    def loss(params, rows):
        hidden = jnp.tanh(shared["x"][rows] @ params["image"]["w"])
        return jnp.mean((hidden @ params["text"]["w"] - shared["y"][rows]) ** 2)

    return loss


def network(key, count: int):
    """What is learned, and the starts and batches of `count` trajectories of 12 steps."""
    keys = jax.random.split(key, 4)
    shared = {"x": jax.random.normal(keys[0], (6, WIDTH)), "y": jax.random.normal(keys[1], (6,))}
    starts = {"image": {"w": 0.05 * jax.random.normal(keys[2], (count, WIDTH, WIDTH))},
              "text": {"w": 0.05 * jax.random.normal(keys[3], (count, WIDTH))}}
    batches = jnp.stack([minibatches(key, 6, 3, 12) for key in jax.random.split(keys[0], count)])
    return shared, starts, batches


def after_unrolls(gradient, shared, starts, batches, mean, remat=True):
    """Mean over trajectories of how far they end from nothing, and the mean inner losses."""
    steps = {"image": shared["a"], "text": jnp.float32(0.01)}

    def one(start, batches):
        final, inner = unroll(network_loss(shared), start, batches, steps, gradient=gradient, remat=remat)
        return sum(jnp.sum(w**2) for w in jax.tree.leaves(final)), inner

    if mean == "scan_mean":
        return scan_mean(lambda each: one(*each), (starts, batches))
    losses, inner = jax.vmap(one)(starts, batches)
    return losses.mean(), inner.mean(0)


@pytest.mark.parametrize("gradient", ["exact", "detached"])
@pytest.mark.parametrize("mean", ["scan_mean", "vmap"])
def test_gradients_are_the_same_however_they_are_accumulated(gradient, mean):
    shared, starts, batches = network(jax.random.key(0), 3)
    shared["a"] = jnp.float32(0.02)

    def found(*how):
        return jax.jit(jax.value_and_grad(lambda s: after_unrolls(gradient, s, starts, batches, *how),
                                          has_aux=True))(shared)

    (loss, inner), by = found(mean)
    (plain_loss, plain_inner), plain_by = found("vmap", False)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-5)
    np.testing.assert_allclose(inner, plain_inner, rtol=1e-4)
    for name, values in plain_by.items():
        np.testing.assert_allclose(by[name], values, rtol=1e-3, atol=1e-4 * float(jnp.abs(values).max()))


def test_inner_losses_may_close_over_anything():
    """Integers that are traced, and arrays that nobody keeps."""
    table = jnp.array([[0, 2], [1, 0]])
    learned = jnp.arange(3.0)

    def loss(learned, order, gradient):
        inner = lambda params, row: sum(jnp.sum((p - learned[order[row]]) ** 2) for p in jax.tree.leaves(params))
        steps = {"image": jnp.float32(0.1), "text": jnp.float32(0.2)}
        final, inner = unroll(inner, START, jnp.array([1, 0, 1]), steps, gradient=gradient)
        return sum(jnp.sum(w**2) for w in jax.tree.leaves(final)) + inner.sum()

    def by_each(learned, gradient):
        return scan_mean(lambda order: (loss(learned, order, gradient), 0.0), table)[0]

    for gradient in ("exact", "detached"):
        plain = sum(jax.grad(loss)(learned, order, gradient) for order in table) / 2
        use_vmap = jax.grad(lambda x: jax.vmap(lambda order: loss(x, order, gradient))(table).mean())
        for found in (jax.jit(use_vmap)(learned), jax.jit(jax.grad(lambda x: by_each(x, gradient)))(learned)):
            np.testing.assert_allclose(found, plain, rtol=1e-5)
    array = jnp.arange(3.0) + 1
    kept = weakref.ref(array)
    jax.grad(loss)(array, table[0], "detached")
    del array
    gc.collect()
    assert kept() is None


def memory_of(gradient, trajectories: int, steps: int) -> float:
    """Of the gradient of trajectories one after another, in units of one network's parameters."""
    shared, starts, batches = network(jax.random.key(0), trajectories)
    shared["a"] = jnp.float32(0.02)
    step = jax.jit(jax.grad(lambda s, starts: after_unrolls(gradient, s, starts, batches[:, :steps],
                                                            "scan_mean")[0]))
    return step.lower(shared, starts).compile().memory_analysis().temp_size_in_bytes / (4 * WIDTH**2)


def test_memory_grows_with_inner_steps_of_an_exact_gradient_only_and_never_with_trajectories():
    assert memory_of("exact", 1, 12) > memory_of("exact", 1, 2) + 8  # parameters between steps are kept
    assert memory_of("detached", 1, 12) < memory_of("detached", 1, 2) + 0.5
    assert memory_of("exact", 4, 12) < memory_of("exact", 1, 12) + 2.5  # not another 12 each


def test_matching_loss_is_one_at_the_start_and_zero_at_the_target():
    target = jax.tree.map(lambda w: w + 1, START)
    for merge, at_start in (("separate", 2.0), ("merged", 1.0)):
        np.testing.assert_allclose(matching_loss(START, START, target, merge), at_start)
        np.testing.assert_allclose(matching_loss(target, START, target, merge), 0.0)


def test_minibatches_use_the_whole_set_before_repeating():
    rows = np.asarray(minibatches(jax.random.key(0), 10, 3, 7))
    assert rows.shape == (7, 3)
    for first in (0, 3):
        assert len(set(rows[first : first + 3].ravel())) == 9


def test_unknown_choices_are_user_errors():
    with pytest.raises(UserError, match="exact, detached"):
        unroll(quadratic, START, jnp.zeros(1), {"image": 0.1, "text": 0.1}, gradient="exakt")
    with pytest.raises(UserError, match="separate, merged"):
        matching_loss(START, START, START, "sum")
