"""Compiling functions of a model whose frozen weights go in as arguments."""

from collections.abc import Callable

import jax

from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.image.conv import on_cpu


def jit_with_frozen(model: DualEncoder, function: Callable, **options) -> "_JittedWithFrozen":
    """`jax.jit` of `function(model, *arguments)`, to be called with the arguments alone.

    The model's frozen arrays go in as an argument. As constants of the program a backbone's weights would be folded by
    XLA, written to the compilation cache, and copied into each program that uses them.

    Args:
        model: whose frozen arrays are used.
        function: of a model and arguments.
        options: of `jax.jit`; those that count arguments count the frozen arrays as number 0.
    Returns:
        A callable of the arguments, with `lower` and `trace` as a jitted function has them.
    """
    def program(frozen, *arguments):
        return function(model.with_frozen(frozen), *arguments)

    program.__name__ = function.__name__  # what profiles and logs call it
    return _JittedWithFrozen(model.frozen, jax.jit(program, **options))


class _JittedWithFrozen:
    """A jitted function with its first argument filled in."""

    def __init__(self, frozen, jitted):
        self._frozen, self._jitted = frozen, jitted

    def __call__(self, *arguments):
        return self._jitted(self._frozen, *arguments)

    def lower(self, *arguments):
        """Lowered for arguments that are arrays or `jax.ShapeDtypeStruct`s."""
        return self._jitted.lower(self._frozen, *arguments)

    def trace(self, *arguments):
        """Traced for arguments that are arrays or `jax.ShapeDtypeStruct`s."""
        return self._jitted.trace(self._frozen, *arguments)


def use_vmap(model: DualEncoder) -> bool:
    """Whether several networks of this model are computed under `vmap`: on one CPU convolutions are slow under it."""
    return model.mode == "projection" or not on_cpu() or len(jax.devices()) > 1
