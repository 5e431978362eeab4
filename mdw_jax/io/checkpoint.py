"""A pytree of arrays in one safetensors file, for going on where a loop stopped."""

from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save

from mdw_jax.errors import UserError
from mdw_jax.io.files import write_atomically
from mdw_jax.runtime.pytree import _named, restore


def save_checkpoint(path, tree, key: str) -> None:
    """Write `tree` (arrays and scalars) with the `key` of what it belongs to; atomic."""
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _named(tree).items()}
    write_atomically(path, save(arrays, {"key": key}))


def read_checkpoint(path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays saved under `key` by their names (`jax.tree_util.keystr` of their paths); None if there is no file.

    Raises UserError if the file is damaged or belongs to something else.
    """
    if not Path(path).exists():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("key") != key:
                raise UserError(f"the checkpoint '{path}' belongs to another configuration; use another run.dir, or "
                                "delete that file to start this stage afresh.")
            return {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise UserError(f"the checkpoint '{path}' is damaged ({error}); delete it to start this stage afresh."
                        ) from None


def load_checkpoint(path, like, key: str):
    """The tree saved under `key`, in the structure of `like` (`restore`); None if there is no file.

    Raises UserError if the file is damaged or belongs to something else.
    """
    arrays = read_checkpoint(path, key)
    if arrays is None:
        return None
    try:
        return restore(arrays, like)
    except ValueError:
        raise UserError(f"the checkpoint '{path}' holds other tensors than this configuration needs; delete it."
                        ) from None
