"""Vision Transformers (Dosovitskiy et al. 2021) as timm builds them, class token included, under timm's names."""

import flax.linen as nn
import jax.numpy as jnp

from mdw_jax.models.image.blocks import block_module
from mdw_jax.models.image.vit_layers import Linear, Mlp, Norm, Patches, attend, patch_grid

_small = nn.initializers.truncated_normal(0.02)


class _PatchEmbed(nn.Module):
    width: int
    patch: int

    @nn.compact
    def __call__(self, x):
        return Patches(self.width, self.patch, name="proj")(x)


class _Attention(nn.Module):
    """Self-attention of the first `rows` tokens (None: all) to all: (B, T, C) -> (B, rows, C)."""

    heads: int

    @nn.compact
    def __call__(self, x, rows):
        q, k, v = jnp.split(Linear(3 * x.shape[-1], name="qkv")(x), 3, axis=-1)
        return Linear(x.shape[-1], name="proj")(attend(q[:, :rows], k, v, self.heads))


class _Block(nn.Module):
    """A pre-norm Transformer block, of which the first `rows` tokens (None: all) are wanted: (B, T, C) -> (B, rows, C)."""

    heads: int

    @nn.compact
    def __call__(self, x, rows=None):
        x = x[:, :rows] + _Attention(self.heads, name="attn")(Norm(1e-6, name="norm1")(x), rows)
        return x + Mlp(4 * x.shape[-1], "gelu", name="mlp")(Norm(1e-6, name="norm2")(x))


class TimmVit(nn.Module):
    """Normalized images (B, H, W, 3) -> the tokens that enter the last block, (B, 1 + h w, width), class token first.

    `pool` goes the rest of the way. grid: rows and columns of patches; native: those of the published weights.
    """

    grid: tuple[int, int]
    patch: int
    width: int
    heads: int
    depth: int = 12

    @property
    def features(self) -> int:
        return self.width

    @property
    def native(self) -> tuple[int, int]:
        return (224 // self.patch,) * 2

    def setup(self):
        self.patch_embed = _PatchEmbed(self.width, self.patch)
        self.cls_token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.width))
        self.pos_embed = self.param("pos_embed", _small, (1, 1 + self.grid[0] * self.grid[1], self.width))
        block = block_module(_Block)
        self.blocks = [*(block(self.heads) for _ in range(self.depth - 1)), _Block(self.heads)]
        self.norm = Norm(1e-6)

    def __call__(self, x):
        x = self.patch_embed(x)
        first = jnp.broadcast_to(self.cls_token.astype(x.dtype), (x.shape[0], 1, self.width))
        x = jnp.concatenate([first, x], axis=1) + self.pos_embed.astype(x.dtype)
        for block in self.blocks[:-1]:
            x = block(x)
        return x

    def finish(self, tokens, rows=None):
        """The last block and the last norm, of the first `rows` tokens (None: all): (B, T, C) -> (B, rows, C)."""
        return self.norm(self.blocks[-1](tokens, rows))

    def pool(self, tokens):
        """(B, T, C) -> (B, C): the class token at the very end."""
        return self.finish(tokens, 1)[:, 0]


def _vit(name, patch, width, heads):
    return lambda image_shape: TimmVit(patch_grid(image_shape, patch, name), patch, width, heads)


VITS = {
    name: _vit(name, patch, width, heads)
    for name, patch, width, heads in (
        ("vit_tiny_patch16_224", 16, 192, 3),
        ("vit_small_patch16_224", 16, 384, 6),
        ("vit_small_patch32_224", 32, 384, 6),
        ("vit_base_patch16_224", 16, 768, 12),
        ("vit_base_patch32_224", 32, 768, 12),
    )
}
