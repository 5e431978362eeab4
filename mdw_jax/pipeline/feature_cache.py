"""Features of frozen backbones, computed once and cached in the run directory."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.streaming import map_batches
from mdw_jax.errors import UserError
from mdw_jax.io.keyed import read_keyed_arrays, write_keyed_arrays
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import compiled_inputs
from mdw_jax.runtime import preemption
from mdw_jax.runtime.mesh import replicated

_BATCH = 100  # images


def image_features(model: DualEncoder, images: Mapping[str, np.ndarray | LazyImages], cache: Path, key: str
                   ) -> dict[str, np.ndarray]:
    """Pooled features of a model's frozen backbone, each split's computed once.

    After an interruption the rows that were computed are in the cache, and the next call goes on after them.

    Args:
        model: the model; it takes (B, H, W, C) images.
        images: {split: (N, H, W, C) uint8 images}.
        cache: directory of the cache.
        key: sha256 of the data and of the backbone's weights.

    Returns:
        {split: (N, F) float32}.

    Raises:
        UserError: some features are not finite.
    """
    path = cache / f"images-{key[:16]}.safetensors"
    features = read_keyed_arrays(path, key) or {}
    missing = [split for split in images if split not in features]  # students ask for fewer splits than experts
    if missing:
        streamed = any(isinstance(images[split], LazyImages) for split in missing)
        # Streamed images are embedded on all devices: the frozen weights go there once.
        forward = compiled_inputs(model.with_frozen(replicated(model.frozen)) if streamed else model)
        for split in missing:
            features = _add_split(forward, images[split], split, features, path, key)
        if not all(np.isfinite(features[split]).all() for split in missing):
            raise UserError("the backbone's features of some images are NaN or infinite: its weights (model.weights) "
                            "are damaged; fetch them again.")
        write_keyed_arrays(path, features, key)
    return {split: features[split] for split in images}


def _add_split(forward: Callable, images, split: str, features: dict, path: Path, key: str) -> dict:
    """`features` and those of one more split; when interrupted, its first rows are cached as `<split>.part`."""
    features, partial = dict(features), f"{split}.part"
    batches = [features.pop(partial)] if partial in features else []

    def save_partial():
        if batches:
            write_keyed_arrays(path, {**features, partial: np.concatenate(batches)}, key)

    with preemption.save_on_interrupt(save_partial):
        for batch in map_batches(forward, images, _BATCH, start=sum(map(len, batches))):
            batches.append(np.asarray(batch))
            preemption.raise_if_interrupted()
    return {**features, split: np.concatenate(batches)}
