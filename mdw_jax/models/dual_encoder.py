"""The dual encoder: an image branch and a text branch into one space.

Trained and matched are the parameters `{"image": ..., "text": ...}`. What the image branch takes ("inputs") depends on
the mode:

* `projection` (RepBlend): the backbone is frozen and inputs are its pooled features (B, F); the image branch is a head.
* `full` (VLD, LoRS): inputs are the images themselves; the image branch is the backbone, with a head if asked for.

Texts are features (B, d) of a frozen encoder and the text branch is a head, unless a `TextTower` is given. Then texts
are token ids (B, L), -1 in padding, or embedded tokens (B, L, h), zero in padding; the text branch is the encoder with
a head, the word embeddings frozen. (Zeros get no gradient: a distilled text keeps its length.)

`inputs` and `text_inputs` lead, frozen, from images and from a data set's texts to what distillation can learn.
Experts, unroll and students work on these and never ask for the mode; in `projection` mode the unroll therefore runs in
feature space, and one vector-Jacobian product carries its gradient to the pixels.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdw_jax.config.options import MODES
from mdw_jax.errors import UserError
from mdw_jax.models.heads import ProjectionHead
from mdw_jax.models.image.blocks import recomputed_blocks
from mdw_jax.models.image.tower import Tower
from mdw_jax.models.text.encoder import TextEncoder


def unit(x):
    """Scale rows to unit length; the zero row stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


class TextTower(NamedTuple):
    """A pretrained text encoder that is trained along, and its parameters."""

    encoder: TextEncoder
    params: Any

    def embed(self, texts):
        """Token ids (B, L), -1 in padding -> (B, L, h), zero in padding; embedded tokens pass through."""
        if not jnp.issubdtype(texts.dtype, jnp.integer):
            return texts
        return jnp.where(texts[..., None] >= 0, self.encoder.embed(self.params, jnp.maximum(texts, 0)), 0)

    def encode(self, params, texts):
        """Token ids (B, L) or embedded tokens (B, L, h) -> (B, d)."""
        embedded = self.embed(texts)
        return self.encoder.encode(params, embedded, (embedded != 0).any(-1))


@dataclasses.dataclass(frozen=True, eq=False)
class DualEncoder:
    """One dual encoder: its methods are pure functions of parameters and data. Built by `dual_encoder`.

    It is compared and hashed by identity, and so are its bound methods: caches of compiled functions rely on it.

    Attributes:
        tower: the image backbone.
        backbone: parameters of the frozen tower in `projection` mode; None in `full` mode.
        text_dim: width d of the text features.
        mode: "projection" or "full".
        dim: width D of the shared space.
        head: the projection head of the text branch, and of the image branch where it has one.
        image_head: whether the image branch ends in a head.
        tau: softmax temperature.
        dtype: in which the image tower computes; parameters, feature maps, features, heads and losses are float32.
        text_tower: the text encoder, where it is trained too.
        remat: "blocks": the tower's blocks are computed again in the backward pass; "none": all of them is kept.
    """

    tower: Tower
    backbone: Any
    text_dim: int
    mode: str
    dim: int
    head: ProjectionHead
    image_head: bool
    tau: float
    dtype: str
    text_tower: TextTower | None
    remat: str = "none"

    def init(self, key):
        """A typed key -> fresh parameters `{"image": ..., "text": ...}`."""
        keys = dict(zip(("backbone", "image", "text"), jax.random.split(key, 3), strict=True))
        image = {}
        if self.mode == "full":
            image["backbone"] = self.tower.init(keys["backbone"])
        if self.image_head:
            image["head"] = self.head.init(keys["image"], jnp.zeros((1, self.tower.width)))["params"]
        text = self.head.init(keys["text"], jnp.zeros((1, self.text_dim)))["params"]
        if self.text_tower is not None:
            trained = {name: part for name, part in self.text_tower.params.items() if name != "word_embeddings"}
            text = {"encoder": trained, "head": text}
        return {"image": image, "text": text}

    def inputs(self, images):
        """Images (B, H, W, C) float32 in [0, 1] -> what `embed_image` takes: the images, or their features (B, F)."""
        if self.mode == "full":
            return images
        with recomputed_blocks(self.remat == "blocks"):
            return self.tower.features(self.backbone, images.astype(self.dtype)).astype(jnp.float32)

    def text_inputs(self, texts):
        """Texts of a data set -> float32 ones: features (B, d) pass through, token ids become (B, L, h)."""
        return texts.astype(jnp.float32) if self.text_tower is None else self.text_tower.embed(texts)

    def embed_image(self, params, inputs):
        """params["image"] and what `inputs` returns -> (B, D), unit length."""
        if self.mode == "full":
            return self.embed_map(params, self.feature_map(params, inputs))
        return self._embed_pooled(params, inputs.astype(jnp.float32))

    def embed_text(self, params, texts):
        """params["text"] and texts of either form -> (B, D), unit length."""
        if self.text_tower is None:
            return unit(self.head.apply({"params": params}, texts.astype(jnp.float32)))
        encoded = self.text_tower.encode(params["encoder"], texts)
        return unit(self.head.apply({"params": params["head"]}, encoded))

    def logits(self, params, inputs, texts):
        """`s_ij = cos(f_v(v_i), f_t(t_j)) / tau`: (B, B)."""
        return self.embed_image(params["image"], inputs) @ self.embed_text(params["text"], texts).T / self.tau

    def feature_map(self, params, images):
        """params["image"] and images (B, H, W, C) in [0, 1] -> the backbone's last map, float32."""
        with recomputed_blocks(self.remat == "blocks"):
            return self.tower.feature_map(self._weights(params), images.astype(self.dtype)).astype(jnp.float32)

    def pool(self, params, feature_map):
        """params["image"] and what `feature_map` returns -> (B, F) float32."""
        return self.tower.pool(self._weights(params), feature_map.astype(self.dtype)).astype(jnp.float32)

    def embed_map(self, params, feature_map):
        """params["image"] and what `feature_map` returns -> (B, D), unit length."""
        return self._embed_pooled(params, self.pool(params, feature_map))

    def grid(self, feature_map):
        """What `feature_map` returns, or its gradient -> (B, h, w, F), the places alone (for Grad-CAM)."""
        return self.tower.grid(feature_map)

    @property
    def frozen(self):
        """The arrays that the methods use and nothing trains: the frozen backbone, the text encoder as it was loaded."""
        return {"backbone": self.backbone, "text": self.text_tower and self.text_tower.params}

    def with_frozen(self, frozen) -> "DualEncoder":
        """The same model with other arrays of the same shapes in place of `frozen`: see `jit_with_frozen`."""
        text_tower = self.text_tower and self.text_tower._replace(params=frozen["text"])
        return dataclasses.replace(self, backbone=frozen["backbone"], text_tower=text_tower)

    def _weights(self, params):
        return params["backbone"] if self.mode == "full" else self.backbone

    def _embed_pooled(self, params, features):
        return unit(self.head.apply({"params": params["head"]}, features) if self.image_head else features)


def dual_encoder(tower: Tower, backbone, text_dim: int, *, mode: str, dim: int, image_head: bool = False,
                 tau: float = 0.07, text_tower: TextTower | None = None, dtype: str = "float32") -> DualEncoder:
    """Build a `DualEncoder`.

    Args:
        tower: the image backbone.
        backbone: parameters of the frozen tower in `projection` mode, ignored in `full` mode.
        text_dim: width of the frozen text features.
        mode: "projection" or "full"; see the module docstring.
        dim: width D of the shared space; in `full` mode without `image_head` it is the tower's own width, as in VLD
            and LoRS.
        image_head: whether the image branch of `full` mode ends in a head; that of `projection` mode always does.
        tau: softmax temperature.
        text_tower: the text encoder, if it is to be trained too.
        dtype: in which the image tower computes.
    Raises:
        UserError: an unknown mode.
    """
    if mode not in MODES:
        raise UserError(f"there is no mode '{mode}'; set model.mode to one of {', '.join(MODES)}.")
    image_head = mode == "projection" or image_head
    dim = dim if image_head else tower.width
    return DualEncoder(tower, backbone if mode == "projection" else None, text_dim, mode, dim, ProjectionHead(dim),
                       image_head, tau, dtype, text_tower)
