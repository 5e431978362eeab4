"""A small pre-norm Vision Transformer, trained from scratch: an architecture very different from a conv net."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError
from mdw_jax.models.image.blocks import block_module
from mdw_jax.models.image.tower import Tower


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + MLP(norm(x))` of four times the width: (B, T, width) -> the same.

    The last layer of either branch starts at zero, so that a block starts as the identity (as in Fixup): without a
    warm-up, which students do not have, plain SGD is then stable at about three times the step size (this work,
    measured on scenes).
    """

    heads: int

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        zeros = nn.initializers.zeros
        dtype = x.dtype
        attention = nn.MultiHeadDotProductAttention(self.heads, dtype=dtype, out_kernel_init=zeros, name="attention")
        x = x + attention(nn.LayerNorm(dtype=dtype, name="norm_attention")(x))
        h = nn.Dense(4 * width, dtype=dtype, name="expand")(nn.LayerNorm(dtype=dtype, name="norm_mlp")(x))
        return x + nn.Dense(width, dtype=dtype, kernel_init=zeros, name="contract")(nn.gelu(h, approximate=True))


class VisionTransformer(nn.Module):
    """Patches of `patch x patch` pixels as tokens, learned positions, `depth` blocks, a last LayerNorm.

    (B, H, W, C) in [0, 1] -> (B, H / patch, W / patch, width). After Dosovitskiy et al. 2021, without the class token:
    the mean over space at the end is as good (Beyer et al. 2022). LayerNorm keeps no batch statistics, so there
    are only parameters to match. No dropout: two passes over one unroll must be the same function.
    """

    patch: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, images):
        b, height, width, c = images.shape
        h, w, p = height // self.patch, width // self.patch, self.patch
        x = ((images - 0.5) * 4).reshape(b, h, p, w, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, p * p * c)
        x = nn.Dense(self.width, dtype=images.dtype, name="embed")(x)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:]).astype(x.dtype)
        x = x.reshape(b, h * w, self.width)
        for i in range(self.depth):
            x = block_module(Block)(self.heads, name=f"block_{i}")(x)
        return nn.LayerNorm(dtype=images.dtype, name="norm")(x).reshape(b, h, w, self.width)


def vit(image_shape, patch: int = 16, width: int = 128, depth: int = 4, heads: int = 4) -> Tower:
    """A `VisionTransformer` as a tower.

    Args:
        image_shape: (H, W, C); `patch` divides H and W.
        patch: patch side, pixels.
        width: of the tokens; `heads` divides it.
        depth: blocks.
        heads: of the attention.
    Raises:
        UserError: `patch` or `heads` do not divide.
    """
    h, w, _ = image_shape
    if patch < 1 or h % patch or w % patch:
        raise UserError(f"a vision transformer of {patch} px patches cannot cut images of {h} x {w} px into whole "
                        "patches; set model.vit_patch to a divisor of both sides.")
    if heads < 1 or width < 1 or width % heads:
        raise UserError(f"a vision transformer of width {width} cannot be divided among {heads} heads; set "
                        "model.vit_width to a multiple of model.vit_heads.")
    module = VisionTransformer(patch, width, depth, heads)

    @jax.jit  # once for all students and experts: a new function would be compiled at each call
    def init(key):
        return module.init(key, jnp.zeros((1, *image_shape)))["params"]

    return Tower("vit", init, lambda params, images: module.apply({"params": params}, images), width,
                 std=(0.25,) * image_shape[2],
                 layout={"kind": "vit", "patch": patch, "width": width, "depth": depth, "heads": heads})
