import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.models.chunks import in_chunks

WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4000)) / 64, jnp.float32)


def rows(count):
    return jnp.asarray(np.random.default_rng(1).normal(size=(count, 5)), jnp.float32)


def wide(x):
    """Of each row one number, by way of 4000."""
    return jnp.tanh(jnp.tanh(x @ WEIGHTS) @ WEIGHTS.T @ WEIGHTS).sum(-1)


def memory(count, chunk):
    """Bytes of the gradient of `wide`, of so many rows."""
    gradient = jax.jit(jax.grad(lambda x: (in_chunks(wide, x, chunk) ** 2).sum()))
    return gradient.lower(rows(count)).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("count, chunk", [(12, 4), (12, 5), (13, 4), (3, 2)])
def test_results_and_gradients_are_those_of_all_rows_at_once(count, chunk):
    loss = lambda x, chunk: (in_chunks(lambda x: {"a": wide(x), "b": 2 * x}, x, chunk)["a"] ** 2).sum()
    x = rows(count)
    np.testing.assert_allclose(in_chunks(wide, x, chunk), wide(x), atol=1e-5)
    wanted = jax.grad(loss)(x, 0)
    assert jnp.linalg.norm(jax.grad(loss)(x, chunk) - wanted) <= 1e-6 * jnp.linalg.norm(wanted)


@pytest.mark.parametrize("chunk", [0, 12, 100])
def test_rows_that_fit_into_one_chunk_are_not_touched(chunk):
    program = lambda chunk: str(jax.make_jaxpr(lambda x: in_chunks(wide, x, chunk))(rows(12)))
    assert program(chunk) == str(jax.make_jaxpr(wide)(rows(12))) and "scan" in program(11)


def test_memory_follows_the_chunk():
    all_at_once, small, more_rows = memory(400, 0), memory(400, 50), memory(800, 50)
    assert small < all_at_once / 4 and more_rows < 1.1 * small
