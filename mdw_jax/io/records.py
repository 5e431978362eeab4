"""What stages leave behind for the next one to read: JSON records, JSON lines, arrays.

Unlike a cache (`mdw_jax.io.keyed`), a record that is damaged or of another configuration is an error: it holds work
that must not be replaced unasked.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.io.checksums import DamagedError, read_verified, read_verified_json, write_listed
from mdw_jax.io.files import MAX_JSON_BYTES, npy_bytes, parse_json_lines
from mdw_jax.io.numpy_files import numpy_file
from mdw_jax.runtime.processes import broadcast_from_main


def complete(path: Path, key: str, *fields: str) -> dict | None:
    """Read the record that a stage writes last, so that its presence means the stage is done.

    With several processes, process 0 reads it for all.

    Args:
        path: a JSON file.
        key: the key of the configuration it must belong to.
        *fields: names it must hold besides "key".

    Returns:
        The record; None if there is none.

    Raises:
        UserError: it is damaged, belongs to another configuration or lacks one of `fields`.
    """
    return broadcast_from_main(lambda: _complete(path, key, fields))


def _complete(path: Path, key: str, fields: tuple[str, ...]) -> dict | None:
    if not path.exists():
        return None
    try:
        record = read_verified_json(path, note=True)
    except DamagedError as error:
        raise UserError(f"'{path}' is damaged ({error}); delete it, and its stage is done again.") from None
    except ValueError:
        record = {}
    if record.get("key") != key or not all(name in record for name in fields):
        raise UserError(f"'{path}' is not the whole record of this configuration; delete the directory "
                        f"'{path.parent}' and run again.")
    return record


def write_array(path: Path, array) -> None:
    """Write an array as a .npy file, atomically, and list the file in SHA256SUMS beside it."""
    write_listed(path, npy_bytes(array))


def stored_array(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """Read a .npy file that a stage wrote.

    Args:
        path: the file.
        shape: the shape it must have; None stands for any length.

    Raises:
        UserError: it is missing, damaged or of another shape.
    """
    try:
        with numpy_file(io.BytesIO(read_verified(path))) as array:
            if not isinstance(array, np.ndarray):
                raise ValueError("it is an archive")
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); delete the directory '{path.parent}' and "
                        "run again.") from error
    if len(shape) != array.ndim or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise UserError(f"'{path}' is of shape {array.shape} and belongs to other data; delete the directory "
                        f"'{path.parent}' and run again.")
    return array


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write rows as JSON lines, atomically, and list the file in SHA256SUMS beside it."""
    write_listed(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_lines(path: Path) -> list[dict]:
    """Read rows that `write_lines` wrote. Raises UserError if the file is missing or damaged."""
    try:
        return parse_json_lines(read_verified(path, MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is damaged ({error}); delete the directory '{path.parent}' and run again.") from error
