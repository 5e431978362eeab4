"""A small norm-free conv net of non-overlapping patches, trained from scratch: fast on a CPU, second order included."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError
from mdw_jax.models.image.tower import Tower


class PatchConvNet(nn.Module):
    """Stages of (patchify `p x p`, GELU, residual pointwise MLP, GELU): (B, H, W, C) in [0, 1] -> (B, h, w, F).

    A learned position is added after the first stage, since the mean over space at the end loses all positions.
    Patchifying is a reshape and a matrix product, so no backend runs a slow convolution. There are no normalization
    layers: batch statistics would not survive trajectory matching.

    Attributes:
        patches: patch side of each stage.
        widths: channels of each stage; the last is F.
    """

    patches: tuple[int, ...]
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, images):
        x = (images - 0.5) * 4
        for stage, (patch, width) in enumerate(zip(self.patches, self.widths, strict=True)):
            b, h, w, c = x.shape
            x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
            x = x.reshape(b, h // patch, w // patch, patch * patch * c)
            x = nn.Dense(width, dtype=images.dtype, kernel_init=nn.initializers.he_normal())(x)
            if stage == 0:
                x = x + self.param("position", nn.initializers.normal(1.0), x.shape[1:]).astype(x.dtype)
            x = nn.gelu(x, approximate=True)
            more = nn.Dense(width, dtype=images.dtype, kernel_init=nn.initializers.he_normal())(x)
            x = x + nn.gelu(more, approximate=True)
        return x


def convnet(image_shape, patches=(4, 2, 2), widths=(64, 128, 128)) -> Tower:
    """A `PatchConvNet` as a tower.

    Args:
        image_shape: (H, W, C); H and W are divisible by the product of `patches`.
        patches: patch side of each stage.
        widths: channels of each stage.
    Raises:
        UserError: sides that are not divisible, or different numbers of patches and widths.
    """
    height, width, _ = image_shape
    total = math.prod(patches)
    if height % total or width % total or len(patches) != len(widths):
        raise UserError(f"a conv net of patches {patches} and widths {widths} needs as many of one as of the other and "
                        f"image sides divisible by {total}, not {height} x {width}; set model.patches, or the sides "
                        "(data.size; of log-mels data.mels and data.frames).")
    module = PatchConvNet(tuple(patches), tuple(widths))

    @jax.jit  # once for all students and experts: a new function would be compiled at each call
    def init(key):
        return module.init(key, jnp.zeros((1, *image_shape)))["params"]

    return Tower("convnet", init, lambda params, images: module.apply({"params": params}, images), widths[-1],
                 std=(0.25,) * image_shape[2],
                 layout={"kind": "convnet", "patches": list(patches), "widths": list(widths)})
