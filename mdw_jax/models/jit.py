"""Compiling functions of a model whose frozen weights go in as arguments."""

import jax

from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.image.conv import on_cpu


class jit_with_frozen:
    """`jax.jit` of `function(model, *arguments)`, to be called with the arguments alone; `lower` and `trace` likewise.

    What the model has frozen goes in as an argument (number 0 for the options that count them). As constants of the
    program a backbone's weights would be folded by XLA, written to the compilation cache, and copied into each program
    that uses them.
    """

    def __init__(self, model: DualEncoder, function, **options):
        self._frozen = model.frozen

        def program(frozen, *arguments):
            return function(model.with_frozen(frozen), *arguments)

        program.__name__ = function.__name__  # what profiles and logs call it
        self._jitted = jax.jit(program, **options)

    def __call__(self, *arguments):
        return self._jitted(self._frozen, *arguments)

    def lower(self, *arguments):
        """As a jitted function has it: of arrays or of their shapes."""
        return self._jitted.lower(self._frozen, *arguments)

    def trace(self, *arguments):
        """Likewise."""
        return self._jitted.trace(self._frozen, *arguments)


def use_vmap(model: DualEncoder) -> bool:
    """Whether several networks of this model are computed under `vmap`: on one CPU convolutions are slow under it."""
    return model.mode == "projection" or not on_cpu() or len(jax.devices()) > 1
