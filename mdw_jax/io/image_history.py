"""What a set looked like on its way: the first images at a few outer steps, and where their updates were strongest."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from mdw_jax.errors import UserError
from mdw_jax.io.files import write_atomically

RECORD = "record.safetensors"
IMAGES, SIDE, BETWEEN = 24, 128, 5  # at most so many images, pixels a side, moments between the first and the last


def moments(steps: int) -> list[int]:
    """Numbers of outer steps done at which images are kept: 0, `BETWEEN` evenly spaced ones, `steps`."""
    return sorted({round(steps * k / (BETWEEN + 1)) for k in range(BETWEEN + 2)})


def begin(images, steps: int) -> np.ndarray:
    """(moments, n, h, w, C) uint8: the images at the start, and room for the others."""
    first = thumbnails(images)
    return np.stack([first, *[np.zeros_like(first)] * (len(moments(steps)) - 1)])


def thumbnails(images) -> np.ndarray:
    """The first images, (M, H, W, C) in [0, 1] or clips' frames in the middle, as (n, h, w, C) uint8 of `SIDE` at most.
    """
    return np.round(255 * np.clip(_small(images), 0, 1)).astype(np.uint8)


def weight_maps(weights) -> np.ndarray:
    """CEO weights of the same images, (M, H, W, 1) -> (n, h, w) float16."""
    return _small(weights)[..., 0].astype(np.float16)


def _small(images) -> np.ndarray:
    images = np.asarray(images)[:IMAGES].astype(np.float32)
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    by = -(-max(images.shape[1:3]) // SIDE)
    n, h, w, channels = images.shape
    by = min(by, h, w)
    return images[:, : h // by * by, : w // by * by].reshape(n, h // by, by, w // by, by, channels).mean((2, 4))


def save(folder: Path, seen: dict) -> None:
    """Write steps (moments,), images and, with CEO, weights into `folder`."""
    write_atomically(folder / RECORD, to_bytes(seen))


def load(folder: Path) -> dict | None:
    """What was saved in `folder`; None for a set without one (coresets). Raises UserError if it is damaged."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        seen = load_file(path)
        if not {"steps", "images"} <= set(seen):
            raise ValueError("parts are missing")
        return seen
    except (SafetensorError, OSError, ValueError):
        raise UserError(f"the record '{path}' is damaged; delete it, and the page does without.") from None
