"""How the first images of a set changed during distillation, and where their last updates were strongest."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from mdw_jax.errors import UserError
from mdw_jax.io.checksums import read_verified, write_listed

RECORD = "record.safetensors"
IMAGES, SIDE, BETWEEN = 24, 128, 5  # at most: images, pixels per side, moments between the first and the last


def moments(steps: int) -> list[int]:
    """The numbers of outer steps after which images are recorded: 0, `BETWEEN` evenly spaced ones, `steps`."""
    return sorted({round(steps * k / (BETWEEN + 1)) for k in range(BETWEEN + 2)})


def begin(images, steps: int) -> np.ndarray:
    """Make the record of a distillation of `steps` outer steps.

    Args:
        images: (M, H, W, C) in [0, 1], or video clips (M, T, H, W, C), before the first step.

    Returns:
        (moments, n, h, w, C) uint8: the thumbnails at the start, zero for the other moments.
    """
    first = thumbnails(images)
    return np.stack([first, *[np.zeros_like(first)] * (len(moments(steps)) - 1)])


def thumbnails(images) -> np.ndarray:
    """The first images, (M, H, W, C) in [0, 1] or the middle frames of video clips, as (n, h, w, C) uint8."""
    return np.round(255 * np.clip(_shrunk(images), 0, 1)).astype(np.uint8)


def weight_maps(weights) -> np.ndarray:
    """Grad-CAM pixel weights of the same images, (M, H, W, 1) -> (n, h, w) float16."""
    return _shrunk(weights)[..., 0].astype(np.float16)


def _shrunk(images) -> np.ndarray:
    """The first images, averaged over blocks of pixels to `SIDE` at most."""
    images = np.asarray(images)[:IMAGES].astype(np.float32)
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    factor = -(-max(images.shape[1:3]) // SIDE)
    n, h, w, channels = images.shape
    factor = min(factor, h, w)
    blocks = images[:, : h // factor * factor, : w // factor * factor].reshape(
        n, h // factor, factor, w // factor, factor, channels)
    return blocks.mean((2, 4))


def save(path: Path, history: Mapping[str, np.ndarray]) -> None:
    """Write the history of a set into its directory.

    Args:
        path: the set's directory.
        history: "steps" (moments,) int, "images" (moments, n, h, w, C) uint8 and, with Grad-CAM pixel weights,
            "weights" (n, h, w) float16.
    """
    write_listed(path / RECORD, to_bytes(dict(history)))


def load(path: Path) -> dict[str, np.ndarray] | None:
    """Read what `save` wrote; None for a set without a history (coresets). Raises UserError if it is damaged."""
    file = path / RECORD
    if not file.exists():
        return None
    try:
        history = from_bytes(read_verified(file))
        if not {"steps", "images"} <= set(history):
            raise ValueError("parts are missing")
        return history
    except (SafetensorError, OSError, ValueError):
        raise UserError(f"the record '{file}' is damaged; delete it, and the report leaves it out.") from None
