import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.config.options import CORRESPONDENCES
from mdw_jax.errors import UserError
from mdw_jax.method.correspondence import correspondence, init_correspondence, matching_probability

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


def test_probabilities_sum_to_the_number_of_pairs():
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(5, 5)))
    np.testing.assert_allclose(matching_probability(matrix).sum(), 5, rtol=1e-6)


def test_bad_kinds_and_ranks():
    with pytest.raises(UserError, match="identity, full, lowrank"):
        init_correspondence(jax.random.key(0), "low", 6, 2)
    with pytest.raises(UserError, match="1..6"):
        init_correspondence(jax.random.key(0), "lowrank", 6, 7)
