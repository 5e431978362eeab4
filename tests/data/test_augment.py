"""Crops agree with Pillow and with a pixel-by-pixel loop; draws are independent, repeatable and differentiable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mdw_jax.data.augment import AUGMENTATIONS, MAX_ASPECT, MIN_AREA, augment, crop, draw_crops, flip
from mdw_jax.errors import UserError

KEY = jax.random.key(0)


def _images(*shape):
    return jnp.asarray(np.random.default_rng(0).random(shape, np.float32))


def _boxes(*boxes):
    return [jnp.asarray(column, jnp.float32) for column in zip(*boxes)]


def test_the_whole_image_is_reproduced():
    images = _images(3, 7, 10, 2)
    np.testing.assert_allclose(crop(images, *_boxes(*[(0, 0, 7, 10)] * 3)), images, atol=1e-5)


def test_crop_equals_a_loop_over_pixels():
    images = np.asarray(_images(2, 5, 8, 3))
    boxes = [(0.7, 1.2, 3.9, 5.5), (1.5, 0.0, 3.5, 8.0)]
    expected = np.zeros_like(images)
    for b, (top, left, tall, wide) in enumerate(boxes):
        for i in range(5):
            for j in range(8):
                y = min(max(top + (i + 0.5) * tall / 5 - 0.5, 0), 4)
                x = min(max(left + (j + 0.5) * wide / 8 - 0.5, 0), 7)
                y0, x0 = min(int(y), 3), min(int(x), 6)
                dy, dx = y - y0, x - x0
                corner = images[b, y0:y0 + 2, x0:x0 + 2]
                expected[b, i, j] = ((1 - dy) * (1 - dx) * corner[0, 0] + (1 - dy) * dx * corner[0, 1]
                                     + dy * (1 - dx) * corner[1, 0] + dy * dx * corner[1, 1])
    np.testing.assert_allclose(crop(jnp.asarray(images), *_boxes(*boxes)), expected, atol=1e-5)


def test_crop_equals_pillow_away_from_the_box_edge():
    image = np.asarray(_images(1, 16, 16, 1))
    top, left, tall, wide = 2, 3, 8, 12
    pillow = Image.fromarray(image[0, :, :, 0], mode="F").resize((16, 16), Image.Resampling.BILINEAR,
                                                               box=(left, top, left + wide, top + tall))
    cropped = crop(jnp.asarray(image), *_boxes((top, left, tall, wide)))[0, :, :, 0]
    # Pillow repeats the border of the box, this crop sees beyond it: they differ in the outermost pixel only.
    np.testing.assert_allclose(cropped[1:-1, 1:-1], np.asarray(pillow)[1:-1, 1:-1], atol=1e-5)


def test_flip_mirrors_the_chosen_images():
    images = _images(3, 4, 6, 3)
    out = flip(images, jnp.array([True, False, True]))
    np.testing.assert_array_equal(out[1], images[1])
    np.testing.assert_array_equal(out[0], np.asarray(images)[0, :, ::-1])


def test_half_of_the_images_flip():
    images = _images(400, 1, 2, 1)
    out = np.asarray(augment(KEY, images, "flip"))
    same = (out == np.asarray(images)).all((1, 2, 3))
    np.testing.assert_array_equal(out[~same], np.asarray(images)[~same][:, :, ::-1])
    assert 0.4 < same.mean() < 0.6  # +-4 standard deviations


def test_boxes_lie_inside_and_have_the_stated_area_and_aspect():
    top, left, tall, wide = (np.asarray(x) for x in draw_crops(KEY, 2000, 20, 40))
    assert top.min() >= 0 and left.min() >= 0
    assert (top + tall).max() <= 20 + 1e-3 and (left + wide).max() <= 40 + 1e-3
    area, aspect = tall * wide / 800, (wide / 40) / (tall / 20)
    assert area.max() <= 1 + 1e-5 and area.min() >= MIN_AREA - 1e-5 and area.min() < 0.55 and area.max() > 0.9
    assert MAX_ASPECT * 0.95 < aspect.max() <= MAX_ASPECT + 1e-5
    assert 1 / MAX_ASPECT - 1e-5 <= aspect.min() < 1.05 / MAX_ASPECT
    assert len(np.unique(top)) > 1500  # the others are as tall as the image


@pytest.mark.parametrize("policy", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(2, 9, 6, 3), (1, 4, 4, 1)])
def test_shape_range_and_determinism(policy, shape):
    images = _images(*shape)
    jitted = jax.jit(augment, static_argnames="policy")
    out = jitted(KEY, images, policy)
    assert out.shape == shape and out.dtype == jnp.float32
    assert out.min() >= 0 and out.max() <= 1 + 1e-6
    np.testing.assert_array_equal(out, jitted(KEY, images, policy))
    np.testing.assert_allclose(out, augment(KEY, images, policy), atol=1e-5)


def test_another_key_is_another_draw():
    images = _images(4, 8, 8, 3)
    assert np.abs(augment(KEY, images, "crop_flip") - augment(jax.random.key(1), images, "crop_flip")).max() > 0.01


def test_images_do_not_mix_and_have_draws_of_their_own():
    image = _images(1, 8, 8, 3)
    out = augment(KEY, jnp.concatenate([image, image]), "crop_flip")
    assert np.abs(out[0] - out[1]).max() > 0.01
    other = augment(KEY, jnp.concatenate([image, 0 * image]), "crop_flip")
    np.testing.assert_array_equal(other[0], out[0])
    assert not other[1].any()


@pytest.mark.parametrize("policy", [policy for policy in AUGMENTATIONS if policy != "rand_augment"])
def test_gradient_is_the_transposed_map(policy):
    """These augmentations are linear in the images, so <A x, y> = <x, A' y> with A' from autodiff."""
    x, y = _images(2, 2, 6, 5, 3)
    _, transpose = jax.vjp(lambda images: augment(KEY, images, policy), x)
    gradient, = transpose(y)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    np.testing.assert_allclose(jnp.vdot(augment(KEY, x, policy), y), jnp.vdot(x, gradient), rtol=1e-5)


def test_unknown_policy():
    with pytest.raises(UserError, match="no augmentation 'autoaugment'; set .* to one of none, flip, crop_flip"):
        augment(KEY, _images(1, 2, 2, 1), "autoaugment")


def test_a_shift_rotates_time_and_a_mask_silences_one_band_of_either_axis():
    images = 0.1 + 0.9 * _images(400, 16, 24, 1)
    shifted = np.asarray(augment(KEY, images, "shift"))
    turns = [next(by for by in range(24) if np.array_equal(np.roll(image, by, 1), out))
             for image, out in zip(np.asarray(images), shifted)]
    assert len(set(turns)) == 24
    masked = np.asarray(augment(KEY, images, "mask"))[..., 0] == 0
    for gone in masked:
        rows, columns = gone.all(1), gone.all(0)
        np.testing.assert_array_equal(gone, rows[:, None] | columns[None, :])
        for band, most in ((rows, 4), (columns, 6)):
            assert band.sum() <= most and np.abs(np.diff(band.astype(int))).sum() <= 2  # one piece
    assert masked.all(1).sum(1).max() == 6 and masked.all(2).sum(1).max() == 4
    assert masked.all(2).any(0).all() and masked.all(1).any(0).all()  # anywhere


def test_an_augmentation_from_another_module(tmp_path, monkeypatch):
    (tmp_path / "my_augmentation.py").write_text("def darker(key, images):\n    return 0.5 * images\n")
    monkeypatch.syspath_prepend(tmp_path)
    for shape in ((2, 4, 5, 3), (2, 3, 4, 5, 3)):  # images and video clips
        images = _images(*shape)
        np.testing.assert_allclose(augment(KEY, images, "my_augmentation:darker"), images / 2)
