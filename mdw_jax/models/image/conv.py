"""Convolutions in the form that is fastest on the backend: the one place where that choice is made.

Unrolls differentiate convolutions twice. Here the gradient of a gradient is again one of three products, a convolution
and its two gradients: forms that libraries of fast kernels have. XLA's own second-order gradients are others, with
kernels the size of the image.

On a CPU, XLA's convolution itself is fast, but not its gradients: those by kernels inside a scan and those of groups are
tens of times slower than they need be. There, the gradient by the kernel is patches and a matrix product (through a scan
of SGD steps 19x as fast as XLA's own, and 1.3x as fast as patches throughout). A grouped convolution is patches and a
batch of matrix products (17x faster second-order gradient on the widest stage of NFNet-L0 at 224 px), a depthwise one
shifted multiply-adds with gradients of the same form (6x faster forward and 9x faster gradient on MobileNetV2 at 128 px).
None of these knows forward-mode differentiation (jax.jvp). By default padding is TensorFlow's SAME: the odd
pixel goes to the bottom and the right.
"""

import contextlib
import contextvars
from functools import partial

import jax
import jax.numpy as jnp

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


_PLANNED = contextvars.ContextVar("planned", default=False)


def on_cpu() -> bool:
    """Whether computations run on a CPU by default, `as_on_accelerator` aside."""
    return jax.default_backend() == "cpu" and not _PLANNED.get()


@contextlib.contextmanager
def as_on_accelerator(planned: bool = True):
    """Context in which functions are traced as for an accelerator: for plans made on a CPU."""
    token = _PLANNED.set(planned)
    try:
        yield
    finally:
        _PLANNED.reset(token)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels to add (before, after) one dimension so that the output has ceil(size / stride) of them."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def conv(x, kernel, stride: int = 1, padding="SAME", groups: int = 1):
    """Convolution.

    Args:
        x: (B, H, W, C).
        kernel: (kh, kw, C / groups, F).
        stride: of both sides.
        padding: "SAME" (h = ceil(H / stride)), or pixels to add on every side, as PyTorch's `padding` does.
        groups: F / groups outputs in a row see C / groups inputs in a row, as PyTorch's `groups` does.
    Returns:
        (B, h, w, F).
    """
    pads = _pads(x.shape[1:3], kernel.shape[:2], stride, padding)
    if kernel.shape[:2] == (1, 1) and stride == 1 and groups == 1 and not any(map(any, pads)):
        return x @ kernel[0, 0]
    if on_cpu() and groups > 1:
        return _grouped(x, kernel, stride, pads, groups)
    return _product(x, kernel, stride, pads, groups)


def depthwise_conv(x, kernel, stride: int = 1):
    """SAME convolution of each channel by itself. x: (B, H, W, C); kernel: (kh, kw, 1, C)."""
    return _product(x, kernel, stride, _pads(x.shape[1:3], kernel.shape[:2], stride, "SAME"), x.shape[-1])


def max_pool(x):
    """Maximum over 3 x 3 pixels at stride 2, one pixel padded (ResNet's): (B, H, W, C) -> (B, ceil(H / 2), ...).

    Rows first, then columns: on a CPU the gradient is three times as fast as that of XLA's pooling.
    """
    x = _max_of_rows(x)
    b, h, w, c = x.shape
    return _max_of_rows(x.reshape(b * h, w, 1, c)).reshape(b, h, -1, c)


def _max_of_rows(x):
    """`max_pool` along the first dimension of space alone."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1 + h % 2), (0, 0), (0, 0)), constant_values=-jnp.inf)
    x = x.reshape(b, x.shape[1] // 2, 2, w, c)
    return jnp.maximum(jnp.maximum(x[:, :-1, 0], x[:, :-1, 1]), x[:, 1:, 0])


def average_pool(x):
    """Mean of each 2 x 2 pixels, of fewer at an odd edge: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C)."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), mode="edge")
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _pads(sizes, kernel_size, stride, padding):
    """Pixels to add, ((top, bottom), (left, right)); `padding` as for `conv`."""
    if padding == "SAME":
        return tuple(same_padding(size, k, stride) for size, k in zip(sizes, kernel_size, strict=True))
    return ((padding, padding),) * 2


def _native(x, kernel, stride, pads, groups):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_DIMENSIONS,
                                        feature_group_count=groups)


def _patches(x, kernel_size, stride, pads):
    """The inputs of each output: (B, H, W, C) -> (B, oh, ow, kh * kw * C), in the order of a kernel's entries."""
    b, h, w, c = x.shape
    columns = _row_patches(x.reshape(b * h, w, 1, c), kernel_size[1], stride, pads[1])
    return _row_patches(columns.reshape(b, h, -1, kernel_size[1] * c), kernel_size[0], stride, pads[0])


def _row_patches(x, taps, stride, pad):
    """`_patches` along the first dimension of space alone: (B, H, W, C) -> (B, oh, W, taps * C)."""
    b, h, w, c = x.shape
    length = h + sum(pad)
    out = (length - taps) // stride + 1
    # Strided slices are slow to differentiate: split into phases first, then slice densely.
    x = jnp.pad(x, ((0, 0), (pad[0], pad[1] + -length % stride), (0, 0), (0, 0))).reshape(b, -1, stride, w, c)
    return jnp.concatenate([x[:, i // stride : i // stride + out, i % stride] for i in range(taps)], axis=-1)


def _grouped(x, kernel, stride, pads, groups):
    (b, h, w, c), (kh, kw, _, width) = x.shape, kernel.shape
    # A group is another row of the batch.
    x = x.reshape(b, h, w, groups, c // groups).transpose(3, 0, 1, 2, 4).reshape(groups * b, h, w, c // groups)
    patches = _patches(x, (kh, kw), stride, pads)
    kernels = kernel.reshape(-1, groups, width // groups).transpose(1, 0, 2)
    y = (patches.reshape(groups, -1, patches.shape[-1]) @ kernels).reshape(groups, b, *patches.shape[1:3], -1)
    return y.transpose(1, 2, 3, 0, 4).reshape(b, *patches.shape[1:3], width)


# A convolution y = x * k is a product of x and k; its gradients by x and by k are products of one of them and y's
# gradient. Each of these three has the two others as its own gradients, so no derivative of any order leaves them.
# Differentiating XLA's operation twice instead gives convolutions with kernels the size of the image.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(x, kernel, stride, pads, groups):
    if on_cpu() and groups > 1:  # depthwise: see `conv`
        return _shifted(x, kernel, stride, pads)
    return _native(x, kernel, stride, pads, groups)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _by_input(y, kernel, stride, pads, groups, size):
    """`_product`'s gradient by x of (H, W) = `size`, from y's: (B, oh, ow, F) -> (B, H, W, C)."""
    if on_cpu() and groups > 1:
        return _shifted_by_input(y, kernel, stride, pads, size)
    x = jax.ShapeDtypeStruct((len(y), *size, kernel.shape[2] * groups), y.dtype)
    return jax.linear_transpose(lambda x: _native(x, kernel, stride, pads, groups), x)(y)[0]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _by_kernel(x, y, stride, pads, groups, size):
    """`_product`'s gradient by a kernel of (kh, kw) = `size`, from y's: (B, oh, ow, F) -> (kh, kw, C / groups, F)."""
    shape = (*size, x.shape[-1] // groups, y.shape[-1])
    if on_cpu() and groups > 1:
        return _by_taps(x, y, stride, pads, size)
    if on_cpu():
        patches = _patches(x, size, stride, pads)
        return (patches.reshape(-1, patches.shape[-1]).T @ y.reshape(-1, y.shape[-1])).reshape(shape)
    kernel = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(lambda kernel: _native(x, kernel, stride, pads, groups), kernel)(y)[0]


def _product_backward(stride, pads, groups, saved, y):
    x, kernel = saved
    return (_by_input(y, kernel, stride, pads, groups, x.shape[1:3]),
            _by_kernel(x, y, stride, pads, groups, kernel.shape[:2]))


def _by_input_backward(stride, pads, groups, size, saved, x):
    y, kernel = saved
    return _product(x, kernel, stride, pads, groups), _by_kernel(x, y, stride, pads, groups, kernel.shape[:2])


def _by_kernel_backward(stride, pads, groups, size, saved, kernel):
    x, y = saved
    return _by_input(y, kernel, stride, pads, groups, x.shape[1:3]), _product(x, kernel, stride, pads, groups)


_product.defvjp(lambda *args: (_product(*args), args[:2]), _product_backward)
_by_input.defvjp(lambda *args: (_by_input(*args), args[:2]), _by_input_backward)
_by_kernel.defvjp(lambda *args: (_by_kernel(*args), args[:2]), _by_kernel_backward)


# ---- depthwise convolutions on a CPU, as shifted maps ------------------------------------------------------------------


def _shifted(x, kernel, stride, pads):
    """`_product` of each channel by itself: for each tap of the kernel what it sees, times its weight."""
    (kh, kw), (b, h, w, c) = kernel.shape[:2], x.shape
    oh, ow = ((size + sum(pad) - k) // stride + 1 for size, pad, k in zip((h, w), pads, (kh, kw), strict=True))
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    # Strided slices are slow to differentiate: split into stride x stride phases first, then slice densely.
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % stride), (0, -x.shape[2] % stride), (0, 0)))
    x = x.reshape(b, x.shape[1] // stride, stride, x.shape[2] // stride, stride, c)
    seen = lambda i, j: x[:, i // stride : i // stride + oh, i % stride, j // stride : j // stride + ow, j % stride]
    return sum(seen(i, j) * kernel[i, j, 0] for i in range(kh) for j in range(kw))


def _shifted_by_input(y, kernel, stride, pads, size):
    """`_by_input` of each channel by itself: again such a convolution, of y, dilated, with the flipped kernel."""
    (kh, kw), (b, oh, ow, c) = kernel.shape[:2], y.shape
    if stride > 1:
        after = (0, stride - 1)
        y = jnp.pad(y[:, :, None, :, None], ((0, 0), (0, 0), after, (0, 0), after, (0, 0)))
        y = y.reshape(b, oh * stride, ow * stride, c)
    edges = [(k - 1 - pad[0], n + pad[0] - length) for k, pad, n, length in zip(
        (kh, kw), pads, size, y.shape[1:3], strict=True)]
    y = jax.lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), *((*edge, 0) for edge in edges), (0, 0, 0)))
    h, w = size
    return sum(y[:, i : i + h, j : j + w] * kernel[kh - 1 - i, kw - 1 - j, 0] for i in range(kh) for j in range(kw))


_MOST_TERMS = 20  # images whose products are added in one pass, in `_by_taps`


def _by_taps(x, y, stride, pads, size):
    """`_by_kernel` of each channel by itself.

    For each tap the products of what it sees and y, where it sees no padding, are added over images, and then, by a
    product with ones, over places. XLA writes a sum of products of slices as such, but makes a copy of each of the slices
    and reduces these, nine times the map, which takes three times as long and more memory.
    """
    b, c = len(x), x.shape[-1]
    terms = max(n for n in range(1, _MOST_TERMS + 1) if b % n == 0)
    by_tap = []
    for rows, rows_of_y in _overlaps(x.shape[1], size[0], stride, pads[0]):
        for columns, columns_of_y in _overlaps(x.shape[2], size[1], stride, pads[1]):
            seen, of_y = x[:, rows, columns], y[:, rows_of_y, columns_of_y]
            parts = zip(jnp.split(seen, terms), jnp.split(of_y, terms), strict=True)
            added = sum(a * g for a, g in parts).reshape(-1, c)
            by_tap.append(jnp.ones(len(added), added.dtype) @ added)
    return jnp.stack(by_tap).reshape(*size, 1, c)


def _overlaps(length, taps, stride, pad):
    """For each tap of a dimension: (the slice of the input that it sees, the slice of the outputs that see it)."""
    before, out = pad[0], (length + sum(pad) - taps) // stride + 1
    for tap in range(taps):
        first = max(0, -(-(before - tap) // stride))
        last = min(out - 1, (length - 1 + before - tap) // stride)
        begin = first * stride + tap - before
        yield slice(begin, begin + (last - first) * stride + 1, stride), slice(first, last + 1)
