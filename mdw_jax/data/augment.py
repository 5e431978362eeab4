"""Image augmentation on the device: differentiable in the images, one independent draw per image."""

import chex
import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError

POLICIES = ("none", "flip", "crop_flip")
MIN_AREA = 0.5  # smallest crop, as a fraction of the picture
MAX_ASPECT = 4 / 3  # a crop's sides change their ratio by at most this factor


def augment(key: jax.Array, images: jax.Array, policy: str) -> jax.Array:
    """Images after one random draw of `policy` each; the shape stays.

    key: a typed key. images: (B, H, W, C) float32 in [0, 1]. policy (static under jit):
    none; flip, a left-right flip with probability 1/2; crop_flip, a crop of U(1/2, 1) of the area, its aspect ratio
    changed by a log-uniform factor in [3/4, 4/3], stretched to H x W, then flip. The crop is the usual random resized
    crop (Szegedy et al. 2015) with a milder area and aspect: captions speak of the whole picture.
    Raises UserError for an unknown policy.
    """
    if policy not in POLICIES:
        raise UserError(f"there is no augmentation '{policy}'; choose one of {', '.join(POLICIES)}.")
    if policy == "none":
        return images
    chex.assert_rank(images, 4)
    by_flip, by_crop = jax.random.split(key)
    if policy == "crop_flip":
        images = crop(images, *draw_crops(by_crop, *images.shape[:3]))
    return flip(images, jax.random.bernoulli(by_flip, 0.5, images.shape[:1]))


def draw_crops(key: jax.Array, count: int, height: int, width: int) -> tuple[jax.Array, ...]:
    """Random boxes inside height x width pictures: top, left, height, width, each (count,) float32 in pixels."""
    by_area, by_aspect, by_top, by_left = jax.random.split(key, 4)
    area = jax.random.uniform(by_area, (count,), minval=MIN_AREA, maxval=1.0)
    aspect = MAX_ASPECT ** jax.random.uniform(by_aspect, (count,), minval=-1.0, maxval=1.0)
    tall = height * jnp.minimum(jnp.sqrt(area / aspect), 1.0)
    wide = width * jnp.minimum(jnp.sqrt(area * aspect), 1.0)
    top = (height - tall) * jax.random.uniform(by_top, (count,))
    left = (width - wide) * jax.random.uniform(by_left, (count,))
    return top, left, tall, wide


def crop(images: jax.Array, top, left, height, width) -> jax.Array:
    """Each picture's box, stretched back to the full size by bilinear interpolation.

    images: (B, H, W, C); top, left, height, width: (B,) in pixels, fractions allowed; the pixel centres are at
    integers + 1/2 and the border repeats. Written as two matrix products, since gathers and their transposes are slow.
    """
    rows = _interpolation(top, height, images.shape[1])
    columns = _interpolation(left, width, images.shape[2])
    exact = jax.lax.Precision.HIGHEST  # accelerators would otherwise round pixels to bfloat16 or TF32
    images = jnp.einsum("bih,bhwc->biwc", rows, images, precision=exact)
    return jnp.einsum("bjw,biwc->bijc", columns, images, precision=exact)


def flip(images: jax.Array, which: jax.Array) -> jax.Array:
    """Mirror left-right the pictures (B, H, W, C) whose entry in `which` (B,) bool is true."""
    return jnp.where(which[:, None, None, None], images[:, :, ::-1], images)


def _interpolation(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """(B, size, size): row i holds the weights of the source pixels under output pixel i, linear between the two."""
    pixels = jnp.arange(size, dtype=jnp.float32)
    source = start[:, None] + (pixels + 0.5) * length[:, None] / size - 0.5
    source = jnp.clip(source, 0.0, size - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(source[:, :, None] - pixels))
