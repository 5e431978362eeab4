"""The operations of the published RandAugment against Pillow, which its code says that it repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from mdw_jax.data import rand_augment
from mdw_jax.data.rand_augment import OPERATIONS, apply
from mdw_jax.data.rand_augment import rand_augment as augmented

SIDE = 24


def photograph(seed=0):
    """(SIDE, SIDE, 3) uint8, smooth, of unequal histogram."""
    noise = np.random.default_rng(seed).normal(size=(4, 4, 3))
    smooth = np.asarray(jax.image.resize(noise, (SIDE, SIDE, 3), "cubic"))
    return np.uint8(np.clip(130 + 50 * smooth, 20, 240))


def operate(operation, sign, image):
    result = apply(jnp.array([operation]), jnp.array([float(sign)]), jnp.asarray(image[None], jnp.float32) / 255)
    return np.asarray(result[0]) * 255


def test_color_operations_are_those_of_pillow():
    image = photograph()
    np.testing.assert_allclose(operate(3, 1, image), np.asarray(ImageOps.autocontrast(Image.fromarray(image))), atol=1.01)
    np.testing.assert_allclose(operate(4, 1, image), np.asarray(ImageOps.equalize(Image.fromarray(image))), atol=0.01)


@pytest.mark.parametrize("operation", range(3))
def test_operations_of_level_5_that_change_nothing(operation):
    np.testing.assert_allclose(operate(operation, -1, photograph()), photograph(), atol=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_moves_are_those_of_pillow(sign):
    image = photograph()
    angle = np.deg2rad(15) * sign
    cos, sin, half = np.cos(angle), np.sin(angle), SIDE / 2
    coefficients = {  # output -> input, on pixel centers at integers
        5: (1, -0.15 * sign, 0, 0, 1, 0), 6: (1, 0, 0, -0.15 * sign, 1, 0),
        7: (1, 0, -5 * sign, 0, 1, 0), 8: (1, 0, 0, 0, 1, -5 * sign),
        9: (cos, -sin, half * (1 - cos) + half * sin, sin, cos, half * (1 - cos) - half * sin)}
    for operation, (a, b, c, d, e, f) in coefficients.items():
        # Pillow has pixel centers at integers + 1/2.
        shifted = (a, b, c + 0.5 - (a + b) / 2, d, e, f + 0.5 - (d + e) / 2)
        expected = np.asarray(Image.fromarray(image).transform(
            (SIDE, SIDE), Image.Transform.AFFINE, shifted, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)), float)
        ours = operate(operation, sign, image)
        # Where a source pixel lies outside, one blends with gray and the other repeats the border.
        y, x = np.mgrid[:SIDE, :SIDE]
        inside = [(0 <= s) & (s <= SIDE - 1) for s in (a * x + b * y + c, d * x + e * y + f)]
        inside = inside[0] & inside[1]
        assert 0.5 < inside.mean() < 1
        np.testing.assert_allclose(ours[inside], expected[inside], atol=2.01)
        far = [(s < -1) | (s > SIDE) for s in (a * x + b * y + c, d * x + e * y + f)]
        np.testing.assert_allclose(ours[far[0] | far[1]], 128, atol=1e-3)


def test_two_operations_are_drawn_each_with_probability_one_half(monkeypatch):
    drawn = []
    monkeypatch.setattr(rand_augment, "apply", lambda operation, sign, images: drawn.append((operation, sign)) or images)
    augmented(jax.random.key(0), jnp.zeros((4000, 1, 1, 1)))
    assert len(drawn) == 2
    for operation, sign in drawn:
        share = np.bincount(np.asarray(operation), minlength=OPERATIONS) / 4000
        np.testing.assert_allclose(share[1:], 0.05, atol=0.015)  # half of a tenth each
        assert abs(float(sign.mean())) < 0.06


def test_gradients_pass_color_operations():
    images = jnp.asarray(photograph()[None], jnp.float32) / 255
    for operation in (0, 3, 4):
        gradient = jax.grad(lambda x, o=operation: apply(jnp.array([o]), jnp.ones(1), x).sum())(images)
        np.testing.assert_array_equal(gradient, 1)
