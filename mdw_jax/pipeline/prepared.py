"""From a config to what training needs: data, frozen features and the model."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config.defaults import base
from mdw_jax.config.options import TOWER_SETTINGS
from mdw_jax.config.plugin_values import plugin_sources
from mdw_jax.config.plugins import is_path
from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.noise import Noise
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.stored_rows import stays_on_host
from mdw_jax.data.streaming import concat_map
from mdw_jax.io.file_rows import FileRows
from mdw_jax.io.files import digest
from mdw_jax.models.build import BuildContext, build_model
from mdw_jax.models.dual_encoder import DualEncoder, TextTower
from mdw_jax.models.embedding import Inputs, compiled_inputs, to_float
from mdw_jax.models.text.encoder import load_text_encoder
from mdw_jax.models.text.features import TextFeatures, text_features
from mdw_jax.pipeline.feature_cache import image_features
from mdw_jax.pipeline.inputs import load_pairs
from mdw_jax.runtime.agreement import Facts
from mdw_jax.runtime.processes import agree, several_processes

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What all presets of a run share.

    Attributes:
        pairs: the data set, without noise.
        fingerprint: sha256 of the data set.
        texts: features of all captions by the frozen text encoder.
        captions: what the model takes for captions: `texts`, or, where the text encoder is trained, their token ids
            (K, L), -1 beyond the last one.
        text_tower: the text encoder, where it is trained.
        model: the model.
        train_images: (N, H, W, C) uint8 images in full mode (on the host if `data.stream`), (N, F) float features in
            projection mode, of type `model.feature_dtype`.
        val, test: these splits as the model sees them.
        key: sha256 of the data, the text features and the model. The noise is not part of it.
    """

    pairs: Pairs
    fingerprint: str
    texts: TextFeatures
    captions: TextFeatures
    text_tower: TextTower | None
    model: DualEncoder
    train_images: jax.Array | LazyImages | FileRows
    val: Inputs
    test: Inputs
    key: str

    def train(self, noise: Noise) -> Inputs:
        """The training split, with the pairs that a noise draw makes."""
        texts = self.captions.train
        return Inputs(self.train_images, texts if stays_on_host(texts) else jnp.asarray(texts),
                      np.asarray(noise.image_of))

    def text_features_of(self, texts) -> np.ndarray:
        """Distilled texts, (M, d) features or (M, L, h) embedded tokens, as (M, d) features in the space of `texts`."""
        tower = self.text_tower
        return texts if tower is None else np.asarray(tower.encode(tower.params, jnp.asarray(texts)))


def prepare(config: ConfigDict) -> Prepared:
    """Load the data, compute its frozen features or read them from `<run.dir>/cache`, and build the model.

    Args:
        config: a resolved config.

    Raises:
        UserError: the data cannot be read, or the model does not fit them.
    """
    cache = Path(config.run.dir) / "cache"
    pairs = load_pairs(config.data, cache)
    fingerprint, text = pairs.fingerprint, config.text
    agree(_data_facts(pairs, fingerprint))
    texts = text_features(pairs, text.encoder, cache_dir=cache, dim=text.dim, seed=text.seed, path=text.path or None,
                          pooling=text.pooling, max_tokens=text.max_tokens, dtype=text.dtype)
    captions, text_tower = _trained_text(text, pairs, texts) if text.train else (texts, None)
    model, weights = build_model(config.model, pairs.train.images.shape[1:], texts.train.shape[1], text_tower,
                                 BuildContext(config.run.seed, cache))
    if is_path(config.evaluate.tower):  # a mistake in it is found now and not when all sets are distilled
        _students_model(config, pairs, texts, text_tower)
    sources = _reader_sources(config, pairs)
    dtype = config.model.feature_dtype
    images = _images_as_seen(model, pairs, SPLITS, cache, (digest(fingerprint, weights, *sources), dtype))
    # All splits go to the device once, for the loops only ever index them; training images that are streamed do not.
    train_images = images["train"] if stays_on_host(images["train"]) else jnp.asarray(images["train"])
    val, test = (Inputs(jnp.asarray(np.asarray(images[name])), jnp.asarray(getattr(captions, name)),
                        jnp.asarray(getattr(pairs, name).image_of, jnp.int32)) for name in ("val", "test"))
    # The weights count by their values, not by their path; in `weights` is also the source of a tower of one's own.
    key = digest(fingerprint, captions.key, _model_settings(config.model), weights, *sources)
    agree({"features": {"of captions (key)": captions.key[:16], "of images, with the model (key)": key[:16]},
           "functions of your own": {"sources (sha256)": plugin_sources(config)}})
    return Prepared(pairs, fingerprint, texts, captions, text_tower, model, train_images, val, test, key)


def _data_facts(pairs: Pairs, fingerprint: str) -> Facts:
    """What the processes of a run have to agree on before they compute with data that each has read for itself."""
    if not several_processes():
        return {}
    facts: dict[str, int | str] = {}
    for name in SPLITS:
        split = getattr(pairs, name)
        facts |= {f"{name} images": len(split.images), f"{name} captions": len(split.captions),
                  f"{name} captions (sha256)": digest(split.captions)[:16],
                  f"{name} pairs (sha256)": digest(split.image_of)[:16]}
    return {"data": facts | {"whole (sha256)": fingerprint[:16]}}


def student_model(config: ConfigDict, prepared: Prepared) -> tuple[DualEncoder, Inputs, Inputs]:
    """The model that students of an evaluation train, and val and test as it sees them.

    With `evaluate.tower` "" it is the model of the distillation, `prepared.model` itself. Otherwise (cross-architecture
    evaluation) it has that image tower, in `evaluate.mode`, with `evaluate.weights`; all else is as in `config.model`,
    text features and image size included. In projection mode the tower is frozen, and its val and test features are
    cached in `<run.dir>/cache`: useful for pretrained towers only, for a convnet or vit would be random.

    Call it once per run: everything that is compiled for a model is compiled again for an equal one.

    Args:
        config: a resolved config.
        prepared: what `prepare` returned for it.

    Raises:
        UserError: the tower does not fit the images, or lacks its weights.
    """
    if not config.evaluate.tower:
        return prepared.model, prepared.val, prepared.test
    model, weights = _students_model(config, prepared.pairs, prepared.texts, prepared.text_tower)
    key = digest(prepared.fingerprint, weights, *_reader_sources(config, prepared.pairs))
    images = _images_as_seen(model, prepared.pairs, ("val", "test"), Path(config.run.dir) / "cache",
                             (key, config.model.feature_dtype))
    val, test = (getattr(prepared, name)._replace(images=jnp.asarray(np.asarray(images[name])))
                 for name in ("val", "test"))
    return model, val, test


def _students_model(config: ConfigDict, pairs: Pairs, texts: TextFeatures, text_tower: TextTower | None
                    ) -> tuple[DualEncoder, str]:
    """The model with the tower of `evaluate.tower`, and the digest of its backbone."""
    settings = config.evaluate
    section = ConfigDict({**config.model.to_dict(), "tower": settings.tower, "mode": settings.mode,
                          "weights": settings.weights})
    context = BuildContext(config.run.seed, Path(config.run.dir) / "cache", "evaluate.tower")
    return build_model(section, pairs.train.images.shape[1:], texts.train.shape[1], text_tower, context)


def _reader_sources(config: ConfigDict, pairs: Pairs) -> tuple[str, ...]:
    """The source of a data reader of one's own, where the fingerprint of its data does not cover decoded pixels."""
    lazy = any(isinstance(getattr(pairs, name).images, LazyImages) for name in SPLITS)
    return plugin_sources(config, "data") if lazy else ()


def tower_settings(model: ConfigDict, tower: str) -> dict:
    """The keys of a model section that the image tower called `tower` takes, without its weights."""
    names = TOWER_SETTINGS.get(tower, ())  # a tower from outside the package takes none
    return {name: value for name, value in model.to_dict().items() if name in names and name != "weights"}


def first_backbone(model: DualEncoder) -> dict | None:
    """Parameters of the image branch with the backbone's first weights, where it is trained; None where it is frozen."""
    return None if model.mode == "projection" else model.init(jax.random.key(0))["image"]


def frozen_features_of(model: DualEncoder, params: dict | None, images):
    """Features (B, F) of images (B, H, W, C) in [0, 1] by the frozen backbone, or, where it is trained, by `params`."""
    return model.inputs(images) if params is None else model.pool(params, model.feature_map(params, images))


def backbone_features(prepared: Prepared) -> tuple[Callable, Any]:
    """The frozen backbone, or, where it is trained, the backbone with its first weights.

    Returns:
        The jitted function from images (B, H, W, C) to features (B, F), and the features of all training images,
        (N, F), float32 or as they are stored (`model.feature_dtype`): convert the rows that you take.
    """
    model = prepared.model
    if model.mode == "projection":
        images = prepared.train_images
        return compiled_inputs(model), images if stays_on_host(images) else np.asarray(images)
    params = first_backbone(model)
    forward = jax.jit(lambda images: frozen_features_of(model, params, to_float(images)))
    return forward, np.asarray(concat_map(forward, prepared.train_images, 100))


def _images_as_seen(model: DualEncoder, pairs: Pairs, splits: Sequence[str], cache: Path, stored: tuple[str, str]) -> dict:
    """{split: its images as the model takes them}: uint8 in full mode, features in projection mode.

    `stored`: the key of the features, and the type in which they are kept.
    """
    images, (key, dtype) = {name: getattr(pairs, name).images for name in splits}, stored
    if model.mode != "projection":
        return images
    return image_features(model, images, cache, key if dtype == "float32" else digest(key, dtype), dtype)


def _model_settings(model: ConfigDict) -> dict:
    """A model section without the settings of other towers and without the path of the weights."""
    of_towers = {name for names in TOWER_SETTINGS.values() for name in names}
    shared = {name: value for name, value in model.to_dict().items() if name not in of_towers}
    if shared["feature_dtype"] == base().model.feature_dtype:  # older than this setting are most keys
        del shared["feature_dtype"]
    return {**shared, **tower_settings(model, model.tower)}


def _trained_text(text: ConfigDict, pairs: Pairs, texts: TextFeatures) -> tuple[TextFeatures, TextTower]:
    """Token ids of all captions, and the text encoder that is trained on them."""
    encoder, params, tokenize = load_text_encoder(text.path, text.pooling, text.max_tokens)
    splits = [getattr(pairs, name).captions for name in SPLITS]
    ids, mask = tokenize([caption for split in splits for caption in split])
    parts = np.split(np.where(mask, ids, -1), np.cumsum([len(split) for split in splits])[:-1])
    key = digest("trained", texts.key)
    return TextFeatures(parts[0], parts[1], parts[2], key), TextTower(encoder, jax.device_put(params))
