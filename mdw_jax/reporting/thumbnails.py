"""Many images in a page of bounded size: as large as their budget allows."""

import base64
import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from mdw_jax.reporting.figures import data_uri

SIDE = 112  # pixels per side at most, where the budget allows it
_SMALLER = (112, 96, 80, 64, 48, 32, 24)  # sides with lossy compression, tried in this order
_SAMPLE = 24  # images whose sizes are taken for those of all
_CHUNK = 64  # images held in memory as models see them
_QUALITY = 75

# Rows -> (n, H, W, 3) uint8, as they are displayed.
Images = Callable[[np.ndarray], np.ndarray]


class Thumbnails(NamedTuple):
    """Images as data URIs.

    Attributes:
        sources: of the first images, as many as fit the budget.
        words: how they are shown: "shown at 64 of 224 pixels, compressed (WebP)".
        size: width and height of the images before they were made smaller.
        is_small: whether images have so few pixels that they are enlarged without smoothing.
    """

    sources: list[str]
    words: str
    size: tuple[int, int]
    is_small: bool


def thumbnails(images: Images, count: int, budget: float) -> Thumbnails:
    """Images at the largest size that fits a budget: first as `figures.data_uri`, then lossy and ever smaller.

    Args:
        images: gives rows of them.
        count: how many there are, at least one.
        budget: bytes in the page that all of them may take; as many as fit are returned if even the smallest do not.
    """
    sample = images(np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int)))
    side = max(sample.shape[1:3])
    forms = [(SIDE, False), *((smaller, True) for smaller in _SMALLER)]
    for target, lossy in forms:
        size = np.mean([len(_source(image, target, lossy)) for image in sample])
        if size * count <= budget:
            break
    shown = min(count, max(int(budget // size), 1))
    sources = [_source(image, target, lossy) for image in _all(images, shown)]
    words = f"shown at {target} of {side} pixels" if target < side else f"shown at their {side} pixels"
    return Thumbnails(sources, words + ", compressed (WebP)" * lossy, sample.shape[2:0:-1], min(sample.shape[1:3]) < 96)


def _all(images: Images, count: int) -> Iterator[np.ndarray]:
    for begin in range(0, count, _CHUNK):
        yield from images(np.arange(begin, min(begin + _CHUNK, count)))


def _source(image: np.ndarray, side: int, lossy: bool) -> str:
    if not lossy:
        return data_uri(image, side)
    drawn = Image.fromarray(np.ascontiguousarray(image))
    if max(drawn.size) > side:
        drawn.thumbnail((side, side), Image.Resampling.BOX)
    buffer = io.BytesIO()
    drawn.save(buffer, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
