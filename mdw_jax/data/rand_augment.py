"""The published methods' RandAugment (VLD, LoRS, RepBlend: two operations out of ten at level 5 of 10).

Each of the two is drawn from the ten and left out with probability 1/2. At level 5 brightness and sharpness have factor
1, so that they change nothing, as the identity does; what remains are autocontrast, equalize, shears of 0.15,
translations by 5 pixels and rotations by 15 degrees, of either sign. What comes in from outside the image is gray.
"""

import jax
import jax.numpy as jnp

_UNCHANGED = 3  # identity, brightness and sharpness
_AUTOCONTRAST, _EQUALIZE, _SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y, _ROTATE = range(_UNCHANGED, 10)
OPERATIONS = 10
DRAWN = 2
SHEAR, TRANSLATION, ROTATION = 0.15, 5.0, 15 * jnp.pi / 180  # level 5 of 10: half of 0.3, 10 pixels and 30 degrees
GRAY = 128 / 255


def rand_augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Two random operations on each image (B, H, W, C) in [0, 1]; a gradient passes the tables of colors unchanged."""
    for k in jax.random.split(key, DRAWN):
        by_operation, by_chance, by_sign = jax.random.split(k, 3)
        count = images.shape[:1]
        drawn = jax.random.randint(by_operation, count, 0, OPERATIONS)
        operation = jnp.where(jax.random.bernoulli(by_chance, 0.5, count), drawn, 0)
        images = apply(operation, jax.random.rademacher(by_sign, count, jnp.float32), images)
    return images


def apply(operation: jax.Array, sign: jax.Array, images: jax.Array) -> jax.Array:
    """One operation on each image.

    Args:
        operation: (B,) numbers below `OPERATIONS`.
        sign: (B,) 1 or -1, the direction of shears, translations and rotations.
        images: (B, H, W, C) in [0, 1].
    """
    chosen = lambda kind: (operation == kind)[:, None, None, None]
    colors = jnp.where(chosen(_AUTOCONTRAST), autocontrast(images), jnp.where(chosen(_EQUALIZE), equalize(images), images))
    images = images + jax.lax.stop_gradient(colors - images)
    moved = warp(images, _matrices(operation, sign, *images.shape[1:3]))
    return jnp.where((operation >= _SHEAR_X)[:, None, None, None], moved, images)


def autocontrast(images: jax.Array) -> jax.Array:
    """Each channel of each image stretched to [0, 1]; a constant one stays as it is."""
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    return jnp.where(high > low, (images - low) / jnp.where(high > low, high - low, 1), images)


def equalize(images: jax.Array) -> jax.Array:
    """Each channel of each image with an even histogram of 256 levels, as PIL and the published code compute it."""
    levels = jnp.clip(jnp.round(images * 255), 0, 255).astype(jnp.int32)

    def channel(levels):
        histogram = jnp.bincount(levels.ravel(), length=256)
        last = histogram[levels.max()]  # the highest level in use does not count
        step = (histogram.sum() - last) // 255
        before = jnp.cumsum(histogram) - histogram
        table = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table[levels], levels)

    by_channel = jax.vmap(jax.vmap(channel, in_axes=-1, out_axes=-1))
    return by_channel(levels).astype(images.dtype) / 255


def warp(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Each image at the places that a matrix maps its pixels to, bilinear, gray outside.

    Args:
        images: (B, H, W, C).
        matrices: (B, 2, 3): output (x, y, 1) -> input (x, y), in pixels, with pixel centers at integers.
    """
    height, width = images.shape[1:3]
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    points = jnp.stack([x, y, jnp.ones_like(x)]).astype(jnp.float32)

    def one(image, matrix):
        source_x, source_y = jnp.einsum("ij,jhw->ihw", matrix, points, precision=jax.lax.Precision.HIGHEST)
        return jax.vmap(lambda channel: jax.scipy.ndimage.map_coordinates(
            channel, (source_y, source_x), order=1, mode="constant", cval=GRAY), in_axes=-1, out_axes=-1)(image)

    return jax.vmap(one)(images, matrices)


def _matrices(operation, sign, height: int, width: int) -> jax.Array:
    """(B, 2, 3) matrices for `warp`; the identity where an operation moves nothing.

    Shears fix the first row or column, rotations the point (W / 2, H / 2), as the published code has it.
    """
    amount = lambda kind, size: jnp.where(operation == kind, size, 0.0) * sign
    angle = amount(_ROTATE, ROTATION)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    center_x, center_y = width / 2, height / 2
    to_x = center_x * (1 - cos) + center_y * sin - amount(_TRANSLATE_X, TRANSLATION)
    to_y = center_y * (1 - cos) - center_x * sin - amount(_TRANSLATE_Y, TRANSLATION)
    rows = [[cos, -sin - amount(_SHEAR_X, SHEAR), to_x], [sin - amount(_SHEAR_Y, SHEAR), cos, to_y]]
    return jnp.stack([jnp.stack(row, -1) for row in rows], 1)
