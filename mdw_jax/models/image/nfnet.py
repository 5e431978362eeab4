"""Normalizer-free networks (Brock et al. 2021a, b) as timm builds them: NFNet-L0, NF-ResNet-50, NF-RegNet-B1.

No layer normalizes activations, so there are no batch statistics to collapse under trajectory matching: the choice of
the baselines (VLD, LoRS). Variance is controlled by weight standardization, by a residual branch scaled by `alpha`, and
by dividing a block's input by its expected standard deviation. Modules and parameters have timm's names.
"""

import flax.linen as nn
import jax

from mdw_jax.models.image.blocks import block_module
from mdw_jax.models.image.conv import average_pool, conv, max_pool

# 1 / standard deviation of activation(normal variable), from the NFNet paper's code; timm puts it into the kernels.
_GAMMA = {"relu": 1.7139588594436646, "silu": 1.7881293296813965}
_ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu}
_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_EPS = 1e-5


class ScaledStdConv(nn.Module):
    """A convolution whose kernel is standardized per output channel, then scaled by `gain * gamma / sqrt(fan in)`.

    Standardized as batch normalization would: biased variance, eps inside the root. Padding is PyTorch's symmetric
    one, not SAME: timm's `nfnet_*` and `nf_*` have it, its `dm_nfnet_*` have not. (B, H, W, C) -> (B, h, w, width).
    """

    width: int
    size: int = 1
    stride: int = 1
    groups: int = 1
    gamma: float = 1.0
    gain_init: float = 1.0

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", _fan_in, (self.size, self.size, x.shape[-1] // self.groups, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        gain = self.param("gain", nn.initializers.constant(self.gain_init), (self.width, 1, 1, 1))  # PyTorch's shape
        axes = (0, 1, 2)
        fan_in = kernel[..., 0].size
        scale = gain.reshape(-1) * self.gamma * fan_in**-0.5
        kernel = (kernel - kernel.mean(axes)) * jax.lax.rsqrt(kernel.var(axes) + _EPS) * scale
        y = conv(x, kernel.astype(x.dtype), self.stride, (self.size - 1) // 2, self.groups)
        return y + bias.astype(x.dtype)


class SqueezeExcite(nn.Module):
    """`x * sigmoid(fc2(relu(fc1(mean over space))))`: (B, H, W, C) -> the same. hidden: width between fc1 and fc2."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        h = jax.nn.relu(_Pointwise(self.hidden, name="fc1")(x.mean((1, 2), keepdims=True)))
        return x * jax.nn.sigmoid(_Pointwise(x.shape[-1], name="fc2")(h))


class _Pointwise(nn.Module):
    """A dense layer with a 1 x 1 convolution's kernel, which is how PyTorch stores it."""

    width: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", _fan_in, (1, 1, x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return conv(x, kernel.astype(x.dtype)) + bias.astype(x.dtype)


class _Stem(nn.Module):
    """The convolutions ahead of the first stage: "quad" (four, stride 4), "3x3" (stride 2) or "7x7_pool" (stride 4)."""

    kind: str
    width: int
    act: str

    @nn.compact
    def __call__(self, x):
        gamma = _GAMMA[self.act]
        if self.kind == "quad":
            for i, (share, stride) in enumerate(((8, 2), (4, 1), (2, 1), (1, 2)), start=1):
                x = x if i == 1 else _ACTIVATIONS[self.act](x)
                x = ScaledStdConv(self.width // share, 3, stride, gamma=gamma, name=f"conv{i}")(x)
            return x
        x = ScaledStdConv(self.width, 7 if self.kind == "7x7_pool" else 3, 2, gamma=gamma, name="conv")(x)
        return max_pool(x) if self.kind == "7x7_pool" else x


class _Downsample(nn.Module):
    """The shortcut where shape changes: average pooling, then a 1 x 1 convolution."""

    width: int
    stride: int
    gamma: float

    @nn.compact
    def __call__(self, x):
        return ScaledStdConv(self.width, gamma=self.gamma, name="conv")(average_pool(x) if self.stride == 2 else x)


class NormFreeBlock(nn.Module):
    """`shortcut(a) + alpha * branch(a)`, `a = beta * act(x)`: a pre-activation bottleneck. (B, H, W, C) -> (.., width).

    middle: width inside. groups: of its 3 x 3 convolutions. beta: 1 / expected standard deviation of x. hidden: width
    inside Squeeze-Excite, 0 for none; it comes before the last convolution in a RegNet (`reg`), after it otherwise.
    extra: a second 3 x 3 convolution.
    """

    width: int
    middle: int
    stride: int
    groups: int
    alpha: float
    beta: float
    hidden: int
    reg: bool
    extra: bool
    act: str

    @nn.compact
    def __call__(self, x):
        act, gamma = _ACTIVATIONS[self.act], _GAMMA[self.act]
        y = act(x) * self.beta
        if x.shape[-1] != self.width or self.stride != 1:
            x = _Downsample(self.width, self.stride, gamma, name="downsample")(y)
        y = ScaledStdConv(self.middle, gamma=gamma, name="conv1")(y)
        y = ScaledStdConv(self.middle, 3, self.stride, self.groups, gamma, name="conv2")(act(y))
        if self.extra:
            y = ScaledStdConv(self.middle, 3, 1, self.groups, gamma, name="conv2b")(act(y))
        if self.hidden and self.reg:
            y = 2 * SqueezeExcite(self.hidden, name="attn")(y)  # 2: on average a sigmoid halves
        # The gain starts at zero, so that a block starts as its shortcut.
        y = ScaledStdConv(self.width, gamma=gamma, gain_init=0.0, name="conv3")(act(y))
        if self.hidden and not self.reg:
            y = 2 * SqueezeExcite(self.hidden, name="attn_last")(y)
        return x + self.alpha * y


class NormFreeNet(nn.Module):
    """A stem, four stages of `NormFreeBlock`, perhaps a last convolution, an activation.

    Normalized images (B, H, W, 3) -> (B, H / 32, W / 32, features), rounded up. timm's `forward_features`.

    depths, widths: blocks and channels of each stage. stem, stem_width, act: see `_Stem`. bottle: width inside a
    block over that outside. group_size: channels a group, 0 for one group. squeeze: width inside Squeeze-Excite over
    its input's, 0 for none. last: width of the last convolution, 0 for none. reg: a RegNet, whose blocks widen their
    input (and the first block not at all) where others narrow their output. extra: see `NormFreeBlock`.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: str
    stem_width: int
    act: str
    bottle: float
    group_size: int = 0
    squeeze: float = 0.0
    last: int = 0
    reg: bool = False
    extra: bool = False
    alpha: float = 0.2

    @property
    def features(self) -> int:
        return self.last or self.widths[-1]

    @nn.compact
    def __call__(self, x):
        x = _Stem(self.stem, self.stem_width, self.act, name="stem")(x)
        variance = 1.0
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for i in range(depth):
                bottle = 1 if self.reg and stage == i == 0 else self.bottle
                middle = _round8((x.shape[-1] if self.reg else width) * bottle)
                groups = middle // self.group_size if self.group_size else 1
                middle = groups * self.group_size if self.group_size else middle
                stride = 2 if i == 0 and (stage > 0 or self.stem == "3x3") else 1
                x = block_module(NormFreeBlock)(
                    width, middle, stride, groups, self.alpha, variance**-0.5,
                    _round8((middle if self.reg else width) * self.squeeze), self.reg, self.extra, self.act,
                    name=f"stages_{stage}_{i}")(x)
                # The shortcut of a stage's first block is itself a fresh convolution of unit variance.
                variance = (1.0 if i == 0 else variance) + self.alpha**2
        if self.last:
            x = ScaledStdConv(self.last, gamma=_GAMMA[self.act], name="final_conv")(x)
        return _ACTIVATIONS[self.act](x)


def _round8(width: float) -> int:
    """The nearest multiple of 8."""
    return int(width + 4) // 8 * 8


NFNETS = {
    "nfnet_l0": NormFreeNet((1, 2, 6, 3), (256, 512, 1536, 1536), "quad", 128, "silu", 0.25, group_size=64,
                            squeeze=0.25, last=2304, extra=True),
    "nf_resnet50": NormFreeNet((3, 4, 6, 3), (256, 512, 1024, 2048), "7x7_pool", 64, "relu", 0.25),
    "nf_regnet_b1": NormFreeNet((2, 4, 7, 7), (40, 80, 160, 328), "3x3", 40, "silu", 2.25, group_size=8, squeeze=0.5,
                                last=960, reg=True),
}
