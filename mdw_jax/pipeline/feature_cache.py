"""Features of frozen backbones, computed once and cached in the run directory."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.streaming import map_batches
from mdw_jax.errors import UserError
from mdw_jax.io.file_rows import FileRows
from mdw_jax.io.row_cache import cached_rows
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import compiled_inputs
from mdw_jax.runtime.mesh import replicated

_BATCH = 100  # images


def image_features(model: DualEncoder, images: Mapping[str, np.ndarray | LazyImages], cache: Path, key: str,
                   dtype: str = "float32") -> dict[str, np.ndarray | FileRows]:
    """Pooled features of a model's frozen backbone, each split's computed once.

    After an interruption, or when the process was killed, the rows that were computed are in the cache, and the next call
    goes on after them (`io.row_cache`). Streamed images are embedded on all devices.

    Args:
        model: the model; it takes (B, H, W, C) images.
        images: {split: (N, H, W, C) uint8 images}.
        cache: directory of the cache.
        key: sha256 of the data and of the backbone's weights.
        dtype: in which the features are kept: float32 or float16.

    Returns:
        {split: (N, F) of `dtype`}, mapped from the disk where it is large, and left there where it is larger.

    Raises:
        UserError: some features are not finite.
    """
    features: dict[str, np.ndarray | FileRows] = {}
    for split, rows in images.items():  # students ask for fewer splits than experts
        streamed = isinstance(rows, LazyImages)
        # The frozen weights go to all devices once.
        forward = compiled_inputs(model.with_frozen(replicated(model.frozen)) if streamed else model)
        features[split] = cached_rows(cache / f"images-{key[:16]}-{split}", key, len(rows), dtype,
                                      functools.partial(_rows, forward, rows, dtype))
    return features


def _rows(forward: Callable, images: np.ndarray | LazyImages, dtype: str, start: int) -> Iterator[np.ndarray]:
    """Features of the images from `start` on, a batch at a time. UserError if some are not finite."""
    for batch in map_batches(forward, images, _BATCH, start=start):
        exact = np.asarray(batch)
        with np.errstate(over="ignore"):
            rows = exact.astype(dtype)
        if not np.isfinite(exact).all():
            raise UserError("the backbone's features of some images are NaN or infinite: its weights (model.weights) "
                            "are damaged; fetch them again.")
        if not np.isfinite(rows).all():
            raise UserError(f"the backbone's features reach {np.abs(exact).max():.3g}, too large for {dtype}; set "
                            "model.feature_dtype to float32.")
        yield rows
