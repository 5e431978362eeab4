"""The matching loss of images that are stored smaller than models see them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.config import base
from mdw_jax.method.distill import init_state
from mdw_jax.method.objective import draw, method_of, objective
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.image.convnet import convnet
from mdw_jax.runtime.pytree import stack

SHAPE, PAIRS = (8, 8, 3), 6
IMAGES = np.random.default_rng(0).uniform(size=(PAIRS, *SHAPE)).astype(np.float32)
TEXTS = np.random.default_rng(1).normal(size=(PAIRS, 10)).astype(np.float32)


def test_they_are_matched_as_models_see_them():
    """The loss is that of the enlarged images, and the gradient theirs, carried back to the stored pixels."""
    config = base()
    config.update_from_flattened_dict({"data.size": 8, "distill.image_size": 4, "distill.inner_steps": 2,
                                       "distill.batch": 4, "distill.rank": 2})
    small = method_of(config)
    assert small.seen_size == 8
    plain = dataclasses.replace(small, seen_size=0)
    tower = convnet(SHAPE, (4,), (12,))
    model = dual_encoder(tower, tower.init(jax.random.key(9)), 10, mode="projection", dim=7)
    starts = stack([model.init(jax.random.key(i)) for i in range(2)])
    targets = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(5), x.shape), starts)
    draws = draw(jax.random.key(7), plain, PAIRS, 2)
    others = init_state(jax.random.key(3), plain, IMAGES, TEXTS).learned

    def loss(images, method):
        return objective(model, method, {**others, "images": images}, starts, targets, draws)[0]

    stored = jnp.asarray(IMAGES[:, ::2, ::2])
    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(stored, small)
    large, carry_back = jax.vjp(lambda x: jax.image.resize(x, IMAGES.shape, "linear", antialias=False), stored)
    wanted, of_large = jax.jit(jax.value_and_grad(loss), static_argnums=1)(large, plain)
    scale = float(jnp.abs(gradient).max())
    assert gradient.shape == stored.shape and scale > 0
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(gradient / scale, carry_back(of_large)[0] / scale, atol=1e-4)
    # Images of the size that models see are not touched: the same bits.
    assert float(loss(jnp.asarray(IMAGES), small)) == float(loss(jnp.asarray(IMAGES), plain))
