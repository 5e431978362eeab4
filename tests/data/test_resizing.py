import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.data.resizing import enlarged, seen_images, shrunk, stored_shape
from mdw_jax.io.distilled_set import DistilledSet

IMAGES = np.random.default_rng(0).uniform(size=(3, 4, 4, 2)).astype(np.float32)


def test_enlarged_is_bilinear_between_the_centers_of_pixels():
    large = np.asarray(enlarged(jnp.asarray(IMAGES), 8))
    np.testing.assert_array_equal(large, jax.image.resize(IMAGES, (3, 8, 8, 2), "linear", antialias=False))
    np.testing.assert_allclose(large[:, 0, 0], IMAGES[:, 0, 0], rtol=1e-6)  # a corner has no neighbor outside
    inner = 0.75 * IMAGES[:, 1] + 0.25 * IMAGES[:, 2]  # at a quarter of the way from row 1 to row 2
    np.testing.assert_allclose(large[:, 3, 3], 0.75 * inner[:, 1] + 0.25 * inner[:, 2], rtol=1e-5)


def test_the_side_they_have_and_zero_leave_images_as_they_are():
    for side in (0, 4):
        assert enlarged(IMAGES, side) is IMAGES and shrunk(IMAGES, side) is IMAGES
    clips = np.zeros((2, 3, 4, 5, 1), np.float32)
    assert enlarged(clips, 0) is clips
    assert stored_shape((3, 8, 6, 2), 0) == (3, 8, 6, 2) and stored_shape((8, 8, 3), 4) == (4, 4, 3)


def test_gradients_reach_every_stored_pixel_and_none_is_lost():
    """Each enlarged pixel is a mean of stored ones, so all gradients of ones add up to the number of enlarged pixels."""
    gradient = jax.grad(lambda x: enlarged(x, 8).sum())(jnp.asarray(IMAGES))
    assert float(gradient.min()) > 1
    np.testing.assert_allclose(gradient.sum(), 3 * 8 * 8 * 2, rtol=1e-5)


def test_shrunk_images_keep_their_mean_and_stay_in_range():
    """Antialiased: alternating stripes become gray, where every other pixel would be all white or all black."""
    stripes = np.zeros((1, 8, 8, 1), np.float32)
    stripes[:, ::2] = 1
    small = shrunk(stripes, 4)
    assert small.shape == (1, 4, 4, 1) and small.dtype == np.float32
    assert small.min() > 0.3 and small.max() < 0.7
    np.testing.assert_allclose(shrunk(np.full((1, 8, 8, 1), 0.3, np.float32), 2), 0.3, rtol=1e-5)


def test_seen_images_of_a_set():
    stored = DistilledSet(IMAGES, np.ones((3, 5), np.float32), {}, {}, 1.0, "nce")
    assert seen_images(stored) is IMAGES
    np.testing.assert_array_equal(seen_images(dataclasses.replace(stored, seen_size=8)), enlarged(IMAGES, 8))
