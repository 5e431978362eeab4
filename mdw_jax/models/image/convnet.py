"""A small norm-free conv net of non-overlapping patches, trained from scratch: quick on a CPU, second order included."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError
from mdw_jax.models.image.tower import Tower


class PatchConvNet(nn.Module):
    """Stages of (patchify `p x p`, GELU, residual pointwise MLP, GELU), widths as given.

    A learned position is added after the first stage: the mean over space at the end would forget where things were.

    Patchifying is a reshape and a matrix product, so no backend meets a slow convolution. No normalization layers:
    batch statistics would not survive trajectory matching.
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
    """A `PatchConvNet` for images of `image_shape` (H, W, C); H and W must be divisible by the product of `patches`.

    Raises UserError where they are not.
    """
    height, width, _ = image_shape
    total = 1
    for patch in patches:
        total *= patch
    if height % total or width % total or len(patches) != len(widths):
        raise UserError(f"a conv net of patches {patches} and widths {widths} needs as many of one as of the other and "
                        f"image sides divisible by {total}, not {height} x {width}; set model.patches, or the sides "
                        "(data.size; of log-mels data.mels and data.frames).")
    module = PatchConvNet(tuple(patches), tuple(widths))

    def init(key):
        return jax.jit(module.init)(key, jnp.zeros((1, *image_shape)))["params"]

    return Tower("convnet", init, lambda params, images: module.apply({"params": params}, images), widths[-1])
