"""From a config to what training needs: data, one noise draw, frozen features, the model."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mdw_jax.config.options import PRETRAINED
from mdw_jax.config.plugins import is_path, made_by
from mdw_jax.data import noise as noise_files
from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.registry import load, settings_of
from mdw_jax.data.streaming import chunks, in_chunks
from mdw_jax.data.structured_noise import dulled
from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.errors import UserError
from mdw_jax.io.checkpoint import load_checkpoint, save_checkpoint
from mdw_jax.io.files import digest, write_atomically
from mdw_jax.method.experts import Inputs, to_float
from mdw_jax.models.dual_encoder import DualEncoder, JitWith, TextTower, dual_encoder
from mdw_jax.models.image.convnet import convnet
from mdw_jax.models.image.factor_pretraining import pretrain
from mdw_jax.models.image.mobilenet import mobilenet
from mdw_jax.models.image.pretrained import pretrained
from mdw_jax.models.image.spectrogram import listening
from mdw_jax.models.image.tower import Tower
from mdw_jax.models.image.vit import vit
from mdw_jax.models.text.encoder import load_text_encoder
from mdw_jax.models.text.features import TextFeatures, text_features
from mdw_jax.models.weights.hub import read_tensors
from mdw_jax.runtime import preemption
from mdw_jax.runtime.mesh import replicated
from mdw_jax.runtime.rng import named_key

_PRETRAIN_WORLD = 1_000_003


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


def build_tower(m: ConfigDict, shape, seed: int, cache: Path, setting: str = "model.tower") -> Tower:
    """The image tower of a model section for images of `shape` (H, W, C). seed, cache: for its pretraining. setting:
    the key that named it.

    Towers that come with weights take RGB. Images of one channel are taken for log-mels: see `listening`.
    """
    if is_path(m.tower):
        return made_by(m.tower, setting, Tower, shape)
    if len(shape) != 3:
        raise UserError(f"the tower '{m.tower}' takes images (H, W, C), not clips {tuple(shape)}; set model.tower to "
                        "one of your own, as module:function.")
    if m.tower == "vit":
        return vit(shape, m.vit_patch, m.vit_width, m.vit_depth, m.vit_heads)
    if shape[-1] == 1 and m.tower != "convnet":
        return listening(lambda rgb: build_tower(m, rgb, seed, cache), shape)
    if m.tower == "mobilenet":
        if shape[-1] != 3:
            raise UserError(f"the tower 'mobilenet' takes images of 1 or 3 channels, not {tuple(shape)}; set "
                            "model.tower to another.")
        return mobilenet(m.weights)
    if m.tower in PRETRAINED:
        if not m.weights:
            raise UserError(f"the tower '{m.tower}' needs weights; set model.weights to a .safetensors file, a folder "
                            "that holds one, or a Hub model's name.")
        return pretrained(m.tower, shape, read_tensors(m.weights))
    tower = convnet(shape, m.patches, m.widths)
    return _pretrained(tower, m, shape, seed, cache) if m.pretrain_epochs else tower


def tower_without_weights(m: ConfigDict, shape) -> Tower:
    """The tower of a model section as `mdw plan` needs it: its shapes alone count, and pretrained ones are random."""
    if m.tower == "mobilenet" or m.tower not in PRETRAINED:
        return build_tower(ConfigDict({**m.to_dict(), "pretrain_epochs": 0}), shape, 0, Path())
    build = functools.partial(pretrained, m.tower)
    return build(shape) if shape[-1] != 1 else listening(build, shape)


def _build_model(m: ConfigDict, shape, text_dim: int, seed: int, cache: Path,
                 text_tower: TextTower | None, setting: str = "model.tower") -> tuple[DualEncoder, str]:
    """The model of a model section, and a digest of its backbone: values and shapes, so another tower is another."""
    tower = build_tower(m, shape, seed, cache, setting)
    backbone = tower.init(named_key(seed, "backbone"))
    model = dual_encoder(tower, backbone, text_dim, mode=m.mode, dim=m.dim, image_head=m.image_head, tau=m.tau,
                         dtype=m.dtype, text_tower=text_tower)
    return model, digest(*map(np.asarray, jax.tree.leaves(backbone)))


def _pretrained(tower: Tower, m: ConfigDict, shape, seed: int, cache: Path) -> Tower:
    """The conv net with weights pretrained once and kept in the run folder: later starts only read them."""
    if shape[0] != shape[1] or shape[2] != 3:
        raise UserError(f"model.pretrain_epochs learns from scenes, which are square and RGB, not {tuple(shape)}; set "
                        "it to 0.")
    key = digest("pretrain", shape, m.patches, m.widths, m.pretrain_epochs, m.pretrain_images, seed)
    path = cache / f"backbone-{key[:16]}.safetensors"
    params = load_checkpoint(path, tower.init(named_key(seed, "pretrain")), key)
    if params is None:
        # Another world than any experiment's: its own seed, and none of its captions.
        world = scenes(train=m.pretrain_images, val=1, test=1, size=shape[0], seed=_PRETRAIN_WORLD).train
        params = pretrain(tower, world, epochs=m.pretrain_epochs, seed=seed).init(None)
        save_checkpoint(path, params, key)
    return tower._replace(init=lambda key: params)


_load = functools.lru_cache(maxsize=1)(load)  # presets of one run share it


def load_pairs(data: ConfigDict, cache: Path) -> Pairs:
    """The data set of `config.data`. Of its keys a reader gets those it knows; "", () and 0 stand for its defaults.

    `data.captions` holds for every preset, those without noise included: see `structured.dulled`.
    """
    said = {**data.to_dict(), "cache": data.cache or (str(cache / "shards") if data.name == "webdataset" else "")}
    pairs = _load(data.name, **{key: said[key] for key in settings_of(data.name) if said.get(key)})
    return dulled(pairs, data.captions, data.captions_rate, data.seed) if data.captions else pairs


def noise_of(config: ConfigDict, prepared: Prepared) -> noise_files.Noise:
    """The noise draw of a config: read from `noise.file`, or drawn once and kept in the run folder as a file.

    Raises UserError if the file in the run folder is of another data set.
    """
    n = config.noise
    if n.file:
        if not Path(n.file).exists():
            raise UserError(f"there is no noise file '{n.file}'; set noise.file to a .npz or .npy file, or to ''.")
        read = noise_files.read_index if n.file.endswith(".npy") else noise_files.load
        return read(n.file, prepared.pairs)
    path = Path(config.run.dir) / "noise" / (
        f"{n.protocol}-{n.rate}-seed{n.seed}-{prepared.fingerprint[:8]}.npz")
    if path.exists():
        return noise_files.load(path, prepared.pairs)
    drawn = noise_files.draw(prepared.pairs, n.protocol, n.rate, n.seed)
    noise_files.save(drawn, path)
    return drawn


def _embedded(forward, rows, name: str, features: dict, path: Path) -> dict:
    """`features` with those of one more split; on the way, what is done of it is under `<name>.part`."""
    features, part = dict(features), f"{name}.part"
    done = [features.pop(part)] if part in features else []

    def keep():
        if done:
            _keep_features(path, {**features, part: np.concatenate(done)})

    with preemption.keeping(keep):
        for found in chunks(forward, rows, 100, start=sum(map(len, done))):
            done.append(np.asarray(found))
            preemption.check()
    return {**features, name: np.concatenate(done)}


@functools.lru_cache(maxsize=8)
def compiled_inputs(model: DualEncoder):
    """The jitted function of (B, H, W, C) images, uint8 or float in [0, 1], that gives what `embed_image` takes."""
    def inputs(model, images):
        return model.inputs(to_float(images))

    return JitWith(model, inputs)


def backbone_features(prepared: Prepared):
    """The jitted function from images to features (B, F) of the frozen backbone, or, where it moves, of its first
    weights; and those of all training images, (N, F) float32."""
    model = prepared.model
    if model.mode == "projection":
        return compiled_inputs(model), np.asarray(prepared.train_images)
    params = model.init(jax.random.key(0))["image"]
    forward = jax.jit(lambda rows: model.pool(params, model.feature_map(params, to_float(rows))))
    return forward, np.asarray(in_chunks(forward, prepared.train_images, 100))


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
