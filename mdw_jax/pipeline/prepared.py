"""From a config to what training needs: data, one noise draw, frozen features, the model."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config.options import PRETRAINED
from mdw_jax.data import noise as noise_files
from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.streaming import concat_map
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest
from mdw_jax.models.build import _build_model
from mdw_jax.models.dual_encoder import DualEncoder, TextTower
from mdw_jax.models.embedding import Inputs, compiled_inputs, to_float
from mdw_jax.models.text.encoder import load_text_encoder
from mdw_jax.models.text.features import TextFeatures, text_features
from mdw_jax.pipeline.feature_cache import image_features
from mdw_jax.pipeline.inputs import load_pairs


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What every preset of a run shares. key: sha256 of data, text features and model (no noise in it).

    train_images: (N, ...) uint8 pixels in full mode (on the host if `data.stream`), float features in projection mode.
    texts: features of all captions by the frozen encoder. captions: what the model takes for them: the same, or, where
    the encoder is trained, their token ids (K, L), -1 beyond the last.
    """

    pairs: Pairs
    fingerprint: str
    texts: TextFeatures
    captions: TextFeatures
    text_tower: TextTower | None
    model: DualEncoder
    train_images: jax.Array | LazyImages
    val: Inputs
    test: Inputs
    key: str

    def train(self, noise: noise_files.Noise) -> Inputs:
        """The training pairs as `noise` pairs them."""
        return Inputs(self.train_images, jnp.asarray(self.captions.train), np.asarray(noise.image_of))

    def read(self, texts):
        """Distilled texts -> (M, d) features in the space of `texts`, whichever the model takes."""
        tower = self.text_tower
        return texts if tower is None else np.asarray(tower.encode(tower.params, jnp.asarray(texts)))


def prepare(config: ConfigDict) -> Prepared:
    """Load the data and compute, or read back, its frozen features (cached in `<run.dir>/cache`)."""
    cache = Path(config.run.dir) / "cache"
    pairs = load_pairs(config.data, cache)
    fingerprint = pairs.fingerprint
    text = config.text
    texts = text_features(pairs, text.encoder, cache_dir=cache, dim=text.dim, seed=text.seed, path=text.path or None,
                          pooling=text.pooling, max_tokens=text.max_tokens)
    captions, text_tower = _trained_text(text, pairs, texts) if text.train else (texts, None)
    m = config.model
    model, weights = _build_model(m, pairs.train.images.shape[1:], texts.train.shape[1], config.run.seed, cache,
                                  text_tower)
    # Settings of the vit say nothing of another tower. The weights count by what is in them, not by their path.
    said = {k: v for k, v in m.to_dict().items() if k != "weights" and (m.tower == "vit" or not k.startswith("vit_"))}
    key = digest(fingerprint, captions.key, said, weights)
    images = {name: getattr(pairs, name).images for name in ("train", "val", "test")}
    if m.mode == "projection":
        images = image_features(model, images, cache, digest(fingerprint, weights))
    # On the device once: the loops only ever index them. Training images that are streamed stay where they are.
    inputs = {
        name: Inputs(jnp.asarray(np.asarray(images[name])), jnp.asarray(getattr(captions, name)),
                     jnp.asarray(getattr(pairs, name).image_of, jnp.int32))
        for name in ("val", "test")
    }
    train_images = images["train"] if isinstance(images["train"], LazyImages) else jnp.asarray(images["train"])
    return Prepared(pairs, fingerprint, texts, captions, text_tower, model, train_images, inputs["val"],
                    inputs["test"], key)


def _trained_text(text: ConfigDict, pairs: Pairs, texts: TextFeatures) -> tuple[TextFeatures, TextTower]:
    """Token ids of all captions, and the encoder that is trained on them."""
    encoder, params, tokenize = load_text_encoder(text.path, text.pooling, text.max_tokens)
    splits = [getattr(pairs, name).captions for name in ("train", "val", "test")]
    ids, mask = tokenize([caption for split in splits for caption in split])
    parts = np.split(np.where(mask, ids, -1), np.cumsum([len(split) for split in splits])[:-1])
    key = digest("trained", texts.key)
    return TextFeatures(parts[0], parts[1], parts[2], key), TextTower(encoder, jax.device_put(params))


def student_model(config: ConfigDict, prepared: Prepared) -> tuple[DualEncoder, Inputs, Inputs]:
    """The model that students of an evaluation train, and val and test as it sees them.

    With `evaluate.tower` "" it is the distilled one: `prepared`'s own, unchanged. Otherwise (cross-architecture
    evaluation) it has that tower instead, in `evaluate.mode`, with `evaluate.weights`; all else is as in
    `config.model`, text features and image size included. In projection mode the tower is frozen and its val and test
    features are cached in `<run.dir>/cache`: sensible for a pretrained tower only, for the features of a convnet or
    vit that nothing has trained are random; take mode full for those.

    Build it once a run: what is compiled for a model is compiled again for its double. Raises UserError for a tower
    that does not fit the images, or without its weights.
    """
    e = config.evaluate
    if not e.tower:
        return prepared.model, prepared.val, prepared.test
    if e.tower == "mobilenet" and not Path(e.weights).is_file():
        raise UserError(f"there are no MobileNet weights at '{e.weights}'; set evaluate.weights to a .q8.npz file.")
    if e.tower in PRETRAINED and not e.weights:
        raise UserError(f"the tower '{e.tower}' needs weights; set evaluate.weights to a .safetensors file, a folder "
                        "that holds one, or a Hub model's name.")
    m = ConfigDict({**config.model.to_dict(), "tower": e.tower, "mode": e.mode, "weights": e.weights})
    cache = Path(config.run.dir) / "cache"
    model, weights = _build_model(m, prepared.pairs.train.images.shape[1:], prepared.texts.train.shape[1],
                                  config.run.seed, cache, prepared.text_tower, "evaluate.tower")
    images = {"val": prepared.pairs.val.images, "test": prepared.pairs.test.images}
    if m.mode == "projection":
        images = image_features(model, images, cache, digest(prepared.fingerprint, weights))
    val, test = (getattr(prepared, name)._replace(images=jnp.asarray(np.asarray(images[name])))
                 for name in ("val", "test"))
    return model, val, test


def backbone_features(prepared: Prepared):
    """The jitted function from images to features (B, F) of the frozen backbone, or, where it moves, of its first
    weights; and those of all training images, (N, F) float32."""
    model = prepared.model
    if model.mode == "projection":
        return compiled_inputs(model), np.asarray(prepared.train_images)
    params = model.init(jax.random.key(0))["image"]
    forward = jax.jit(lambda rows: model.pool(params, model.feature_map(params, to_float(rows))))
    return forward, np.asarray(concat_map(forward, prepared.train_images, 100))


