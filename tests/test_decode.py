import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.decode import make_decode_step
from mdw_jax.towers.convnet import convnet
from mdw_jax.towers.dual import dual_encoder

SHAPE = (8, 8, 3)
TOWER = convnet(SHAPE, (4,), (12,))
MODEL = dual_encoder(TOWER, TOWER.init(jax.random.key(0)), 5, mode="projection", dim=4)
IMAGES = np.random.default_rng(0).uniform(0.2, 0.8, (3, *SHAPE)).astype(np.float32)
WANTED = MODEL.inputs(jnp.asarray(np.random.default_rng(1).uniform(0.2, 0.8, (3, *SHAPE)), jnp.float32))
SCALE = jnp.ones(WANTED.shape[1])


def decode(images, wanted, steps=60, weights=None):
    start, step = make_decode_step(MODEL, 0.01)
    state, errors = start(images), []
    weights = jnp.ones((len(images), *SHAPE[:2], 1)) if weights is None else weights
    for _ in range(steps):
        state, error = step(state, wanted, SCALE, weights)
        errors.append(float(error))
    return np.asarray(state[0]), errors


def test_images_come_to_have_the_wanted_features():
    images, errors = decode(IMAGES, WANTED)
    by_hand = np.mean((np.asarray(MODEL.inputs(jnp.asarray(IMAGES))) - np.asarray(WANTED)) ** 2)
    np.testing.assert_allclose(errors[0], by_hand, rtol=1e-5)
    assert errors[-1] < 0.02 * errors[0]
    assert images.min() >= 0 and images.max() <= 1


def test_each_image_is_decoded_as_if_it_were_alone():
    together, _ = decode(IMAGES, WANTED, 10)
    alone, _ = decode(IMAGES[1:2], WANTED[1:2], 10)
    np.testing.assert_allclose(together[1:2], alone, atol=1e-5)


def test_pixels_of_weight_zero_stay():
    weights = jnp.ones((3, *SHAPE[:2], 1)).at[:, :4].set(0)
    images, _ = decode(IMAGES, WANTED, 5, weights)
    np.testing.assert_array_equal(images[:, :4], IMAGES[:, :4])
    assert np.abs(images[:, 4:] - IMAGES[:, 4:]).max() > 0.02
