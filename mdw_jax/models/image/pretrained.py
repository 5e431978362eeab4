"""Image towers with published weights, by name, and those weights as parameters."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mdw_jax.errors import UserError
from mdw_jax.models.image.clip import CLIPS, clip_vision, hugging_face_name
from mdw_jax.models.image.nfnet import NFNETS
from mdw_jax.models.image.resnet import RESNETS
from mdw_jax.models.image.timm_vit import VITS
from mdw_jax.models.image.tower import Tower, mean_over_space
from mdw_jax.models.image.vit_layers import resize_positions
from mdw_jax.models.weights.convert import assemble


class PretrainedSpec(NamedTuple):
    """What makes a tower of a module.

    Attributes:
        module: image shape (H, W, C) -> module, which takes normalized images.
        mean, std: of each channel, as the weights' publisher normalized images in [0, 1].
        name_of: dotted name of a tensor in this package -> its name among the weights.
        positions: name, among the weights, of the table of positions; "" for a conv net, which has none.
    """

    module: Callable[[Any], nn.Module]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name_of: Callable[[str], str] = str
    positions: str = ""


# From timm's `pretrained_cfg` of the default weights of each name, and CLIP's own.
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_spec(config: dict) -> PretrainedSpec:
    """CLIP's image tower of a Hugging Face configuration."""
    return PretrainedSpec(functools.partial(clip_vision, config), *_CLIP, hugging_face_name,
                  "vision_model.embeddings.position_embedding.weight")


def _any_shape(module: nn.Module) -> Callable[[Any], nn.Module]:
    return lambda shape: module


SPECS: dict[str, PretrainedSpec] = {
    **{name: PretrainedSpec(_any_shape(module), *_IMAGENET) for name, module in {**NFNETS, **RESNETS}.items()},
    **{name: PretrainedSpec(module, *_HALF, positions="pos_embed") for name, module in VITS.items()},
    **{name: clip_spec(config) for name, config in CLIPS.items()},
}


def pretrained(name: str, image_shape, tensors: dict[str, np.ndarray] | None = None) -> Tower:
    """A tower that has published weights.

    Args:
        name: one of `SPECS`.
        image_shape: (H, W, 3). Conv nets take any, Transformers any that is made of whole patches.
        tensors: the weights: timm's for timm's names, Hugging Face's `CLIPModel` or `CLIPVisionModelWithProjection` for
            CLIP; PyTorch name -> array in PyTorch layout. Tensors that the tower does not have (classifiers) are
            ignored. None: `init` draws random ones.
    Raises:
        UserError: an unknown name, an image shape that does not fit, or tensors that are missing or of another shape
            (names the first few).
    """
    if name not in SPECS:
        raise UserError(f"there is no pretrained tower '{name}'; choose one of {', '.join(SPECS)}.")
    return tower_of(SPECS[name], name, image_shape, tensors)


def tower_of(spec: PretrainedSpec, name: str, image_shape, tensors=None) -> Tower:
    """The tower of a spec; the rest as for `pretrained`.

    Gradients reach the collection "params" alone. The other one, "batch_stats" (frozen batch normalization), is a
    constant of the tower's functions.
    """
    if len(image_shape) != 3 or image_shape[-1] != 3:
        raise UserError(f"the tower '{name}' takes images (H, W, 3), not {tuple(image_shape)}.")
    module = spec.module(tuple(image_shape))
    tokens = bool(spec.positions)

    def everything(module, images):
        return module.pool(module(images)) if tokens else module(images)

    initialize = functools.partial(module.init, method=everything)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(initialize, jax.random.key(0), images)
    if tensors is None:
        params, constants = None, _neutral(shapes.get("batch_stats", {}))
    else:
        if spec.positions in tensors:
            table = resize_positions(tensors[spec.positions], module.grid, module.native)
            tensors = {**tensors, spec.positions: table}
        variables = assemble(_layout(shapes, spec.name_of), tensors, f"one {name}")
        params, constants = variables["params"], variables.get("batch_stats", {})

    jitted = jax.jit(initialize)  # once: a new function would be compiled at each call

    def init(key):
        return jitted(key, jnp.zeros(images.shape))["params"] if params is None else params

    def apply(params, x, method=None):
        return module.apply({"params": params, "batch_stats": constants}, x, method=method)

    def feature_map(params, images):
        return apply(params, _normalize(images, spec))

    def pool(params, feature_map):
        return apply(params, feature_map, "pool")

    def grid(feature_map):
        b, _, width = feature_map.shape
        return feature_map[:, 1:].reshape(b, *module.grid, width)

    if tokens:
        return Tower(name, init, feature_map, module.features, pool, grid, spec.std)
    return Tower(name, init, feature_map, module.features, mean_over_space, std=spec.std)


def _normalize(images, spec):
    """(B, H, W, 3) in [0, 1] -> the same, in its own dtype, as the weights' publisher normalized it."""
    return (images - jnp.asarray(spec.mean, images.dtype)) / jnp.asarray(spec.std, images.dtype)


def _neutral(statistics):
    """Statistics that do not change their input: means of 0, variances of 1, in the shapes of `statistics`."""
    return unflatten_dict({path: np.full(leaf.shape, path[-1] == "var", np.float32)
                           for path, leaf in flatten_dict(statistics).items()})


_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}


def _layout(shapes, name_of):
    """Yield, for every leaf of the variables, its name among the weights, its path here, and the weight's shape.

    Modules have the same names, with "_N" for the N-th of a list: `stages_1_0/conv1/kernel` is
    `stages.1.0.conv1.weight`.
    """
    for path, leaf in flatten_dict(shapes).items():
        *modules, last = path[1:]
        name = re.sub(r"_(?=\d)", ".", ".".join((*modules, _LEAVES.get(last, last))))
        shape = {2: (1, 0), 4: (3, 2, 0, 1)}[leaf.ndim] if last == "kernel" else range(leaf.ndim)
        yield name_of(name), path, tuple(leaf.shape[axis] for axis in shape)
