"""ResNets (He et al. 2016) as timm builds them: ResNet-18 and ResNet-50, with batch normalization frozen.

Normalizing by the statistics of a batch collapses under trajectory matching (ablation of VLD: IR@1 0.28 with ResNet-50
against 3.46 with its normalizer-free counterpart): a distilled batch has other statistics than the expert's, and running
averages are state that no gradient step explains. So every layer normalizes by the statistics
stored with the weights, in training too. They are constants, not parameters: they are in the collection
"batch_stats", which the tower closes over, while its parameters (convolutions, scales, biases) are all in "params"; no
gradient, expert or student ever changes them. Modules and parameters have timm's names.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdw_jax.models.image.blocks import block_module
from mdw_jax.models.image.conv import conv, max_pool

_EPS = 1e-5


class FrozenBatchNorm(nn.Module):
    """Batch normalization by stored statistics, as the multiplier and the offset of each channel: two of (width,).

    scale_init: what `scale` starts at where there are no weights.
    """

    width: int
    scale_init: float = 1.0

    @nn.compact
    def __call__(self):
        scale = self.param("scale", nn.initializers.constant(self.scale_init), (self.width,))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.width,)).value
        var = self.variable("batch_stats", "var", jnp.ones, (self.width,)).value
        multiplier = scale * jax.lax.rsqrt(var + _EPS)
        return multiplier, bias - mean * multiplier


class _Conv(nn.Module):
    """A convolution whose kernel is multiplied, per output channel, before it is used; symmetric padding, no bias."""

    width: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x, multiplier):
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.width))
        return conv(x, (kernel * multiplier).astype(x.dtype), self.stride, (self.size - 1) // 2)


def _conv_norm(x, width, size, stride, conv_name, norm_name, scale_init=1.0):
    """A convolution and its frozen normalization, folded into one: in memory the gradient then needs x alone."""
    multiplier, offset = FrozenBatchNorm(width, scale_init, name=norm_name)()
    return _Conv(width, size, stride, name=conv_name)(x, multiplier) + offset.astype(x.dtype)


class ResNetBlock(nn.Module):
    """`relu(shortcut(x) + branch(x))`: (B, H, W, C) -> (B, H / stride, W / stride, F).

    The branch is two 3 x 3 convolutions (F = width), or, where `bottleneck`, 1 x 1, 3 x 3, 1 x 1 (F = 4 width). Its
    last scale starts at zero where there are no weights, as in timm.
    """

    width: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x):
        out = self.width * (4 if self.bottleneck else 1)
        layers = [(self.width, 1, 1), (self.width, 3, self.stride), (out, 1, 1)] if self.bottleneck else [
            (self.width, 3, self.stride), (out, 3, 1)]
        y = x
        for i, (width, size, stride) in enumerate(layers, start=1):
            y = _conv_norm(y, width, size, stride, f"conv{i}", f"bn{i}", 0.0 if i == len(layers) else 1.0)
            y = y if i == len(layers) else jax.nn.relu(y)
        if x.shape[-1] != out or self.stride != 1:
            x = _conv_norm(x, out, 1, self.stride, "downsample_0", "downsample_1")
        return jax.nn.relu(x + y)


class ResNet(nn.Module):
    """Normalized images (B, H, W, 3) -> (B, H / 32, W / 32, features), rounded up. timm's `forward_features`."""

    depths: tuple[int, ...]
    bottleneck: bool

    @property
    def features(self) -> int:
        return 64 * 2 ** (len(self.depths) - 1) * (4 if self.bottleneck else 1)

    @nn.compact
    def __call__(self, x):
        x = max_pool(jax.nn.relu(_conv_norm(x, 64, 7, 2, "conv1", "bn1")))
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 else 1
                x = block_module(ResNetBlock)(64 * 2**stage, stride, self.bottleneck, name=f"layer{stage + 1}_{i}")(x)
        return x


RESNETS = {
    "resnet18": ResNet((2, 2, 2, 2), bottleneck=False),
    "resnet50": ResNet((3, 4, 6, 3), bottleneck=True),
}
