"""Distilled sets of a run: where they lie, what they start from, and what students see of them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.data.noise import Noise
from mdw_jax.data.resizing import enlarged, shrunk
from mdw_jax.io.distilled_set import DistilledSet
from mdw_jax.io.files import digest
from mdw_jax.method.distill import Method
from mdw_jax.method.students import StudentData
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import compiled_inputs
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun

_CHUNK = 100  # images of a set that a frozen backbone sees at a time


def set_folder(run: PresetRun, index: int) -> Path:
    """The directory of distilled set `index` of a preset."""
    return run.sets.path / f"set_{index}"


def set_key(run: PresetRun, index: int) -> str:
    """Digest of everything that distilled set `index` of a preset depends on."""
    return digest(run.sets.key, index)


def real_pairs(prepared: Prepared, noise: Noise, rows: np.ndarray, image_size: int = 0
               ) -> tuple[np.ndarray, np.ndarray]:
    """Training pairs as distillation starts from them and coresets consist of them.

    Args:
        prepared: the data and the model.
        noise: which image each caption is paired with.
        rows: (M,) rows into the training captions.
        image_size: side at which the images are stored, `distill.image_size`; 0: as they are.

    Returns:
        Images (M, H, W, C) float32 in [0, 1] and texts as the model learns from them, (M, d) or (M, L, h) float32.
    """
    images = prepared.pairs.train.images[noise.image_of[rows]].astype(np.float32) / 255
    texts = np.asarray(prepared.model.text_inputs(jnp.asarray(prepared.captions.train[rows])), np.float32)
    return shrunk(images, image_size), texts


def to_distilled_set(learned: dict, method: Method) -> DistilledSet:
    """The learned tensors of a distillation (`DistillState.learned` or `.average`) as a set in host memory.

    P is rounded to half precision, as it is stored: what students are scored on is what the file holds.
    """
    arrays = jax.tree.map(lambda x: np.asarray(x, np.float32), learned)
    linear = arrays["inner_lr"] if "inner_lr" in arrays else jax.tree.map(np.exp, arrays["log_inner_lr"])
    steps = {branch: float(size) for branch, size in linear.items()}
    p = {name: array.astype(np.float16).astype(np.float32) for name, array in arrays["correspondence"].items()}
    return DistilledSet(arrays["images"], arrays["texts"], p, steps, method.alpha, method.loss,
                        method.seen_size)


def student_data(model: DualEncoder, distilled: DistilledSet) -> StudentData:
    """A distilled set as students with the image tower of `model` see it."""
    inputs = compiled_inputs(model, _CHUNK)(enlarged(jnp.asarray(distilled.images), distilled.seen_size))
    p = {name: jnp.asarray(value) for name, value in distilled.correspondence.items()}
    return StudentData(inputs, jnp.asarray(distilled.texts), p, dict(distilled.step_sizes), distilled.loss,
                       distilled.alpha)
