"""The model of a config: its image tower by name, its heads, its frozen backbone."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config.plugins import error_summary, is_path, lookup, made_by, source_digest
from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.errors import UserError
from mdw_jax.io.checkpoint import load_checkpoint, save_checkpoint
from mdw_jax.io.files import digest
from mdw_jax.models.dual_encoder import DualEncoder, TextTower, dual_encoder
from mdw_jax.models.image.convnet import convnet
from mdw_jax.models.image.factor_pretraining import pretrain
from mdw_jax.models.image.mobilenet import mobilenet
from mdw_jax.models.image.pretrained import SPECS, pretrained
from mdw_jax.models.image.spectrogram import spectrogram_tower
from mdw_jax.models.image.tower import Tower
from mdw_jax.models.image.vit import vit
from mdw_jax.models.weights.hub import fetch, files_digest, read_tensors, weight_files
from mdw_jax.models.weights.shipped import SHIPPED, shipped_or_local
from mdw_jax.runtime.rng import named_key

_PRETRAINING_SEED = 1_000_003  # of the scenes that factor pretraining learns from: no experiment uses it


@dataclasses.dataclass(frozen=True)
class BuildContext:
    """What a tower builder needs beside the model section.

    Attributes:
        seed: `run.seed`, for pretraining.
        cache: directory that keeps pretrained weights.
        setting: the config key that named the tower, for messages: "model.tower" or "evaluate.tower".
        shapes_only: published weights are drawn at random instead of read, and nothing is pretrained.
    """

    seed: int = 0
    cache: Path = Path()
    setting: str = "model.tower"
    shapes_only: bool = False

    @property
    def weights_setting(self) -> str:
        """The config key of the tower's weights."""
        return f"{self.setting.partition('.')[0]}.weights"


class TowerBuilder(NamedTuple):
    """How a named tower is made. The keys of the model section that it takes stand in `options.TOWER_SETTINGS`.

    Attributes:
        build: (model section, image shape (H, W, C), context) -> `Tower`.
        rgb: it takes RGB images. Images of one channel are then taken for log-mels: see `spectrogram_tower`.
    """

    build: Callable[[ConfigDict, tuple[int, ...], BuildContext], Tower]
    rgb: bool = False


def _convnet(m: ConfigDict, shape, context: BuildContext) -> Tower:
    tower = convnet(shape, m.patches, m.widths)
    return tower if context.shapes_only or not m.pretrain_epochs else _factor_pretrained(tower, m, shape, context)


def _vit(m: ConfigDict, shape, context: BuildContext) -> Tower:
    return vit(shape, m.vit_patch, m.vit_width, m.vit_depth, m.vit_heads)


def _mobilenet(m: ConfigDict, shape, context: BuildContext) -> Tower:
    path = shipped_or_local(m.weights)
    if not path.is_file():
        raise UserError(f"there are no MobileNet weights at '{m.weights}'; set {context.weights_setting} to a .q8.npz "
                        f"file, or to one of {', '.join(SHIPPED)}, which the package holds.")
    return mobilenet(path)


def _pretrained(name: str, m: ConfigDict, shape, context: BuildContext) -> Tower:
    if context.shapes_only:
        return pretrained(name, shape)
    if not m.weights:
        raise UserError(f"the tower '{name}' needs weights; set {context.weights_setting} to a .safetensors file, a "
                        "directory that holds one, or a Hub model's name.")
    origin = {"kind": "published", "name": name, "source": m.weights,
              "sha256": files_digest(weight_files(fetch(m.weights)))}
    return pretrained(name, shape, read_tensors(m.weights))._replace(layout=origin)


TOWERS: dict[str, TowerBuilder] = {
    "convnet": TowerBuilder(_convnet),
    "vit": TowerBuilder(_vit),
    "mobilenet": TowerBuilder(_mobilenet, rgb=True),
    **{name: TowerBuilder(functools.partial(_pretrained, name), rgb=True) for name in SPECS},
}


def build_tower(m: ConfigDict, shape, context: BuildContext) -> Tower:
    """The image tower of a model section.

    Args:
        m: a model section; `m.tower` is a name in `TOWERS`, or `module:function` of (shape) that returns a `Tower`.
        shape: (H, W, C) of one image; other ranks, such as video clips (T, H, W, C), only for `module:function`.
        context: see `BuildContext`.
    Raises:
        UserError: an unknown name, or a tower that does not fit the images or lacks its weights.
    """
    if is_path(m.tower):
        return made_by(m.tower, context.setting, Tower, shape)
    builder = lookup(TOWERS, m.tower, context.setting, "image tower")
    if len(shape) != 3:
        raise UserError(f"the tower '{m.tower}' takes images (H, W, C), not video clips {tuple(shape)}; set "
                        f"{context.setting} to one of your own, as module:function.")
    if builder.rgb and shape[-1] not in (1, 3):
        raise UserError(f"the tower '{m.tower}' takes images of 1 or 3 channels, not {tuple(shape)}; set "
                        f"{context.setting} to another.")
    if builder.rgb and shape[-1] == 1:
        return spectrogram_tower(lambda rgb_shape: builder.build(m, rgb_shape, context), shape)
    return builder.build(m, shape, context)


def tower_without_weights(m: ConfigDict, shape) -> Tower:
    """The tower of a model section where only its shapes count: random instead of published or pretrained weights."""
    return build_tower(m, shape, BuildContext(shapes_only=True))


def build_model(m: ConfigDict, shape, text_dim: int, text_tower: TextTower | None,
                context: BuildContext) -> tuple[DualEncoder, str]:
    """The dual encoder of a model section.

    Args:
        m: a model section.
        shape: (H, W, C) of one image.
        text_dim: width of the frozen text features.
        text_tower: the text encoder, if it is trained too.
        context: see `BuildContext`.
    Returns:
        The model, and a digest of its backbone's shapes and values, and of the source of one from outside the package.
    Raises:
        UserError: what `build_tower` and `dual_encoder` raise, or a tower from outside the package fails.
    """
    tower = build_tower(m, shape, context)
    key = named_key(context.seed, "backbone")
    backbone = _checked_init(tower, key, m, shape, context) if is_path(m.tower) else tower.init(key)
    model = dual_encoder(tower, backbone, text_dim, mode=m.mode, dim=m.dim, image_head=m.image_head, tau=m.tau,
                         dtype=m.dtype, text_tower=text_tower)
    sources = [source_digest(m.tower)] if is_path(m.tower) else []
    return model, digest(*map(np.asarray, jax.tree.leaves(backbone)), *sources)


def _checked_init(tower: Tower, key, m: ConfigDict, shape, context: BuildContext):
    """First parameters of a tower from outside the package.

    Raises:
        UserError: the tower fails, or its features are not of its width.
    """
    images = jax.ShapeDtypeStruct((2, *shape), m.dtype)
    try:
        params = tower.init(key)
        features = jax.eval_shape(tower.features, params, images)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{context.setting} names '{m.tower}', whose tower fails for images {images.shape} "
                        f"({error_summary(error)}); fix it (--debug shows where).") from error
    if getattr(features, "shape", None) != (2, tower.width):
        raise UserError(f"{context.setting} names '{m.tower}', whose features of images {images.shape} are of shape "
                        f"{getattr(features, 'shape', None)} and not {(2, tower.width)}; make width that of the pooled "
                        "feature map.")
    return params


def _factor_pretrained(tower: Tower, m: ConfigDict, shape, context: BuildContext) -> Tower:
    """The conv net with weights pretrained once and kept in the run directory: later starts only read them."""
    if shape[0] != shape[1] or shape[2] != 3:
        raise UserError(f"model.pretrain_epochs learns from scenes, which are square and RGB, not {tuple(shape)}; set "
                        "it to 0.")
    seed = context.seed
    key = digest("pretrain", shape, m.patches, m.widths, m.pretrain_epochs, m.pretrain_images, seed)
    path = context.cache / f"backbone-{key[:16]}.safetensors"
    params = load_checkpoint(path, tower.init(named_key(seed, "pretrain")), key)
    if params is None:
        # A disjoint generated set: no experiment has its seed, and none of its captions are used.
        train = scenes(train=m.pretrain_images, val=1, test=1, size=shape[0], seed=_PRETRAINING_SEED).train
        params = pretrain(tower, train, epochs=m.pretrain_epochs, seed=seed).init(None)
        save_checkpoint(path, params, key)
    return tower._replace(init=lambda key: params)
