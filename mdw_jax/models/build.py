"""The model of a config: its image tower by name, its heads, its frozen backbone."""

import functools
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config.options import PRETRAINED
from mdw_jax.config.plugins import is_path, made_by
from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.errors import UserError
from mdw_jax.io.checkpoint import load_checkpoint, save_checkpoint
from mdw_jax.io.files import digest
from mdw_jax.models.dual_encoder import DualEncoder, TextTower, dual_encoder
from mdw_jax.models.image.convnet import convnet
from mdw_jax.models.image.factor_pretraining import pretrain
from mdw_jax.models.image.mobilenet import mobilenet
from mdw_jax.models.image.pretrained import pretrained
from mdw_jax.models.image.spectrogram import spectrogram_tower
from mdw_jax.models.image.tower import Tower
from mdw_jax.models.image.vit import vit
from mdw_jax.models.weights.hub import read_tensors
from mdw_jax.runtime.rng import named_key

_PRETRAIN_WORLD = 1_000_003


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
        return spectrogram_tower(lambda rgb: build_tower(m, rgb, seed, cache), shape)
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
    return build(shape) if shape[-1] != 1 else spectrogram_tower(build, shape)


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
