"""Features of frozen backbones, computed once and kept in the run folder."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.streaming import map_batches
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest, write_atomically
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import compiled_inputs
from mdw_jax.runtime import preemption
from mdw_jax.runtime.mesh import replicated


def _embedded(forward, rows, name: str, features: dict, path: Path) -> dict:
    """`features` with those of one more split; on the way, what is done of it is under `<name>.part`."""
    features, part = dict(features), f"{name}.part"
    done = [features.pop(part)] if part in features else []

    def keep():
        if done:
            _keep_features(path, {**features, part: np.concatenate(done)})

    with preemption.save_on_interrupt(keep):
        for found in map_batches(forward, rows, 100, start=sum(map(len, done))):
            done.append(np.asarray(found))
            preemption.raise_if_interrupted()
    return {**features, name: np.concatenate(done)}


def image_features(model: DualEncoder, images: dict, cache: Path, key: str) -> dict:
    """Pooled features of the frozen backbone, each split's computed once: {split: (N, F) float32}.

    What is interrupted keeps the rows it has, and goes on after them.
    """
    path = cache / f"images-{key[:16]}.safetensors"
    features = _kept_features(path)
    missing = [name for name in images if name not in features]  # students ask for less than experts
    if missing:
        streamed = any(isinstance(images[name], LazyImages) for name in missing)
        # Those are embedded on all devices: what is frozen goes there once.
        forward = compiled_inputs(model.with_frozen(replicated(model.frozen)) if streamed else model)
        for name in missing:
            features = _embedded(forward, images[name], name, features, path)
        if not all(np.isfinite(features[name]).all() for name in missing):
            raise UserError("the backbone's features of some images are NaN or infinite: its weights (model.weights) "
                            "are damaged; fetch them again.")
        _keep_features(path, features)
    return {name: features[name] for name in images}


def _keep_features(path: Path, features: dict) -> None:
    write_atomically(path, save(features, {"sha256": digest(*(features[name] for name in sorted(features)))}))


def _kept_features(path: Path) -> dict:
    """What `_keep_features` wrote; {} if there is nothing, or something else: a damaged cache is only a cache."""
    try:
        with safe_open(path, "np") as file:
            features = {name: file.get_tensor(name) for name in sorted(file.keys())}
            said = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return {}
    return features if said == digest(*features.values()) else {}
