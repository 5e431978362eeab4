"""Augmentation on the device: differentiable in the images, one independent draw per image or video clip.

To add one, write a function (key, images) -> images and an entry of `AUGMENTATIONS`.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from mdw_jax.config.plugins import lookup
from mdw_jax.data.rand_augment import rand_augment

MIN_AREA = 0.5  # smallest crop, as a fraction of the image
MAX_MASK = 0.25  # longest masked band, as a fraction of its axis
MAX_ASPECT = 4 / 3  # a crop's sides change their ratio by at most this factor


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """A left-right flip with probability 1/2."""
    by_flip, _ = jax.random.split(key)
    return flip(images, jax.random.bernoulli(by_flip, 0.5, images.shape[:1]))


def random_crop_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """A random crop, stretched to the full size, then a left-right flip with probability 1/2.

    The crop has U(1/2, 1) of the area and an aspect ratio changed by a log-uniform factor in [3/4, 4/3]: the usual
    random resized crop (Szegedy et al. 2015) with a milder area and aspect, because captions describe the whole image.
    """
    by_flip, by_crop = jax.random.split(key)
    images = crop(images, *draw_crops(by_crop, *images.shape[:3]))
    return flip(images, jax.random.bernoulli(by_flip, 0.5, images.shape[:1]))


def random_crop_flip_rand(key: jax.Array, images: jax.Array) -> jax.Array:
    """`random_crop_flip`, then the published methods' RandAugment: what their experts train on (VLD, LoRS, RepBlend)."""
    by_crop, by_operation = jax.random.split(key)
    return rand_augment(by_operation, random_crop_flip(by_crop, images))


def random_shift(key: jax.Array, images: jax.Array) -> jax.Array:
    """Of log-mels (frequency by time): a rotation of the time axis by any number of frames."""
    by_shift, _ = jax.random.split(key)
    return shift(images, jax.random.randint(by_shift, images.shape[:1], 0, images.shape[2]))


def random_mask(key: jax.Array, images: jax.Array) -> jax.Array:
    """Of log-mels: one band of up to a quarter of the frequencies and one of the times become 0, silence.

    SpecAugment (Park et al. 2019) without its warp.
    """
    _, by_mask = jax.random.split(key)
    return mask(images, *draw_bands(by_mask, *images.shape[:3]))


def random_shift_mask(key: jax.Array, images: jax.Array) -> jax.Array:
    """Of log-mels: `random_shift`, then `random_mask`."""
    return random_mask(key, random_shift(key, images))


AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "none": lambda key, images: images,
    "flip": random_flip,
    "crop_flip": random_crop_flip,
    "rand_augment": random_crop_flip_rand,
    "shift": random_shift,
    "mask": random_mask,
    "shift_mask": random_shift_mask,
}


def augment(key: jax.Array, images: jax.Array, policy: str) -> jax.Array:
    """Images after one random draw of an augmentation each.

    Args:
        key: a typed key.
        images: (B, H, W, C) float32 in [0, 1], or video clips (B, T, H, W, C), whose frames share one draw.
        policy: a key of `AUGMENTATIONS`, or `module:function`, a function of (key, images (B, H, W, C)); the frames of
            video clips are then additional channels. Static under jit.

    Returns:
        Images of the same shape.

    Raises:
        UserError: there is no such augmentation.
    """
    function = lookup(AUGMENTATIONS, policy, "experts.augment, distill.augment or distill.init_augment", "augmentation")
    if policy == "none":
        return images  # of any shape
    chex.assert_rank(images, {4, 5})
    if images.ndim == 4:
        return function(key, images)
    b, t, h, w, c = images.shape
    frames = function(key, images.transpose(0, 2, 3, 1, 4).reshape(b, h, w, t * c))
    return frames.reshape(b, h, w, t, c).transpose(0, 3, 1, 2, 4)


def draw_crops(key: jax.Array, count: int, height: int, width: int) -> tuple[jax.Array, ...]:
    """Random boxes inside height x width images: top, left, height, width, each (count,) float32 in pixels."""
    by_area, by_aspect, by_top, by_left = jax.random.split(key, 4)
    area = jax.random.uniform(by_area, (count,), minval=MIN_AREA, maxval=1.0)
    aspect = MAX_ASPECT ** jax.random.uniform(by_aspect, (count,), minval=-1.0, maxval=1.0)
    tall = height * jnp.minimum(jnp.sqrt(area / aspect), 1.0)
    wide = width * jnp.minimum(jnp.sqrt(area * aspect), 1.0)
    top = (height - tall) * jax.random.uniform(by_top, (count,))
    left = (width - wide) * jax.random.uniform(by_left, (count,))
    return top, left, tall, wide


def crop(images: jax.Array, top, left, height, width) -> jax.Array:
    """Each image's box, stretched back to the full size by bilinear interpolation.

    Written as two matrix products, since gathers and their transposes are slow.

    Args:
        images: (B, H, W, C).
        top, left, height, width: (B,) in pixels, fractions allowed. Pixel centers are at integers + 1/2, and the
            border repeats.
    """
    rows = _interpolation(top, height, images.shape[1])
    columns = _interpolation(left, width, images.shape[2])
    exact = jax.lax.Precision.HIGHEST  # accelerators would otherwise round pixels to bfloat16 or TF32
    images = jnp.einsum("bih,bhwc->biwc", rows, images, precision=exact)
    return jnp.einsum("bjw,biwc->bijc", columns, images, precision=exact)


def flip(images: jax.Array, flipped: jax.Array) -> jax.Array:
    """Mirror left-right the images (B, H, W, C) whose entry in `flipped` (B,) bool is true."""
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def shift(images: jax.Array, frames) -> jax.Array:
    """Rotate each image (B, H, W, C) to the right along its width, by `frames` (B,) whole pixels."""
    return jax.vmap(lambda image, by: jnp.roll(image, by, axis=1))(images, frames)


def draw_bands(key: jax.Array, count: int, height: int, width: int) -> tuple[jax.Array, ...]:
    """Random bands of rows and of columns.

    Returns:
        First row, number of rows, first column, number of columns, each (count,) int32.
    """
    bands = []
    for by_side, side in zip(jax.random.split(key), (height, width), strict=True):
        by_length, by_start = jax.random.split(by_side)
        length = jax.random.randint(by_length, (count,), 0, int(MAX_MASK * side) + 1)
        bands += [jax.random.randint(by_start, (count,), 0, side - length + 1), length]
    return tuple(bands)


def mask(images: jax.Array, top, tall, left, wide) -> jax.Array:
    """Images (B, H, W, C) with rows top .. top + tall - 1 and columns left .. left + wide - 1 set to 0."""
    rows, columns = jnp.arange(images.shape[1]), jnp.arange(images.shape[2])
    row_remains = (rows < top[:, None]) | (rows >= (top + tall)[:, None])
    column_remains = (columns < left[:, None]) | (columns >= (left + wide)[:, None])
    return images * (row_remains[:, :, None] & column_remains[:, None, :])[..., None]


def _interpolation(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """(B, size, size): row i holds the weights of the source pixels under output pixel i, linear between the two."""
    pixels = jnp.arange(size, dtype=jnp.float32)
    source = start[:, None] + (pixels + 0.5) * length[:, None] / size - 0.5
    source = jnp.clip(source, 0.0, size - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(source[:, :, None] - pixels))
