"""Coreset presets: the pairs that the method chooses, as a set."""

import jax.numpy as jnp
import numpy as np

from mdw_jax.config.plugins import error_summary, is_path, lookup
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import DistilledSet
from mdw_jax.io.records import stored_array
from mdw_jax.method.coresets import CORESETS, Coreset, CoresetInputs, joint_features
from mdw_jax.pipeline.expert_networks import network_embeddings
from mdw_jax.pipeline.experts import experts_stage, kept_pairs
from mdw_jax.pipeline.prepared import Prepared, backbone_features
from mdw_jax.pipeline.preset_run import PresetRun
from mdw_jax.pipeline.sets import real_pairs
from mdw_jax.runtime.rng import named_generator

_BLOCK = 65_536  # pairs compared at a time


def coreset_set(run: PresetRun, prepared: Prepared, index: int) -> DistilledSet:
    """Set `index` of a coreset preset. Sets differ by the caption drawn for each image and by the method's own draws.

    Raises:
        UserError: the preset names no coreset, or its function fails, or returns no rows of that number.
    """
    choose = lookup(CORESETS, run.spec.coreset, f"the coreset of preset '{run.name}'", "coreset")
    kept, image_of = kept_pairs(run, prepared), np.asarray(run.noise.image_of)
    inputs = CoresetInputs(
        image_of=image_of[kept], count=run.config.distill.pairs,
        generator=named_generator(run.config.run.seed, run.name, index),
        features=lambda rows: joint_features(backbone_features(prepared)[1], prepared.texts.train[kept[rows]],
                                             image_of[kept[rows]]),
        history=lambda: _correct_history(run, prepared)[..., kept],
        similarity=lambda: _similarity(run, prepared)[kept])
    rows = kept[_checked(_chosen(choose, inputs, run), inputs, run)]
    image_size = run.config.distill.image_size
    images, texts = real_pairs(prepared, run.noise, rows, image_size)
    return DistilledSet(images, texts, {}, {}, 1.0, "nce", run.config.data.size if image_size else 0)


def _chosen(choose: Coreset, inputs: CoresetInputs, run: PresetRun):
    """What the coreset's function returns. Raises UserError where one from outside the package fails."""
    try:
        return choose(inputs)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if not is_path(run.spec.coreset):
            raise
        raise UserError(f"the coreset '{run.spec.coreset}' of preset '{run.name}' fails ({error_summary(error)}); fix "
                        "it (--debug shows where).") from error


def _checked(rows, inputs: CoresetInputs, run: PresetRun) -> np.ndarray:
    """The rows that a coreset chose. Raises UserError where they are no `count` different training pairs."""
    rows = np.asarray(rows)
    if (rows.shape != (inputs.count,) or rows.dtype.kind not in "iu" or len(np.unique(rows)) != len(rows)
            or rows.min() < 0 or rows.max() >= len(inputs.image_of)):
        raise UserError(f"the coreset '{run.spec.coreset}' of preset '{run.name}' chose no {inputs.count} different "
                        f"pairs of {len(inputs.image_of)}; let it return distinct row numbers, as many as "
                        "distill.pairs says.")
    return rows


def _train_experts(run: PresetRun, prepared: Prepared) -> dict:
    """The record of the experts that a coreset asks. Raises UserError where the preset says that it needs none."""
    if not run.spec.needs_experts:
        raise UserError(f"the coreset '{run.spec.coreset}' of preset '{run.name}' asks for experts; set needs_experts "
                        "of the preset to True.")
    return experts_stage(run, prepared)


def _correct_history(run: PresetRun, prepared: Prepared) -> np.ndarray:
    """(networks, epochs, K) bool: whether each expert network matched each pair correctly within its batch."""
    _train_experts(run, prepared)
    pairs = len(run.noise.image_of)
    packed = stored_array(run.experts.path / "correct.npy", (None, None, (pairs + 7) // 8))
    return np.unpackbits(packed, axis=-1, count=pairs).astype(bool)


def _similarity(run: PresetRun, prepared: Prepared) -> np.ndarray:
    """(K,) cosine of each pair, mean over the expert networks at their last stored snapshot (PDS asks CLIP)."""
    _train_experts(run, prepared)
    data = prepared.train(run.noise)
    networks = network_embeddings(run.experts, prepared.model, data, epoch=-1)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(data.image_of), _BLOCK)]
    return np.mean([np.concatenate([np.asarray((jnp.asarray(images[data.image_of[rows]]) * texts[rows]).sum(-1))
                                    for rows in blocks]) for images, texts in networks], axis=0)
