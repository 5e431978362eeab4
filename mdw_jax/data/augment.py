"""Augmentation on the device: differentiable in the images, one independent draw per image (or clip)."""

import chex
import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError

POLICIES = ("none", "flip", "crop_flip", "shift", "mask", "shift_mask")
MIN_AREA = 0.5  # smallest crop, as a fraction of the picture
MAX_MASK = 0.25  # longest masked band, as a fraction of its axis
MAX_ASPECT = 4 / 3  # a crop's sides change their ratio by at most this factor


def augment(key: jax.Array, images: jax.Array, policy: str) -> jax.Array:
    """Images after one random draw of `policy` each; the shape stays.

    key: a typed key. images: (B, H, W, C) float32 in [0, 1], or clips (B, T, H, W, C), whose frames share one draw.
    policy (static under jit):
    none; flip, a left-right flip with probability 1/2; crop_flip, a crop of U(1/2, 1) of the area, its aspect ratio
    changed by a log-uniform factor in [3/4, 4/3], stretched to H x W, then flip. The crop is the usual random resized
    crop (Szegedy et al. 2015) with a milder area and aspect: captions speak of the whole picture.
    For log-mels (frequency by time): shift, a rotation of the time axis by any number of frames; mask, one band of up
    to a quarter of the frequencies and one of the times become 0, silence (SpecAugment, Park et al. 2019, without its
    warp); shift_mask, both.
    Raises UserError for an unknown policy.
    """
    if policy not in POLICIES:
        raise UserError(f"there is no augmentation '{policy}'; choose one of {', '.join(POLICIES)}.")
    if policy == "none":
        return images
    chex.assert_rank(images, {4, 5})
    if images.ndim == 5:
        b, t, h, w, c = images.shape
        frames = augment(key, images.transpose(0, 2, 3, 1, 4).reshape(b, h, w, t * c), policy)
        return frames.reshape(b, h, w, t, c).transpose(0, 3, 1, 2, 4)
    if policy in ("shift", "mask", "shift_mask"):
        by_shift, by_mask = jax.random.split(key)
        if "shift" in policy:
            images = shift(images, jax.random.randint(by_shift, images.shape[:1], 0, images.shape[2]))
        return mask(images, *draw_bands(by_mask, *images.shape[:3])) if "mask" in policy else images
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


def shift(images: jax.Array, frames) -> jax.Array:
    """Rotate each picture (B, H, W, C) to the right along its width, by `frames` (B,) whole pixels."""
    return jax.vmap(lambda image, by: jnp.roll(image, by, axis=1))(images, frames)


def draw_bands(key: jax.Array, count: int, height: int, width: int) -> tuple[jax.Array, ...]:
    """Random bands of rows and of columns: the first row, how many, the first column, how many, each (count,) int32."""
    bands = []
    for by_side, side in zip(jax.random.split(key), (height, width), strict=True):
        by_length, by_start = jax.random.split(by_side)
        length = jax.random.randint(by_length, (count,), 0, int(MAX_MASK * side) + 1)
        bands += [jax.random.randint(by_start, (count,), 0, side - length + 1), length]
    return tuple(bands)


def mask(images: jax.Array, top, tall, left, wide) -> jax.Array:
    """Pictures (B, H, W, C) with rows top .. top + tall - 1 and columns left .. left + wide - 1 set to 0."""
    rows, columns = jnp.arange(images.shape[1]), jnp.arange(images.shape[2])
    kept_rows = (rows < top[:, None]) | (rows >= (top + tall)[:, None])
    kept_columns = (columns < left[:, None]) | (columns >= (left + wide)[:, None])
    return images * (kept_rows[:, :, None] & kept_columns[:, None, :])[..., None]


def _interpolation(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """(B, size, size): row i holds the weights of the source pixels under output pixel i, linear between the two."""
    pixels = jnp.arange(size, dtype=jnp.float32)
    source = start[:, None] + (pixels + 0.5) * length[:, None] / size - 0.5
    source = jnp.clip(source, 0.0, size - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(source[:, :, None] - pixels))
