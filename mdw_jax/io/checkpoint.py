"""The state of an interrupted loop: a pytree of arrays in one safetensors file."""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save

from mdw_jax.errors import UserError
from mdw_jax.io.files import write_atomically
from mdw_jax.runtime.pytree import named_leaves, restore


def save_checkpoint(path, tree, key: str) -> None:
    """Write a pytree of arrays and scalars atomically.

    Args:
        path: the file.
        tree: the pytree.
        key: sha256 of the configuration it belongs to.
    """
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in named_leaves(tree).items()}
    write_atomically(path, save(arrays, {"key": key}))


def read_checkpoint(path, key: str) -> dict[str, np.ndarray] | None:
    """Read the arrays saved under `key`.

    Returns:
        {name: array}, named as in `mdw_jax.runtime.pytree.named_leaves`; None if there is no file.

    Raises:
        UserError: the file is damaged or belongs to another configuration.
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


def load_checkpoint(path, like, key: str) -> Any:
    """Read the pytree saved under `key`.

    Args:
        path: the file.
        like: a pytree of the structure and shapes that are expected.
        key: as it was saved with.

    Returns:
        The pytree (see `mdw_jax.runtime.pytree.restore`); None if there is no file.

    Raises:
        UserError: the file is damaged, or belongs to another configuration.
    """
    arrays = read_checkpoint(path, key)
    if arrays is None:
        return None
    try:
        return restore(arrays, like)
    except ValueError:
        raise UserError(f"the checkpoint '{path}' holds other tensors than this configuration needs; delete it."
                        ) from None
