import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.config.options import CORRESPONDENCES
from mdw_jax.errors import UserError
from mdw_jax.method.correspondence import correspondence, init_correspondence, matching_probability
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
