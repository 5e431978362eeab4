"""Floating-point operations of a function, counted in its jaxpr: nothing is compiled, and any backend gets one answer.

Compiled programs count theirs too, but a loop's body once, whatever its length; here a scan counts as often as it runs.
"""

import math

import jax
import numpy as np


def count_flops(function, *arguments) -> int:
    """Multiplications and additions of all matrix products and convolutions in `function(*arguments)`.

    arguments: arrays or `jax.ShapeDtypeStruct`s, in pytrees. Elementwise operations are left out: they are few, and
    bound by memory. A `while_loop` counts once and a `cond` as its dearest branch, for want of anything better.
    A function with `trace` (a jitted one) is counted as that traces it.
    Products with padding, and with the zeros that a convolution is dilated with, are not counted.
    """
    traced = function.trace(*arguments).jaxpr if hasattr(function, "trace") else jax.make_jaxpr(function)(*arguments)
    return _count(traced.jaxpr)


def _count(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inner = [_count(part) for value in params.values() for part in jaxprs_of(value)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _of_convolution(equation) -> int:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    image, kernel, output = (variable.aval.shape for variable in (*equation.invars[:2], equation.outvars[0]))
    met = math.prod(
        _met(image[i], kernel[k], output[o], stride, before, image_step, kernel_step)
        for i, k, o, stride, (before, _), image_step, kernel_step in zip(
            numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], params["window_strides"],
            params["padding"], params["lhs_dilation"], params["rhs_dilation"], strict=True))
    batch, features = (output[i] for i in numbers.out_spec[:2])
    return 2 * batch * features * kernel[numbers.rhs_spec[1]] * met


def _met(image: int, kernel: int, output: int, stride: int, before: int, image_step: int, kernel_step: int) -> int:
    """Along one dimension, in how many (output, tap) the tap meets a pixel and not padding or a dilation's zero.

    The second derivative of a convolution is written as one whose kernel is as large as the image and meets little.
    """
    place = np.arange(output)[:, None] * stride + np.arange(kernel) * kernel_step - before
    return int(((place >= 0) & (place <= (image - 1) * image_step) & (place % image_step == 0)).sum())


def jaxprs_of(value):
    """The jaxprs among an equation's parameters: alone, closed, or several."""
    for part in value if isinstance(value, (tuple, list)) else (value,):
        part = getattr(part, "jaxpr", part)
        if hasattr(part, "eqns"):
            yield part
