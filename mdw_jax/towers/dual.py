"""The dual encoder: an image branch and a text branch into one space.

Trained and matched are the parameters `{"image": ..., "text": ...}`. What the image branch sees ("inputs") depends on
the mode:

* `projection` (RepBlend): the backbone is frozen and inputs are its pooled features (B, F); the image branch is a head.
* `full` (VLD, LoRS): inputs are the images themselves; the image branch is the backbone, with a head if asked for.

`inputs` is the frozen, differentiable way from images to inputs. Everything downstream (experts, unroll, students) works
on inputs and never asks for the mode; in `projection` mode the unroll therefore runs in feature space and one
vector-Jacobian product carries its gradient to the pixels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError
from mdw_jax.towers.heads import ProjectionHead
from mdw_jax.towers.tower import Tower

MODES = ("projection", "full")


@dataclasses.dataclass(frozen=True)
class DualEncoder:
    """Pure functions of one dual encoder; see the module docstring.

    init: key -> {"image": ..., "text": ...}.
    inputs: images (B, H, W, C) in [0, 1] -> what `embed_image` takes.
    embed_image: (params["image"], inputs) -> (B, D), unit length. embed_text: (params["text"], (B, d)) -> (B, D), unit.
    feature_map: (params["image"], images) -> the backbone's last map; pool: (params["image"], map) -> (B, F);
    embed_map: (params["image"], map) -> (B, D), unit length: the rest of the way; grid: map -> (B, h, w, F).
    """

    mode: str
    tau: float
    init: Callable[[Any], Any]
    inputs: Callable[[Any], Any]
    embed_image: Callable[[Any, Any], Any]
    embed_text: Callable[[Any, Any], Any]
    feature_map: Callable[[Any, Any], Any]
    pool: Callable[[Any, Any], Any]
    embed_map: Callable[[Any, Any], Any]
    grid: Callable[[Any], Any]

    def logits(self, params, inputs, texts):
        """`s_ij = cos(f_v(v_i), f_t(t_j)) / tau`: (B, B)."""
        return self.embed_image(params["image"], inputs) @ self.embed_text(params["text"], texts).T / self.tau


def unit(x):
    """Scale rows to unit length; the zero row stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def dual_encoder(tower: Tower, backbone, text_dim: int, *, mode: str, dim: int, image_head: bool = False,
                 tau: float = 0.07) -> DualEncoder:
    """Build a `DualEncoder`.

    backbone: parameters of the frozen tower in `projection` mode, ignored in `full` mode. text_dim: width of the frozen
    text features. dim: width D of the shared space; in `full` mode without `image_head` it is the tower's own width, as
    in VLD and LoRS. Raises UserError for an unknown mode.
    """
    if mode not in MODES:
        raise UserError(f"there is no mode '{mode}'; set model.mode to one of {', '.join(MODES)}.")
    has_head = mode == "projection" or image_head
    dim = dim if has_head else tower.width
    head = ProjectionHead(dim)

    def init(key):
        keys = dict(zip(("backbone", "image", "text"), jax.random.split(key, 3), strict=True))
        image = {}
        if mode == "full":
            image["backbone"] = tower.init(keys["backbone"])
        if has_head:
            image["head"] = head.init(keys["image"], jnp.zeros((1, tower.width)))["params"]
        return {"image": image, "text": head.init(keys["text"], jnp.zeros((1, text_dim)))["params"]}

    def embed_pooled(params, features):
        return unit(head.apply({"params": params["head"]}, features) if has_head else features)

    def weights(params):
        return params["backbone"] if mode == "full" else backbone

    def feature_map(params, images):
        return tower.feature_map(weights(params), images)

    def pool(params, feature_map):
        return tower.pool(weights(params), feature_map)

    def embed_map(params, feature_map):
        return embed_pooled(params, pool(params, feature_map))

    def inputs(images):
        return images if mode == "full" else tower.features(backbone, images)

    def embed_image(params, inputs):
        return embed_map(params, feature_map(params, inputs)) if mode == "full" else embed_pooled(params, inputs)

    def embed_text(params, texts):
        return unit(head.apply({"params": params}, texts))

    return DualEncoder(mode, tau, init, inputs, embed_image, embed_text, feature_map, pool, embed_map, tower.grid)
