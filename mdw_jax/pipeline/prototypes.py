"""Prototypes as the start of a distilled set: their images, fitted in parts that are kept, so that a run can go on."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mdw_jax.data.resizing import enlarged
from mdw_jax.io.keyed import read_keyed_arrays, write_keyed_arrays
from mdw_jax.method.objective import method_of
from mdw_jax.method.prototypes import Inversion, Prototypes, make_inversion, prototypes
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.jit import jit_with_frozen
from mdw_jax.pipeline.experts import experts_stage, kept_pairs
from mdw_jax.pipeline.prepared import Prepared, backbone_features, first_backbone, frozen_features_of
from mdw_jax.pipeline.preset_run import PresetRun, read_division
from mdw_jax.pipeline.sets import real_pairs
from mdw_jax.pipeline.start import expert_features
from mdw_jax.runtime import preemption
from mdw_jax.runtime.processes import broadcast_from_main, is_main
from mdw_jax.runtime.progress import progress
from mdw_jax.runtime.rng import named_generator

START = "start.safetensors"  # the images that are fitted so far, in the directory of the set
MOST_PAIRS = 50_000  # of more clean pairs, so many random ones are clustered
_PART = 25  # images fitted at a time


def prototype_pairs(run: PresetRun, prepared: Prepared, index: int, directory: Path, key: str
                    ) -> tuple[np.ndarray, np.ndarray]:
    """Images (M, H, W, C) in [0, 1] as they are stored, and texts (M, d), of the prototypes of set `index`.

    Args:
        run: the preset; its experts are trained if they are not there.
        prepared: data and model.
        index: number of the set.
        directory: of the set; finished parts are kept there.
        key: of the set.

    Raises:
        UserError: there are too few clean pairs.
    """
    settings, count = run.config.distill, run.config.distill.pairs
    stored = broadcast_from_main(lambda: read_keyed_arrays(directory / START, key)) or {}
    if len(stored.get("images", ())) == count:  # a resumed run need not cluster again
        return stored["images"], stored["texts"]
    generator = named_generator(run.config.run.seed, "prototypes", run.name, index)
    rows = clean_rows(run, prepared, generator)
    image_of = np.asarray(run.noise.image_of)[rows]
    features, texts = (np.asarray(array[of_pairs], np.float32) for array, of_pairs in (
        (backbone_features(prepared)[1], image_of), (prepared.texts.train, rows)))
    clusters = prototypes(expert_features(run, prepared, rows), features, texts, count,
                          int(generator.integers(2**31)))
    images, _ = real_pairs(prepared, run.noise, rows[clusters.nearest], settings.image_size)
    if settings.prototype_steps:
        images = _fitted(run, prepared, clusters, images, stored.get("images", images[:0]), directory / START, key)
    return images, clusters.texts


def clean_rows(run: PresetRun, prepared: Prepared, generator: np.random.Generator) -> np.ndarray:
    """Rows of the pairs to cluster: those that the division calls clean, or, where it calls too few so, the likeliest."""
    experts_stage(run, prepared)
    kept, count = kept_pairs(run, prepared), run.config.distill.pairs
    probability = read_division(run)[kept]
    rows = kept[probability >= 0.5]
    if len(rows) < count:
        rows = np.sort(kept[np.argsort(-probability, kind="stable")[:count]])
    return np.sort(generator.choice(rows, MOST_PAIRS, replace=False)) if len(rows) > MOST_PAIRS else rows


def _fitted(run: PresetRun, prepared: Prepared, clusters: Prototypes, images: np.ndarray, done: np.ndarray, path: Path,
            key: str) -> np.ndarray:
    """The images after the fit to their prototypes' features, part after part; `done` are those of finished parts."""
    settings, targets = run.config.distill, clusters.image_features
    center = targets.mean(0)
    scale = np.float32(max(((targets - center) ** 2).sum(1).mean(), 1e-12))
    inversion = Inversion(settings.prototype_steps, settings.prototype_lr, settings.clip_images)
    invert = _compiled_inversion(prepared.model, inversion, method_of(run.config).seen_size)
    params = first_backbone(prepared.model)
    with progress(f"prototypes {run.name}", len(images), "images") as advance:
        advance(len(done))
        while len(done) < len(images):
            preemption.raise_if_interrupted()
            part = slice(len(done), min(len(done) + _PART, len(images)))
            fitted, errors = invert(params, jnp.asarray(images[part]), jnp.asarray(targets[part]), scale)
            done = np.concatenate([done, np.asarray(fitted)])
            if is_main():
                write_keyed_arrays(path, {"images": done, "texts": clusters.texts}, key)
            advance(part.stop - part.start, error=float(jnp.mean(errors)))
    return done


@functools.lru_cache(maxsize=4)
def _compiled_inversion(model: DualEncoder, inversion: Inversion, seen_size: int) -> Callable:
    """The jitted function (params, images, targets, scale) -> (images, errors)."""
    def features(model, params, images):
        return frozen_features_of(model, params, enlarged(images, seen_size))

    return jit_with_frozen(model, make_inversion(features, inversion))
