import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.config.options import CORRESPONDENCES
from mdw_jax.errors import UserError
from mdw_jax.method.correspondence import (
    correspondence,
    fitted_correspondence,
    init_correspondence,
    matching_probability,
    taught_correspondence,
)
from mdw_jax.method.losses import DISTILLATION_LOSSES

ROWS = jnp.arange(6)


@pytest.mark.parametrize("kind", CORRESPONDENCES)
def test_starts_as_the_identity(kind):
    params = init_correspondence(jax.random.key(0), kind, 6, 2)
    np.testing.assert_allclose(correspondence(params, ROWS), np.eye(6), atol=1e-7)


@pytest.mark.parametrize("kind", CORRESPONDENCES)
def test_a_block_is_a_block_of_the_full_matrix(kind):
    params = jax.tree.map(lambda x: x + 0.3, init_correspondence(jax.random.key(0), kind, 6, 2))
    matrix, rows = correspondence(params, ROWS, alpha=1.5), jnp.array([4, 1, 5])
    np.testing.assert_allclose(correspondence(params, rows, alpha=1.5), matrix[jnp.ix_(rows, rows)], rtol=1e-6)


def test_lowrank_formula():
    generator = np.random.default_rng(0)
    a, left, right = generator.normal(size=6), generator.normal(size=(6, 2)), generator.normal(size=(6, 2))
    params = {"diag": jnp.asarray(a), "left": jnp.asarray(left), "right": jnp.asarray(right)}
    np.testing.assert_allclose(correspondence(params, ROWS, alpha=3.0), np.diag(a) + 3 / 2 * left @ right.T, atol=1e-5)


@pytest.mark.parametrize("name", DISTILLATION_LOSSES)
def test_under_the_identity_every_loss_reads_a_pair_as_matching_and_nothing_else(name):
    p = np.asarray(matching_probability(jnp.eye(100), DISTILLATION_LOSSES[name]))
    np.testing.assert_allclose(np.diag(p), 1, atol=0.005)
    assert (p - np.diag(np.diag(p))).max() < 1e-4
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["probability", "kl"])
def test_the_reading_is_the_target_at_which_the_loss_is_lowest(name):
    """Of logits that are free, the best ones have the probabilities that P is read as."""
    target = jnp.asarray(np.random.default_rng(1).uniform(size=(5, 5)), jnp.float32)
    loss = DISTILLATION_LOSSES[name]
    np.testing.assert_allclose(jax.grad(loss)(10 * target, target), 0, atol=1e-6)
    rows, columns = jax.nn.softmax(10 * target, axis=1), jax.nn.softmax(10 * target, axis=0)
    np.testing.assert_allclose(matching_probability(target, loss), (rows + columns) / 2, rtol=1e-6)


def test_a_target_that_is_no_softmax_counts_by_its_positive_part():
    matrix = jnp.array([[3.0, 1.0], [-2.0, 0.0]])
    # rows: (.75, .25) and none; columns: (1, 0) and (1, 0)
    np.testing.assert_allclose(matching_probability(matrix, DISTILLATION_LOSSES["nce"]), [[0.875, 0.625], [0, 0]])


def test_bad_kinds_and_ranks():
    with pytest.raises(UserError, match="identity, full, lowrank"):
        init_correspondence(jax.random.key(0), "low", 6, 2)
    with pytest.raises(UserError, match="1..6"):
        init_correspondence(jax.random.key(0), "lowrank", 6, 7)


@pytest.mark.parametrize("name", DISTILLATION_LOSSES)
def test_a_taught_p_is_read_as_what_its_teachers_believe(name):
    """The mean of row and column softmax of cosines over tau, under every loss."""
    cosines = np.random.default_rng(2).uniform(-1, 1, (6, 6))
    p = taught_correspondence(cosines, 0.2, DISTILLATION_LOSSES[name])
    believed = (jax.nn.softmax(cosines / 0.2, axis=1) + jax.nn.softmax(cosines / 0.2, axis=0)) / 2
    if DISTILLATION_LOSSES[name].correspondence_scale:
        np.testing.assert_allclose(matching_probability(p, DISTILLATION_LOSSES[name]), believed, rtol=1e-5)
    else:
        np.testing.assert_allclose(p, believed, rtol=1e-5)  # the target itself


def test_a_full_p_is_fitted_exactly():
    matrix = np.random.default_rng(3).normal(size=(6, 6))
    np.testing.assert_allclose(correspondence(fitted_correspondence(matrix, "full", 1, 1.0), ROWS), matrix, rtol=1e-6)


def test_a_low_rank_p_with_a_diagonal_is_found_again():
    generator = np.random.default_rng(4)
    left, right = generator.normal(size=(2, 40, 2))
    matrix = np.diag(generator.uniform(1, 2, 40)) + left @ right.T
    fitted = fitted_correspondence(matrix, "lowrank", 2, 3.0)
    assert {name: value.shape for name, value in fitted.items()} == {"diag": (40,), "left": (40, 2), "right": (40, 2)}
    np.testing.assert_allclose(correspondence(fitted, jnp.arange(40), alpha=3.0), matrix, atol=0.05)
    # Rank alone, without the diagonal, is far from it.
    u, values, v = np.linalg.svd(matrix)
    assert np.abs(u[:, :2] * values[:2] @ v[:2] - matrix).max() > 0.5


def test_the_fit_is_no_worse_than_truncation_at_any_rank():
    matrix = np.random.default_rng(5).normal(size=(12, 12))
    for rank in (1, 4, 11):
        u, values, v = np.linalg.svd(matrix)
        truncated = np.linalg.norm(u[:, :rank] * values[:rank] @ v[:rank] - matrix)
        fitted = correspondence(fitted_correspondence(matrix, "lowrank", rank, 1.0), jnp.arange(12))
        assert np.linalg.norm(fitted - matrix) <= truncated * (1 + 1e-5)


def test_an_identity_cannot_be_taught():
    with pytest.raises(UserError, match="distill.correspondence_init to identity"):
        fitted_correspondence(np.eye(3), "identity", 1, 1.0)
