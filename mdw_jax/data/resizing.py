"""Images that are stored at a smaller side than models see: the two directions (`distill.image_size`).

Images of half the side take a quarter of the bytes, so that a set of the same size holds four times as many pairs. The
idea is IDC's (Kim et al. 2022), which stores several small images in the place of one and enlarges them in the loop.
"""

from collections.abc import Sequence

import jax
import numpy as np

from mdw_jax.io.distilled_set import DistilledSet


def enlarged(images, side: int):
    """Stored images as models see them: bilinear, and differentiable.

    Args:
        images: (M, H, W, C), square.
        side: at which models see them, pixels; 0, or the side they have: they stay as they are.

    Returns:
        (M, side, side, C).
    """
    if side in (0, images.shape[1]):
        return images
    return jax.image.resize(images, (len(images), side, side, images.shape[-1]), "linear", antialias=False)


def shrunk(images, side: int) -> np.ndarray:
    """Real images at the side at which they are stored: bilinear with antialiasing.

    Args:
        images: (M, H, W, C) float, square.
        side: pixels; 0: they stay as they are.

    Returns:
        (M, side, side, C).
    """
    if side in (0, images.shape[1]):
        return images
    return np.asarray(jax.image.resize(images, stored_shape(images.shape, side), "linear"))


def stored_shape(shape: Sequence[int], side: int) -> tuple[int, ...]:
    """The shape (..., H, W, C) of images that models see, once they are stored at `side` (0: as they are)."""
    return (*shape[:-3], side, side, shape[-1]) if side else tuple(shape)


def seen_images(distilled: DistilledSet):
    """The images of a set as models see them, float32 (M, H, W, C), or video clips (M, T, H, W, C)."""
    return enlarged(distilled.images, distilled.seen_size)
