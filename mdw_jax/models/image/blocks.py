"""Blocks of a tower that are computed again in the backward pass instead of remembered (rematerialization).

Of a block its input is kept, and the rest is computed once more when its gradient is due. Memory is then that of all
blocks' inputs and of one block, for one more forward pass. On a CPU XLA merges the second computation with the first, so
that nothing is gained there, unless XLA_FLAGS has --xla_disable_hlo_passes=cse_barrier_expander. Towers mark their
blocks here; whether anything is computed again is decided where they are used.
"""

import contextlib
import contextvars
from collections.abc import Callable

import flax.linen as nn
import jax

_RECOMPUTED = contextvars.ContextVar("recomputed", default=False)


@contextlib.contextmanager
def recomputed_blocks(recomputed: bool = True):
    """Context in which towers are traced with blocks that are computed again in the backward pass."""
    token = _RECOMPUTED.set(recomputed)
    try:
        yield
    finally:
        _RECOMPUTED.reset(token)


def block_module(module: type[nn.Module]) -> type[nn.Module]:
    """The class of a block's module, as the context says. Instances need names: those that Flax makes up would change."""
    return nn.remat(module) if _RECOMPUTED.get() else module


def block_function(function: Callable) -> Callable:
    """A block that is a function of arrays, as the context says."""
    return jax.checkpoint(function) if _RECOMPUTED.get() else function
