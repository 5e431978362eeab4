"""Floating-point operations of a function, counted in its jaxpr: nothing is compiled, and every backend gives one answer.

Compiled programs have a count of their own, but it counts a loop's body once, whatever its length. Here a scan counts as
often as it runs.
"""

import math
from collections.abc import Callable, Iterator

import jax
import numpy as np


def count_flops(function: Callable, *arguments) -> int:
    """Multiplications and additions of all matrix products and convolutions in `function(*arguments)`.

    Elementwise operations are left out: they are few, and bound by memory. Products with padding, and with the zeros
    that a convolution is dilated with, are not counted. A `while_loop` counts once and a `cond` as its most expensive
    branch, since nothing better is known.

    Args:
        function: any function. One with `trace` (a jitted one) is counted as that traces it.
        arguments: arrays or `jax.ShapeDtypeStruct`s, in pytrees.
    """
    traced = function.trace(*arguments).jaxpr if hasattr(function, "trace") else jax.make_jaxpr(function)(*arguments)
    return _count(traced.jaxpr)


def _count(jaxpr) -> int:
    return sum(_flops_of_equation(equation) for equation in jaxpr.eqns)


def _flops_of_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        return _flops_of_convolution(equation)
    inner = [_count(jaxpr) for value in params.values() for jaxpr in jaxprs_of(value)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _flops_of_convolution(equation) -> int:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    image, kernel, output = (variable.aval.shape for variable in (*equation.invars[:2], equation.outvars[0]))
    products = math.prod(
        _products(image[i], kernel[k], output[o], stride, before, image_step, kernel_step)
        for i, k, o, stride, (before, _), image_step, kernel_step in zip(
            numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], params["window_strides"],
            params["padding"], params["lhs_dilation"], params["rhs_dilation"], strict=True))
    batch, features = (output[i] for i in numbers.out_spec[:2])
    return 2 * batch * features * kernel[numbers.rhs_spec[1]] * products


def _products(image: int, kernel: int, output: int, stride: int, before: int, image_step: int, kernel_step: int) -> int:
    """Along one dimension, for how many (output, tap) the tap is on a pixel and not on padding or a dilation's zero.

    The second derivative of a convolution is written as one whose kernel is as large as the image and mostly off it.
    """
    position = np.arange(output)[:, None] * stride + np.arange(kernel) * kernel_step - before
    return int(((position >= 0) & (position <= (image - 1) * image_step) & (position % image_step == 0)).sum())


def jaxprs_of(value) -> Iterator:
    """The jaxprs in a parameter of an equation: alone, closed, or several."""
    for part in value if isinstance(value, (tuple, list)) else (value,):
        part = getattr(part, "jaxpr", part)
        if hasattr(part, "eqns"):
            yield part
