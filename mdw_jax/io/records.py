"""What stages leave behind for the next one to read: JSON records, JSON lines, arrays."""

import io
import json
from pathlib import Path

import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.io.files import write_atomically
from mdw_jax.runtime.processes import broadcast_from_main


def complete(path: Path, key: str, *fields: str):
    """The JSON written last by a stage, if it is there. Raises UserError if it is damaged, another's, or lacks `fields`.

    With several processes it is there if process 0 finds it.
    """
    return broadcast_from_main(lambda: _complete(path, key, fields))


def _complete(path: Path, key: str, fields):
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        same = found["key"] == key and all(name in found for name in fields)
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise UserError(f"'{path}' is not the whole record of this configuration; delete the folder '{path.parent}' "
                        "and run again.")
    return found


def stored_array(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """An .npy that a stage wrote. Raises UserError if it is missing, damaged or of another shape (None: any length)."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError, MemoryError) as error:
        raise UserError(f"'{path}' cannot be read ({type(error).__name__}); delete the folder '{path.parent}' and run "
                        "again.") from error
    if len(shape) != array.ndim or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise UserError(f"'{path}' is of shape {array.shape} and belongs to other data; delete the folder "
                        f"'{path.parent}' and run again.")
    return array


def write_lines(path: Path, rows):
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _write_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def _read_history(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is damaged ({type(error).__name__}); delete the folder '{path.parent}' and run "
                        "again.") from error
