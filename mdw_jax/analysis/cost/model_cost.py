"""What one image and one caption cost in a model: operations, parameters, activations."""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mdw_jax.analysis.cost.flops import count_flops, jaxprs_of
from mdw_jax.analysis.cost.programs import Programs
from mdw_jax.models.image.conv import as_on_accelerator

# Of each result of a convolution or a product, the normalized and the activated one are kept for the gradient as well.
_KEPT = 3


class ModelCost(NamedTuple):
    """Costs of one row, forward, and sizes.

    Attributes:
        tower: FLOP of the image tower.
        image: FLOP of the trained image branch on its inputs (pixels, or features of a frozen tower).
        text: FLOP of the trained text branch.
        dim: width of the shared space.
        features: width of the tower's features.
        text_dim: width of the text features.
        parameters: trained parameters.
        backbone: parameters of the tower.
        projection: whether the tower is frozen.
        layers: convolutions and products in the tower, which decide how long it takes to compile.
        activations: bytes of the tower's results that a gradient of one image needs.
        pixels: numbers in an image.
        step: FLOP of a gradient of the trained parameters, in units of a forward pass.
    """

    tower: int
    image: int
    text: int
    dim: int
    features: int
    text_dim: int
    parameters: int
    backbone: int
    projection: bool
    layers: int
    activations: int
    pixels: int
    step: float

    @property
    def pair(self) -> int:
        """FLOP of both branches, forward."""
        return self.image + self.text


class TowerShapes(NamedTuple):
    """The tower without weights, to be measured, and the sizes of what is trained.

    Attributes:
        features: (params, images (B, H, W, C)) -> features.
        params: shapes of its parameters.
        image: (H, W, C) of an image.
        sizes: {part of the model: trained parameters}.
    """

    features: Callable
    params: Any
    image: tuple[int, ...]
    sizes: dict[str, int]


_MODELS: dict[str, tuple[ModelCost, TowerShapes]] = {}  # presets of one run share their model: it is traced once


def model_cost(config: ConfigDict, text_dim: int) -> tuple[ModelCost, TowerShapes]:
    """The costs of the model of a resolved config, and its tower.

    Args:
        config: the config.
        text_dim: width of the text features.
    """
    sections = json.dumps([config.data.to_dict(), config.model.to_dict(), text_dim], default=str, sort_keys=True)
    if sections not in _MODELS:
        programs = programs_of(config, text_dim)
        shapes = TowerShapes(programs.tower.features, programs.backbone, programs.image, programs.sizes())
        _MODELS[sections] = _model_cost(config, programs), shapes
    return _MODELS[sections]


def programs_of(config: ConfigDict, text_dim: int) -> Programs:
    """The programs of a resolved config whose text features have that width."""
    changed = ConfigDict(config.to_dict())
    changed.plan.text_dim = text_dim
    return Programs(changed.lock())


def _model_cost(config: ConfigDict, programs: Programs) -> ModelCost:
    text_dim = programs.config.plan.text_dim
    tower, m = programs.tower, config.model
    image = jax.ShapeDtypeStruct((1, *programs.image), jnp.float32)
    with as_on_accelerator():  # where grouped convolutions are convolutions, and counted; on a CPU they are additions
        forward = count_flops(tower.features, programs.backbone, image)
        layers, activations = _layers(tower.features, programs.backbone, image)
    has_head = m.mode == "projection" or m.image_head
    dim = m.dim if has_head else tower.width
    head = functools.partial(_head, dim=dim)
    projection = m.mode == "projection"
    image_branch = (0 if projection else forward) + (head(tower.width) if has_head else 0)
    # A head's first layer needs no gradient by its inputs: two of its three products; the tower's first is little of it.
    first = 2 * dim * (text_dim + (tower.width if projection else 0))
    pair = image_branch + head(text_dim)
    return ModelCost(
        forward, image_branch, head(text_dim), dim, tower.width, text_dim, sum(programs.sizes().values()),
        programs.backbone_size, projection, layers, activations,
        programs.image[0] * programs.image[1] * programs.image[2], (3 * pair - first) / pair)


def _head(inputs: int, dim: int) -> int:
    """FLOP of a projection head (`models.heads`)."""
    return 2 * dim * (inputs + dim)


def _layers(features, params, image) -> tuple[int, int]:
    """How many convolutions and products a forward pass has, and the bytes of their results and what follows them."""
    sizes = list(_results(jax.make_jaxpr(features)(params, image).jaxpr))
    return len(sizes), 4 * _KEPT * sum(sizes)


def _results(jaxpr) -> Iterator[int]:
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.outvars[0].aval.size
        for value in equation.params.values():
            for inner in jaxprs_of(value):
                yield from _results(inner)
