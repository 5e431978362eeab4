"""Layers that pretrained Vision Transformers share (`timm_vit.py`, `clip.py`), and their position embeddings.

They compute in the dtype of their input, which may be bfloat16. The text Transformers have layers of their own
(`models/text/layers.py`): those compute in float32 at the highest precision, mask their attention, and round otherwise.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.models.weights.hugging_face import ACTIVATIONS

_small = nn.initializers.truncated_normal(0.02)


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
    """Layer normalization of the last axis, computed in float32, in the dtype of its input."""

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
    """Rows and columns of patches in images of `image_shape` (H, W, C); raises UserError where `patch` does not fit.

    name: of the tower, for the message.
    """
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
