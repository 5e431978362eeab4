import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.matching import matching_loss, minibatches, unroll


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


def test_rematerialisation_changes_nothing():
    np.testing.assert_allclose(step_gradient("exact", remat=True), step_gradient("exact", remat=False), rtol=1e-6)


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
