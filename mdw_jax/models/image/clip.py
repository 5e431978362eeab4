"""The image tower of CLIP (Radford et al. 2021), with the names of Hugging Face's `CLIPModel` weights."""

import flax.linen as nn
import jax.numpy as jnp

from mdw_jax.models.image.blocks import block_module
from mdw_jax.models.image.vit_layers import Linear, Mlp, Norm, Patches, attend, patch_grid
from mdw_jax.models.weights.hugging_face import transformer_fields

_EPS = 1e-5
# Fields of `ClipVision`, and the image size, by their names in config.json.
_FIELDS = dict(patch="patch_size", width="hidden_size", depth="num_hidden_layers", heads="num_attention_heads",
               hidden="intermediate_size", features="projection_dim", act="hidden_act", image="image_size")
_small = nn.initializers.normal(0.02)


class _Embeddings(nn.Module):
    """Normalized images (B, H, W, 3) -> (B, 1 + h w, width): the class token and the patches, with their positions."""

    grid: tuple[int, int]
    patch: int
    width: int

    @nn.compact
    def __call__(self, x):
        x = Patches(self.width, self.patch, use_bias=False, name="patch_embedding")(x)
        first = self.param("class_embedding", _small, (self.width,)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x], axis=1)
        positions = nn.Embed(1 + self.grid[0] * self.grid[1], self.width, embedding_init=_small,
                             name="position_embedding").embedding
        return x + positions.astype(x.dtype)


class _Attention(nn.Module):
    """Self-attention of the first `rows` tokens (None: all) to all: (B, T, C) -> (B, rows, C)."""

    heads: int

    @nn.compact
    def __call__(self, x, rows):
        q, k, v = (Linear(x.shape[-1], name=f"{part}_proj")(tokens)
                   for part, tokens in (("q", x[:, :rows]), ("k", x), ("v", x)))
        return Linear(x.shape[-1], name="out_proj")(attend(q, k, v, self.heads))


class _Layer(nn.Module):
    """A pre-norm Transformer block, of which the first `rows` tokens (None: all) are wanted: (B, T, C) -> (B, rows, C)."""

    heads: int
    hidden: int
    act: str

    @nn.compact
    def __call__(self, x, rows=None):
        x = x[:, :rows] + _Attention(self.heads, name="self_attn")(Norm(_EPS, name="layer_norm1")(x), rows)
        return x + Mlp(self.hidden, self.act, name="mlp")(Norm(_EPS, name="layer_norm2")(x))


class ClipVision(nn.Module):
    """Normalized images (B, H, W, 3) -> the tokens that enter the last block, (B, 1 + h w, width), class token first.

    `pool` goes the rest of the way, into the space that CLIP shares with its captions. grid: rows and columns of
    patches; native: those of the weights. hidden: width inside the MLPs; features: width of the shared space.
    """

    grid: tuple[int, int]
    native: tuple[int, int]
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    features: int
    act: str = "quick_gelu"

    def setup(self):
        self.embeddings = _Embeddings(self.grid, self.patch, self.width)
        self.pre_layrnorm = Norm(_EPS)  # Hugging Face's spelling
        sizes, layer = (self.heads, self.hidden, self.act), block_module(_Layer)
        self.layers = [*(layer(*sizes) for _ in range(self.depth - 1)), _Layer(*sizes)]
        self.post_layernorm = Norm(_EPS)
        self.visual_projection = Linear(self.features, use_bias=False)

    def __call__(self, x):
        x = self.pre_layrnorm(self.embeddings(x))
        for layer in self.layers[:-1]:
            x = layer(x)
        return x

    def finish(self, tokens, rows=None):
        """The last block, of the first `rows` tokens (None: all): (B, T, C) -> (B, rows, C)."""
        return self.layers[-1](tokens, rows)

    def pool(self, tokens):
        """(B, T, C) -> (B, features): the class token at the very end, normalized and projected; not of unit length."""
        return self.visual_projection(self.post_layernorm(self.finish(tokens, 1)[:, 0]))


def hugging_face_name(name: str) -> str:
    """Dotted name of a tensor in `ClipVision` -> its name in `CLIPModel` and `CLIPVisionModelWithProjection`."""
    if name.startswith("visual_projection"):
        return name
    return "vision_model." + ("encoder." if name.startswith("layers.") else "") + name


def clip_vision(config: dict, image_shape) -> ClipVision:
    """The module that a Hugging Face `config.json` describes, a `CLIPModel`'s or its image tower's alone.

    Raises:
        UserError: a missing or unusable size, an unknown activation, or an image size that patches do not fill.
    """
    vision = config.get("vision_config", config)
    projection = config.get("projection_dim", vision.get("projection_dim"))
    fields = transformer_fields({"hidden_act": "quick_gelu"} | vision | {"projection_dim": projection}, _FIELDS,
                                "CLIP's image tower", width="width")
    native = fields.pop("image") // fields["patch"]
    return ClipVision(patch_grid(image_shape, fields["patch"], "clip"), (native, native), **fields)


def _config(width, layers, patch, projection):
    """OpenAI's own: heads of 64, MLPs four times as wide, images of 224 px."""
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "image_size": 224,
            "num_attention_heads": width // 64, "patch_size": patch, "projection_dim": projection}


CLIPS = {
    "clip_vit_base_patch32": _config(768, 12, 32, 512),
    "clip_vit_base_patch16": _config(768, 12, 16, 512),
    "clip_vit_large_patch14": _config(1024, 24, 14, 768),
}
