import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.method import losses

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(7, 7)) * 3, jnp.float32)
B = len(LOGITS)


@pytest.mark.parametrize("name, q, total", [("mae", None, B - 1), ("acl", 1.0, B - 1), ("rince", 1.0, 0.0)])
def test_symmetric_losses_have_a_constant_sum_over_labels(name, q, total):
    np.testing.assert_allclose(losses.label_loss(name, q)(LOGITS).sum(-1), total, atol=2e-4)


def test_infonce_has_no_constant_sum():
    assert np.ptp(np.asarray(losses.infonce(LOGITS).sum(-1))) > 1


@pytest.mark.parametrize("name", sorted(losses.LABEL_LOSSES))
def test_label_losses_fall_as_the_own_logit_rises(name):
    loss = losses.label_loss(name)
    slopes = jax.jacobian(lambda z: jnp.diagonal(loss(z)))(LOGITS)
    own = slopes[jnp.arange(B), jnp.arange(B), jnp.arange(B)]
    assert (own < 0).all()


def test_gce_lies_between_infonce_and_mae():
    np.testing.assert_allclose(losses.gce(LOGITS, q=1e-4), losses.infonce(LOGITS), rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(losses.gce(LOGITS, q=1.0), losses.mae(LOGITS), rtol=1e-5, atol=1e-6)


def test_rince_tends_to_infonce_plus_a_constant_at_small_q():
    difference = losses.rince(LOGITS, q=1e-3) - losses.infonce(LOGITS)
    np.testing.assert_allclose(difference, -np.log(B), atol=0.05)


def test_ccl_tan_by_hand():
    p = np.asarray(jax.nn.softmax(LOGITS, axis=-1))
    by_hand = [[sum(np.tan(p[i, j]) for j in range(B) if j != y) for y in range(B)] for i in range(B)]
    np.testing.assert_allclose(losses.ccl_tan(LOGITS), by_hand, rtol=1e-5)


def test_pair_losses_average_both_directions():
    rows = -np.log(np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True))
    columns = -np.log(np.exp(LOGITS) / np.exp(LOGITS).sum(0, keepdims=True))
    expected = (np.diagonal(rows) + np.diagonal(columns)) / 2
    np.testing.assert_allclose(losses.pair_losses(losses.infonce, LOGITS), expected, rtol=1e-4)


def test_shuffled_losses_are_the_mean_over_rotations_of_the_captions():
    rotated = [losses.pair_losses(losses.gce, jnp.roll(LOGITS, k, axis=1)) for k in range(B)]
    np.testing.assert_allclose(
        losses.shuffled_losses(losses.gce, LOGITS).mean(), jnp.stack(rotated).mean(), rtol=1e-5
    )


def test_probability_is_kl_in_the_units_of_nce_up_to_the_entropy_of_the_target():
    target = jnp.asarray(np.random.default_rng(1).uniform(size=(B, B)), jnp.float32)
    gradient = jax.grad(losses.probability)(LOGITS, target)
    np.testing.assert_allclose(gradient, B * jax.grad(losses.kl)(LOGITS, target), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(losses.probability(LOGITS, 9 * jnp.eye(B)), losses.nce(LOGITS, jnp.eye(B)), rtol=1e-5)


def test_unknown_losses_name_the_choices():
    with pytest.raises(UserError, match="gce"):
        losses.label_loss("gcee")
    with pytest.raises(UserError, match="wbce"):
        losses.soft_loss("wbcee")
