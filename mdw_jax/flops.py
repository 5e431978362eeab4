"""Floating-point operations of a function, counted in its jaxpr: nothing is compiled, and any backend gets one answer.

Compiled programs count theirs too, but a loop's body once, whatever its length; here a scan counts as often as it runs.
"""

import math

import jax


def count_flops(function, *arguments) -> int:
    """Multiplications and additions of all matrix products and convolutions in `function(*arguments)`.

    arguments: arrays or `jax.ShapeDtypeStruct`s, in pytrees. Elementwise operations are left out: they are few, and
    bound by memory. A `while_loop` counts once and a `cond` as its dearest branch, for want of anything better; the
    zeros that the gradient of a strided convolution is dilated with are not counted.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        zeros = math.prod(params["lhs_dilation"])
        return 2 * equation.outvars[0].aval.size * kernel.size // (outputs * zeros)
    inner = [_count(part) for value in params.values() for part in _jaxprs(value)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs(value):
    """The jaxprs among an equation's parameters: alone, closed, or several."""
    for part in value if isinstance(value, (tuple, list)) else (value,):
        part = getattr(part, "jaxpr", part)
        if hasattr(part, "eqns"):
            yield part
