"""The dual encoder: an image branch and a text branch into one space.

Trained and matched are the parameters `{"image": ..., "text": ...}`. What the image branch sees ("inputs") depends on
the mode:

* `projection` (RepBlend): the backbone is frozen and inputs are its pooled features (B, F); the image branch is a head.
* `full` (VLD, LoRS): inputs are the images themselves; the image branch is the backbone, with a head if asked for.

Texts are features (B, d) of a frozen encoder and the text branch is a head, unless a `TextTower` is given. Then texts
are token ids (B, L), -1 where there is none, or embedded tokens (B, L, h), zero where there is none; the text branch is
the encoder with a head, the word embeddings frozen. (Zeros get no gradient: a distilled text keeps its length.)

`inputs` and `text_inputs` lead, frozen, from images and from a data set's texts to what distillation can learn.
Experts, unroll and students work on these and never ask for the mode; in `projection` mode the unroll therefore runs in
feature space, and one vector-Jacobian product carries its gradient to the pixels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError
from mdw_jax.models.heads import ProjectionHead
from mdw_jax.models.image.tower import Tower
from mdw_jax.models.text.encoder import TextEncoder

MODES = ("projection", "full")


@dataclasses.dataclass(frozen=True, eq=False)
class DualEncoder:
    """Pure functions of one dual encoder; see the module docstring.

    init: key -> {"image": ..., "text": ...}.
    inputs: images (B, H, W, C) in [0, 1] -> what `embed_image` takes. text_inputs: texts of a data set -> float32 ones.
    embed_image: (params["image"], inputs) -> (B, D), unit length. embed_text: (params["text"], texts) -> (B, D), unit.
    feature_map: (params["image"], images) -> the backbone's last map; pool: (params["image"], map) -> (B, F);
    embed_map: (params["image"], map) -> (B, D), unit length: the rest of the way; grid: map -> (B, h, w, F).
    frozen: the arrays that these functions close over (the frozen backbone, the text encoder as it was loaded), and
    with_frozen: arrays of the same shapes -> the model with them instead; see `jit_with_frozen`.
    """

    mode: str
    tau: float
    init: Callable[[Any], Any]
    inputs: Callable[[Any], Any]
    text_inputs: Callable[[Any], Any]
    embed_image: Callable[[Any, Any], Any]
    embed_text: Callable[[Any, Any], Any]
    feature_map: Callable[[Any, Any], Any]
    pool: Callable[[Any, Any], Any]
    embed_map: Callable[[Any, Any], Any]
    grid: Callable[[Any], Any]
    frozen: Any
    with_frozen: Callable[[Any], "DualEncoder"]

    def logits(self, params, inputs, texts):
        """`s_ij = cos(f_v(v_i), f_t(t_j)) / tau`: (B, B)."""
        return self.embed_image(params["image"], inputs) @ self.embed_text(params["text"], texts).T / self.tau


def unit(x):
    """Scale rows to unit length; the zero row stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


class TextTower(NamedTuple):
    """A pretrained text encoder that is trained along, and its parameters."""

    encoder: TextEncoder
    params: Any

    def embed(self, texts):
        """Token ids (B, L), -1 where there is none -> (B, L, h), zero there; what is embedded already stays."""
        if not jnp.issubdtype(texts.dtype, jnp.integer):
            return texts
        return jnp.where(texts[..., None] >= 0, self.encoder.embed(self.params, jnp.maximum(texts, 0)), 0)

    def encode(self, params, texts):
        """Texts of either form -> (B, d)."""
        embedded = self.embed(texts)
        return self.encoder.encode(params, embedded, (embedded != 0).any(-1))


def dual_encoder(tower: Tower, backbone, text_dim: int, *, mode: str, dim: int, image_head: bool = False,
                 tau: float = 0.07, text_tower: TextTower | None = None, dtype: str = "float32") -> DualEncoder:
    """Build a `DualEncoder`.

    backbone: parameters of the frozen tower in `projection` mode, ignored in `full` mode. text_dim: width of the frozen
    text features. dim: width D of the shared space; in `full` mode without `image_head` it is the tower's own width, as
    in VLD and LoRS. text_tower: the text encoder, if it is to be trained too. dtype: in which the image tower computes;
    parameters, feature maps and features, heads and losses are float32. Raises UserError for an unknown mode.
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
        text = head.init(keys["text"], jnp.zeros((1, text_dim)))["params"]
        if text_tower is not None:
            moving = {name: part for name, part in text_tower.params.items() if name != "word_embeddings"}
            text = {"encoder": moving, "head": text}
        return {"image": image, "text": text}

    def embed_pooled(params, features):
        return unit(head.apply({"params": params["head"]}, features) if has_head else features)

    def weights(params):
        return params["backbone"] if mode == "full" else backbone

    def feature_map(params, images):
        return tower.feature_map(weights(params), images.astype(dtype)).astype(jnp.float32)

    def pool(params, feature_map):
        return tower.pool(weights(params), feature_map.astype(dtype)).astype(jnp.float32)

    def embed_map(params, feature_map):
        return embed_pooled(params, pool(params, feature_map))

    def inputs(images):
        return images if mode == "full" else tower.features(backbone, images.astype(dtype)).astype(jnp.float32)

    def embed_image(params, inputs):
        return embed_map(params, feature_map(params, inputs)) if mode == "full" else embed_pooled(params, inputs)

    def text_inputs(texts):
        return texts if text_tower is None else text_tower.embed(texts)

    def embed_text(params, texts):
        if text_tower is None:
            return unit(head.apply({"params": params}, texts))
        return unit(head.apply({"params": params["head"]}, text_tower.encode(params["encoder"], texts)))

    def with_frozen(frozen):
        text = text_tower and text_tower._replace(params=frozen["text"])
        return dual_encoder(tower, frozen["backbone"], text_dim, mode=mode, dim=dim, image_head=image_head, tau=tau,
                            text_tower=text, dtype=dtype)

    frozen = {"backbone": backbone if mode == "projection" else None, "text": text_tower and text_tower.params}
    return DualEncoder(mode, tau, init, inputs, text_inputs, embed_image, embed_text, feature_map, pool, embed_map,
                       tower.grid, frozen, with_frozen)
