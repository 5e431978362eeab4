"""Coreset presets: which real pairs each of them takes."""

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import DistilledSet
from mdw_jax.io.records import stored_array
from mdw_jax.io.trajectory import open_trajectory, read_snapshot
from mdw_jax.method import coresets
from mdw_jax.models.embedding import embeddings
from mdw_jax.pipeline.experts import experts_stage
from mdw_jax.pipeline.prepared import Prepared, backbone_features
from mdw_jax.pipeline.preset_run import Preset
from mdw_jax.runtime.rng import named_generator


def coreset(preset: Preset, prepared: Prepared, index: int) -> DistilledSet:
    """Set `index` of a coreset preset; sets differ by the caption drawn for each image and what the method draws."""
    c, image_of = preset.config, preset.noise.image_of
    count, seed = pairs_asked(preset, prepared), c.run.seed
    generator = named_generator(seed, preset.name, index)
    if preset.name == "random":
        return _as_set(preset, prepared, coresets.random_pairs(generator, image_of, count))
    candidates = coresets.one_caption_each(generator, image_of)
    if preset.name == "forgetting":
        rows = coresets.most_forgotten(generator, _forgotten(preset, prepared), candidates, image_of, count)
        return _as_set(preset, prepared, rows)
    features = coresets.joint_features(backbone_features(prepared)[1], prepared.texts.train[candidates],
                                       image_of[candidates])
    if preset.name == "herding":
        chosen = coresets.herding(features, count)
    elif preset.name == "k_center":
        chosen = coresets.k_center(features, count, int(generator.integers(len(candidates))))
    else:
        chosen = coresets.clip_filter(_similarity(preset, prepared)[candidates], features, count,
                                      int(generator.integers(2**31)))
    return _as_set(preset, prepared, candidates[chosen])


def pairs_asked(preset: Preset, prepared: Prepared) -> int:
    """M, checked against the data. Raises UserError where there are not as many images."""
    wanted, there = preset.config.distill.pairs, len(prepared.pairs.train.images)
    if wanted > there:
        raise UserError(f"distill.pairs is {wanted} but there are only {there} training images; lower it.")
    return wanted


def real_pairs(preset: Preset, prepared: Prepared, rows):
    """Pixels in [0, 1] and texts, as the model learns from them, of training rows, as the noise draw pairs them."""
    images = prepared.pairs.train.images[preset.noise.image_of[rows]].astype(np.float32) / 255
    return images, np.asarray(prepared.model.text_inputs(jnp.asarray(prepared.captions.train[rows])), np.float32)


def _as_set(preset: Preset, prepared: Prepared, rows) -> DistilledSet:
    images, texts = real_pairs(preset, prepared, rows)
    return DistilledSet(images, texts, {}, {}, 1.0, "nce")


def _forgotten(preset: Preset, prepared: Prepared):
    """(K,) forgetting events of each pair, the mean over the experts' networks."""
    experts_stage(preset, prepared)
    pairs = len(preset.noise.image_of)
    packed = stored_array(preset.experts / "right.npy", (None, None, (pairs + 7) // 8))
    right = np.unpackbits(packed, axis=-1, count=pairs)
    return np.mean([coresets.forgetting_events(history) for history in right.astype(bool)], axis=0)


def _similarity(preset: Preset, prepared: Prepared):
    """(K,) cosine of each pair, mean over the experts' networks at their last stored snapshot (PDS asks CLIP)."""
    record = experts_stage(preset, prepared)
    model, data = prepared.model, prepared.train(preset.noise)
    cosines = []
    for n in range(record["networks"]):
        trajectory = open_trajectory(preset.experts / f"net_{n:02d}", key=preset.experts_key)
        params = jax.tree.map(jnp.asarray, read_snapshot(trajectory, trajectory.length - 1))
        v, t = embeddings(model, params, data)
        cosines.append(np.asarray((v[data.image_of] * t).sum(-1)))
    return np.mean(cosines, axis=0)
