"""Functions of many rows, computed a part of the rows at a time, so that memory follows the part."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mdw_jax.runtime import mesh


def in_chunks(function: Callable, rows: Any, chunk: int, axes: tuple[str, ...] = (mesh.DATA,)):
    """`function(rows)` of a function that treats each row by itself, at most about `chunk` rows at a time.

    Where it is differentiated, nothing of a chunk is kept but its rows: its forward pass is computed once more when its
    gradient is due. Memory is that of one chunk, for one more forward pass. Results are those of all rows at once, up to
    rounding: products of other sizes add in another order.

    Chunks are of one size, as equal as can be; what the last one lacks is filled with copies of the last row, whose
    results are dropped.

    Args:
        function: pytree of arrays (n, ...) -> pytree of arrays (n, ...).
        rows: pytree of arrays with a common leading axis.
        chunk: largest number of rows at a time, up to the number of devices that share one; 0, or as many as there are
            rows: all at once, and nothing is computed again.
        axes: of the device mesh, over which the rows of a chunk are laid.
    """
    count = len(jax.tree.leaves(rows)[0])
    laid_out = lambda rows: jax.tree.map(lambda x: mesh.shard_rows(x, axes), rows)
    if not 0 < chunk < count:
        return function(laid_out(rows))
    chunks = -(-count // chunk)
    devices = mesh.devices_along(axes)
    size = math.ceil(count / (chunks * devices)) * devices
    missing = chunks * size - count
    fill = lambda x: jnp.concatenate([x, jnp.broadcast_to(x[-1:], (missing, *x.shape[1:]))]) if missing else x
    parts = jax.tree.map(lambda x: fill(x).reshape(chunks, size, *x.shape[1:]), rows)
    # In a loop nothing can be shared with the forward pass, so nothing has to be kept from being shared.
    of_chunk = jax.checkpoint(lambda part: function(laid_out(part)), prevent_cse=False)
    results = jax.lax.map(of_chunk, parts)
    return jax.tree.map(lambda x: x.reshape(chunks * size, *x.shape[2:])[:count], results)
