"""Vision Transformers (Dosovitskiy et al. 2021) as timm builds them, class token included, under timm's names."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.errors import UserError

_small = nn.initializers.truncated_normal(0.02)
# Exact (erf) GELU in timm; the sigmoid form in OpenAI's CLIP.
ACTIVATIONS = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x)}


class Linear(nn.Module):
    """A dense layer in the dtype of its input: (..., C) -> (..., width)."""

    width: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        y = x @ self.param("kernel", _small, (x.shape[-1], self.width)).astype(x.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.width,)).astype(x.dtype)
        return y


class Norm(nn.Module):
    """Layer normalization of the last axis, reckoned in float32, in the dtype of its input."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * scale + bias).astype(x.dtype)


class Patches(nn.Module):
    """A convolution of patch x patch pixels at stride patch, as a matrix product: (B, H, W, C) -> (B, h w, width)."""

    width: int
    patch: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        (b, height, width, c), p = x.shape, self.patch
        h, w = height // p, width // p
        x = x.reshape(b, h, p, w, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * w, p * p * c)
        y = x @ self.param("kernel", _small, (p, p, c, self.width)).astype(x.dtype).reshape(-1, self.width)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.width,)).astype(x.dtype)
        return y


class Mlp(nn.Module):
    """`fc2(act(fc1(x)))`, `hidden` wide inside: (..., C) -> (..., C)."""

    hidden: int
    act: str

    @nn.compact
    def __call__(self, x):
        return Linear(x.shape[-1], name="fc2")(ACTIVATIONS[self.act](Linear(self.hidden, name="fc1")(x)))


def attend(q, k, v, heads: int):
    """Softmax attention. q: (B, R, C); k, v: (B, T, C); `heads` heads of C / heads -> (B, R, C). Softmax in float32."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    scores = jnp.einsum("brhd,bthd->bhrt", q * q.shape[-1] ** -0.5, k)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(v.dtype)
    y = jnp.einsum("bhrt,bthd->brhd", weights, v)
    return y.reshape(*y.shape[:2], -1)


def patch_grid(image_shape, patch: int, name: str) -> tuple[int, int]:
    """Rows and columns of patches in images of `image_shape` (H, W, C). Raises UserError where `patch` does not fit."""
    height, width, _ = image_shape
    if height % patch or width % patch or not height or not width:
        raise UserError(f"the tower '{name}' cuts images into patches of {patch} px, which images of {height} x {width} "
                        f"px are not made of; set the image size to multiples of {patch}.")
    return height // patch, width // patch


def resize_positions(table: np.ndarray, grid: tuple[int, int], native: tuple[int, int]) -> np.ndarray:
    """Position embeddings for another grid of patches, as timm resizes them: bicubic, antialiased.

    Args:
        table: (..., 1 + T, C), PyTorch's: the class token's, then T patches row by row. T patches are those of
            `native` where there are as many; else those of `grid`; else a square.
        grid: rows and columns wanted. native: rows and columns that published weights have.
    Returns:
        (..., 1 + rows * columns, C) float32; the class token's as it was.
    Raises:
        UserError: T patches make no such grid.
    """
    *lead, tokens, width = table.shape
    patches, side = tokens - 1, math.isqrt(max(tokens - 1, 0))
    old = next((size for size in (native, grid, (side, side)) if math.prod(size) == patches), None)
    if old is None or not patches:
        raise UserError(f"the weights hold position embeddings of {patches} patches, which make neither a square nor "
                        f"{grid[0]} x {grid[1]}; give weights of square images, or of images of that size.")
    if old == grid:
        return np.asarray(table, np.float32)
    first, rest = np.split(np.asarray(table, np.float32), [1], axis=-2)
    resized = jax.image.resize(rest.reshape(*lead, *old, width), (*lead, *grid, width), "cubic", antialias=True)
    return np.concatenate([first, np.asarray(resized).reshape(*lead, -1, width)], axis=-2)


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
        self.blocks = [_Block(self.heads) for _ in range(self.depth)]
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
