"""The state of an interrupted loop: a pytree of arrays in one safetensors file, with a checksum.

The header holds the key, and a sha256 over the key and over name, dtype, shape and bytes of every array. So a bit that
flips anywhere in the file is found when it is read: it makes the header unreadable, or the checksum another.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save

from mdw_jax.errors import UserError
from mdw_jax.io.files import digest, write_atomically
from mdw_jax.io.keyed import digest_of_arrays
from mdw_jax.runtime.pytree import named_leaves, restore

_LOG = logging.getLogger(__name__)
_KEY, _SHA256 = "key", "sha256"  # of the header; files of earlier versions have only the first


def save_checkpoint(path, tree, key: str) -> None:
    """Write a pytree of arrays and scalars atomically.

    Args:
        path: the file.
        tree: the pytree.
        key: sha256 of the configuration it belongs to.
    """
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in named_leaves(tree).items()}
    write_atomically(path, save(arrays, {_KEY: key, _SHA256: _checksum(arrays, key)}))


def read_checkpoint(path, key: str) -> dict[str, np.ndarray] | None:
    """Read the arrays saved under `key`.

    A file of an earlier version, which has no checksum, is read too, and that is logged.

    Returns:
        {name: array}, named as in `mdw_jax.runtime.pytree.named_leaves`; None if there is no file.

    Raises:
        UserError: the file is damaged or belongs to another configuration.
    """
    if not Path(path).exists():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise _damaged(path, str(error)) from None
    if set(header) not in ({_KEY, _SHA256}, {_KEY}):
        raise _damaged(path, "its header is not that of a checkpoint")
    if _SHA256 in header and header[_SHA256] != _checksum(arrays, header[_KEY]):
        raise _damaged(path, "its content does not have the sha256 that it was written with")
    if header[_KEY] != key:
        raise UserError(f"the checkpoint '{path}' belongs to another configuration; use another run.dir, or delete that "
                        "file to start this stage afresh.")
    if _SHA256 not in header:
        _LOG.info("the checkpoint '%s' is of an earlier version, without a checksum; damage to it would not be noticed.",
                  path)
    return arrays


def _damaged(path, reason: str) -> UserError:
    return UserError(f"the checkpoint '{path}' is damaged ({reason}); delete it to start this stage afresh.")


def _checksum(arrays: Mapping[str, np.ndarray], key: str) -> str:
    """sha256 over the key, and over name, dtype, shape and bytes of every array."""
    return digest(key, digest_of_arrays(arrays))


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
