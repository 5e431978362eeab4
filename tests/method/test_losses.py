import inspect

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
    np.testing.assert_allclose(losses.expert_loss(name, q)(LOGITS).sum(-1), total, atol=2e-4)


def test_infonce_has_no_constant_sum():
    assert np.ptp(np.asarray(losses.infonce(LOGITS).sum(-1))) > 1


@pytest.mark.parametrize("name", sorted(losses.EXPERT_LOSSES))
def test_label_losses_fall_as_the_own_logit_rises(name):
    loss = losses.expert_loss(name)
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
        losses.expert_loss("gcee")
    with pytest.raises(UserError, match="there is no loss 'foo'; set experts.clean_loss or experts.tolerant_loss to one"):
        losses.expert_loss("foo", 0.9)
    with pytest.raises(UserError, match="wbce"):
        losses.distillation_loss("wbcee")


@pytest.mark.parametrize("name", losses.EXPERT_LOSSES)
def test_entries_state_the_exponent_of_their_function(name):
    entry = losses.EXPERT_LOSSES[name]
    parameter = inspect.signature(entry.function).parameters.get("q")
    assert entry.q == (parameter and parameter.default)
    np.testing.assert_array_equal(entry(LOGITS), losses.expert_loss(name, entry.q)(LOGITS))
    if entry.q is None:  # an exponent says nothing to a loss that has none
        np.testing.assert_array_equal(losses.expert_loss(name, 0.3)(LOGITS), entry(LOGITS))
    else:
        assert np.abs(losses.expert_loss(name, 0.3)(LOGITS) - losses.expert_loss(name, 0.6)(LOGITS)).max() > 1e-3


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        "from mdw_jax.method import losses\n"
        "def plain(logits):\n    return 2 * losses.mae(logits)\n"
        "def power(logits, q=0.4):\n    return losses.gce(logits, q)\n"
        "def undecided(logits, q):\n    return losses.gce(logits, q)\n"
        "entry = losses.ExpertLoss(power, 0.4)\n"
        "def soft(logits, target):\n    return 3 * losses.mse(logits, target)\n"
        "soft_entry = losses.DistillationLoss(soft, 'twin')\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_label_losses_from_another_module(plugin):
    np.testing.assert_array_equal(losses.expert_loss("my_losses:plain", 0.5)(LOGITS), 2 * losses.mae(LOGITS))
    for name in ("power", "entry"):
        assert losses.expert_loss_entry(f"my_losses:{name}").q == 0.4
        np.testing.assert_array_equal(losses.expert_loss(f"my_losses:{name}")(LOGITS), losses.gce(LOGITS, 0.4))
        np.testing.assert_array_equal(losses.expert_loss(f"my_losses:{name}", 0.9)(LOGITS), losses.gce(LOGITS, 0.9))
    with pytest.raises(UserError, match="'my_losses:undecided' has an exponent q without a default"):
        losses.expert_loss("my_losses:undecided", 0.5)
    with pytest.raises(UserError, match="cannot be imported"):
        losses.expert_loss("my_losses:missing")


def test_soft_losses_from_another_module(plugin):
    for name, twin in (("soft", None), ("soft_entry", "twin")):
        entry = losses.distillation_loss_entry(f"my_losses:{name}")
        assert entry.torch == twin
        np.testing.assert_array_equal(losses.distillation_loss(f"my_losses:{name}")(LOGITS, jnp.eye(B)),
                                      3 * losses.mse(LOGITS, jnp.eye(B)))


def test_published_wbce_keeps_its_rounding_under_jit():
    """In float32 `1 - p` at a logit of 14 is 13 or 14 times 6e-8, and XLA must not merge the two constants around it."""
    logits = jnp.full((2, 2), 13.7)
    p = np.float32(1) / (np.float32(1) + np.exp(np.float32(-13.7)))
    negative = -np.log(np.float32(1) - p + np.float32(1e-6))
    expected = (negative - np.log(p + np.float32(1e-6))) / 2  # two positives, two negatives
    assert abs(float(losses.wbce(logits, jnp.eye(2))) / expected - 1) > 1e-4
    for function in (losses.wbce_published, jax.jit(losses.wbce_published)):
        np.testing.assert_allclose(function(logits, jnp.eye(2)), expected, rtol=1e-6)
