"""The trajectory store: one network's parameters after every epoch, read back one snapshot at a time.

A trajectory is one folder, an Orbax checkpoint of two items. `snapshots` holds each parameter as one array of shape
(snapshots, *its own shape), cut into one chunk per snapshot, so that a single snapshot is read alone, straight through
TensorStore; `header` is a small JSON: the key, the length, the dtype, the caller's metadata and the checksums. The
store knows nothing of training or matching; what a trajectory belongs to is named by a key that the caller chooses.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp

from mdw_jax.errors import UserError

DTYPES = ("float32", "bfloat16")
_FORMAT = "mdw_jax.io.trajectory.1"
# Everything a finished or half-written trajectory can have at its top level: the only names that saving may replace.
_OWN_NAMES = {"snapshots", "header", "_CHECKPOINT_METADATA", "orbax.checkpoint", "commit_success.txt"}


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """An open trajectory: what it is, and handles to its arrays; nothing is read until `read_snapshot`.

    folder: where it lives.
    key: names what it was trained from (data, noise draw, recipe, seed).
    length: number of snapshots, 0 .. length - 1; snapshot k is the parameters after epoch k, 0 before training.
    dtype: the dtype on disk, "float32" or "bfloat16".
    metadata: what the caller stored beside it.
    arrays, checksums: parameter path -> stored array (length, ...), and -> crc32 of each snapshot's bytes.
    """

    folder: str
    key: str
    length: int
    dtype: str
    metadata: Mapping[str, Any]
    arrays: Mapping[tuple[str, ...], ts.TensorStore] = dataclasses.field(repr=False)
    checksums: Mapping[tuple[str, ...], Sequence[int]] = dataclasses.field(repr=False)


def save_trajectory(folder, snapshots: Sequence[Mapping], *, key: str, dtype: str = "float32",
                    metadata: Mapping[str, Any] | None = None, overwrite: bool = False) -> None:
    """Save `snapshots` as one trajectory. It is there whole when this returns, and not at all if it is cut short.

    Pass the snapshots that distillation will read (0 .. max_start_epoch - 1 + m) and no more. What an interrupted save
    left behind is replaced. With several processes, call it on all of them: the first one writes, all of them wait.

    Args:
      folder: a local path, or any URL that both Orbax and TensorStore write to (`gs://...`).
      snapshots: nested dicts (string keys) of floating-point numpy or jax arrays, all of one structure and shapes.
      key: sha256 of the data, noise draw, recipe and seed that it was trained from.
      dtype: dtype on disk, "float32" or "bfloat16".
      metadata: anything JSON can hold (metrics per epoch, noise rate, ...).
      overwrite: replace a finished trajectory instead of refusing to.

    Raises:
      UserError: unknown dtype; a finished trajectory, or something that is not one, is already in `folder`.
      ValueError: the snapshots are not alike, or not nested dicts of floating-point arrays.
    """
    if dtype not in DTYPES:
        raise UserError(f"trajectories are stored as {' or '.join(DTYPES)}, not as '{dtype}'.")
    folder = _locate(folder)
    arrays = _stack(snapshots, dtype)
    header = {
        "format": _FORMAT, "key": key, "length": len(snapshots), "dtype": dtype, "metadata": dict(metadata or {}),
        "checksums": unflatten_dict({path: [_checksum(row) for row in array] for path, array in arrays.items()}),
    }
    json.dumps(header)  # Orbax would notice what JSON cannot hold only after it has removed what it replaces
    _check_destination(folder, overwrite)
    context = _orbax_context()
    saving = context.array.saving
    saving.use_zarr3 = saving.use_ocdbt = True  # what `open_trajectory` relies on
    saving.storage_options.shard_axes = (0,)  # one chunk per snapshot
    saving.use_compression = False  # it would save 7 % of float32 weights, and triple the time to read them
    with context:
        ocp.save_checkpointables(folder, {"snapshots": unflatten_dict(arrays), "header": header}, overwrite=True)


def is_finished(folder) -> bool:
    """Whether `folder` holds a trajectory whose saving ran to its end. Reads the header only, no parameters."""
    return _read_header(_locate(folder)) is not None


def open_trajectory(folder, *, key: str | None = None) -> Trajectory:
    """Open a finished trajectory; with `key`, only if it is the one that was trained from what the key names.

    Raises:
      UserError: nothing is there, it was never finished, files are missing or damaged, or its key is another.
    """
    folder = _locate(folder)
    header = _read_header(folder)
    if header is None:
        raise UserError(f"{folder} holds no finished trajectory (nothing was saved there, or saving was cut short); "
                        "train this expert again.")
    if key is not None and header["key"] != key:
        raise UserError(f"the trajectory at {folder} comes from other data, noise, recipe or seed than asked for "
                        f"(its key is {header['key'][:12]}, not {key[:12]}); train this expert again, "
                        "or point at the right run.")
    checksums = flatten_dict(header["checksums"])
    place = f"{folder}/snapshots/"
    base = place if "://" in place else {"driver": "file", "path": place}
    context = ts.Context()
    opening = {path: ts.open({"driver": "zarr3",
                              "kvstore": {"driver": "ocdbt", "base": base, "path": f"{'.'.join(path)}/"}},
                             open=True, read=True, context=context) for path in checksums}
    try:
        arrays = {path: future.result() for path, future in opening.items()}
    except (ValueError, OSError) as error:
        raise _damaged(f"the trajectory at {folder}") from error
    return Trajectory(str(folder), header["key"], header["length"], header["dtype"], header["metadata"], arrays,
                      checksums)


def read_snapshot(trajectory: Trajectory, index: int) -> dict:
    """The parameters after epoch `index` (0: before training), as nested dicts of float32 numpy arrays.

    Reads the bytes of that snapshot only, and checks them against the checksums taken when they were saved.

    Raises:
      UserError: the snapshot was not stored, or its bytes are not the ones that were saved.
    """
    if not 0 <= index < trajectory.length:
        raise UserError(f"snapshot {index} was not stored: the trajectory at {trajectory.folder} holds 0 to "
                        f"{trajectory.length - 1}; lower distill.max_start_epoch or distill.match_epochs, or "
                        "train these experts again.")
    reading = {path: array[index].read() for path, array in trajectory.arrays.items()}
    leaves = {}
    for path, future in reading.items():
        name = f"'{'.'.join(path)}' in snapshot {index} of the trajectory at {trajectory.folder}"
        try:
            stored = np.asarray(future.result())
        except (ValueError, OSError) as error:
            raise _damaged(name) from error
        if _checksum(stored) != trajectory.checksums[path][index]:
            raise _damaged(name)
        leaves[path] = stored.astype(np.float32, copy=False)
    return unflatten_dict(leaves)


def _locate(folder) -> epath.Path:
    """A URL as it is; a local path made absolute, which TensorStore asks for."""
    path = epath.Path(folder)
    return path if "://" in str(path) else path.resolve()


def _stack(snapshots: Sequence[Mapping], dtype: str) -> dict[tuple[str, ...], np.ndarray]:
    """Parameter path -> host array (snapshots, ...) of `dtype`."""
    if not snapshots:
        raise ValueError("a trajectory needs at least one snapshot.")
    structure = jax.tree.structure(snapshots[0])
    flat = [flatten_dict(jax.device_get(snapshot)) for snapshot in snapshots]
    # Lists, None and empty dicts would not come back as they were.
    plain = jax.tree_util.all_leaves(flat[0].values()) and jax.tree.structure(unflatten_dict(flat[0])) == structure
    strings = all(isinstance(name, str) for path in flat[0] for name in path)
    if not (plain and strings and len({".".join(path) for path in flat[0]}) == len(flat[0])):
        raise ValueError("a snapshot is nested dicts of arrays, with string keys that joined by '.' all differ.")
    if any(jax.tree.structure(snapshot) != structure for snapshot in snapshots):
        raise ValueError("the snapshots of a trajectory must all have the same parameters.")
    arrays = {path: np.stack([np.asarray(leaves[path]) for leaves in flat]) for path in flat[0]}
    for path, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"parameter {'.'.join(path)} is {array.dtype}; a trajectory holds floating point only.")
    return {path: array.astype(jnp.dtype(dtype), copy=False) for path, array in arrays.items()}


def _checksum(array: np.ndarray) -> int:
    """crc32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _orbax_context() -> ocp.Context:
    """Default options, with the item named `header` kept as one JSON file."""
    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry()
    context.checkpointables.registry.add(ocp.handlers.JsonHandler, checkpointable_name="header")
    return context


def _check_destination(folder: epath.Path, overwrite: bool) -> None:
    """Refuse to save over a finished trajectory unasked, and over anything else always."""
    if not folder.exists():
        return
    strangers = sorted({entry.name for entry in folder.iterdir()} - _OWN_NAMES) if folder.is_dir() else [folder.name]
    if strangers:
        raise UserError(f"{folder} holds '{strangers[0]}', which is no part of a trajectory; choose another folder.")
    if not overwrite and is_finished(folder):
        raise UserError(f"{folder} already holds a finished trajectory; delete it, or save with overwrite=True.")


def _read_header(folder: epath.Path) -> dict | None:
    """What `save_trajectory` wrote about the trajectory in `folder`; None if it holds no finished one."""
    if not ocp.is_orbax_checkpoint(folder):
        return None
    try:
        with _orbax_context():
            header = ocp.load_checkpointables(folder, {"header": None})["header"]
    except (ValueError, OSError, KeyError):  # another program's checkpoint, or a file that is missing or cut short
        return None
    return header if _is_header(header) else None


def _is_header(header) -> bool:
    """Whether it says all that a trajectory is read by, in the types and lengths of `save_trajectory`."""
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        return False
    kinds = {"key": str, "length": int, "dtype": str, "metadata": dict, "checksums": dict}
    if not all(isinstance(header.get(name), kind) for name, kind in kinds.items()):
        return False
    return all(isinstance(sums, list) and len(sums) >= header["length"]
               for sums in flatten_dict(header["checksums"]).values())


def _damaged(what: str) -> UserError:
    return UserError(f"{what} cannot be read back as it was saved: files are damaged, missing or out of reach; "
                     "restore them, or train this expert again.")
