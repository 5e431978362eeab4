"""The trajectory store: one network's parameters after every epoch, read back one snapshot at a time.

A trajectory is one directory, an Orbax checkpoint of two items. `snapshots` holds each parameter as one array of shape
(snapshots, *shape of the parameter), stored as one chunk per snapshot, so that TensorStore reads a single snapshot
alone. `header` is a small JSON: the key, the length, the dtype, the caller's metadata and the checksums. The store
knows nothing about training or matching: a key that the caller chooses says what a trajectory belongs to.
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
from mdw_jax.io.locate import refuse_unusable_path, wrong_level

DTYPES = ("float32", "bfloat16")
_FORMAT = "mdw_jax.io.trajectory.1"
_OLDER_FORMATS = ("mdw_jax.trajectory.1",)
# All that a finished or half-written trajectory can have at its top level: the only names that saving may replace.
_OWN_NAMES = {"snapshots", "header", "_CHECKPOINT_METADATA", "orbax.checkpoint", "commit_success.txt"}


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """An open trajectory: its header, and handles to its arrays; parameters are read by `read_snapshot` alone.

    Attributes:
        path: its directory.
        key: sha256 of what it was trained from (data, noise draw, recipe, seed).
        length: number of snapshots; snapshot k holds the parameters after epoch k, snapshot 0 those before training.
        dtype: the dtype on disk, "float32" or "bfloat16".
        metadata: what the caller stored with it.
        arrays: {parameter path: stored array (length, ...)}.
        checksums: {parameter path: crc32 of each snapshot's bytes}.
    """

    path: str
    key: str
    length: int
    dtype: str
    metadata: Mapping[str, Any]
    arrays: Mapping[tuple[str, ...], ts.TensorStore]
    checksums: Mapping[tuple[str, ...], Sequence[int]]

    def __repr__(self) -> str:
        count = sum(int(np.prod(array.shape[1:])) for array in self.arrays.values())
        return (f"Trajectory('{self.path}': {self.length} snapshots of {count:,} parameters in {len(self.arrays)} "
                f"arrays, {self.dtype})")


def save_trajectory(path, snapshots: Sequence[Mapping], *, key: str, dtype: str = "float32",
                    metadata: Mapping[str, Any] | None = None, overwrite: bool = False) -> None:
    """Save `snapshots` as one trajectory. An interrupted save leaves no finished trajectory, and can be repeated.

    Pass the snapshots that distillation will read (0 .. max_start_epoch - 1 + match_epochs) and no more. With several
    processes, call it on all of them: process 0 writes, the others wait.

    Args:
        path: a local directory, or any URL that both Orbax and TensorStore write to (`gs://...`).
        snapshots: nested dicts (string keys) of floating-point numpy or jax arrays, all of one structure and shapes.
        key: sha256 of the data, noise draw, recipe and seed that it was trained from.
        dtype: dtype on disk, "float32" or "bfloat16".
        metadata: anything JSON can hold (metrics per epoch, noise rate, ...).
        overwrite: replace a finished trajectory instead of refusing to.

    Raises:
        UserError: unknown dtype; a finished trajectory, or something else, is already at `path`.
        ValueError: the snapshots differ in structure, or are not nested dicts of floating-point arrays.
    """
    if dtype not in DTYPES:
        raise UserError(f"trajectories are stored as {' or '.join(DTYPES)}, not as '{dtype}'.")
    directory = _locate(path)
    arrays = _stack(snapshots, dtype)
    header = {
        "format": _FORMAT, "key": key, "length": len(snapshots), "dtype": dtype, "metadata": dict(metadata or {}),
        "checksums": unflatten_dict({name: [_checksum(row) for row in array] for name, array in arrays.items()}),
    }
    json.dumps(header)  # Orbax would notice what JSON cannot hold only after it has removed what it replaces
    _check_destination(directory, overwrite)
    context = _orbax_context()
    saving = context.array.saving
    saving.use_zarr3 = saving.use_ocdbt = True  # what `open_trajectory` relies on
    saving.storage_options.shard_axes = (0,)  # one chunk per snapshot
    saving.use_compression = False  # it would save 7 % of float32 weights, and triple the time to read them
    with context:
        ocp.save_checkpointables(directory, {"snapshots": unflatten_dict(arrays), "header": header}, overwrite=True)


def is_finished(path) -> bool:
    """Whether `path` holds a trajectory that was saved completely. Reads the header only, no parameters."""
    return _read_header(_locate(path)) is not None


def open_trajectory(path, *, key: str | None = None) -> Trajectory:
    """Open a finished trajectory.

    Args:
        path: its directory or URL: `<run.dir>/experts/<recipe>-<key>/net_<n>`.
        key: refuse a trajectory of another key.

    Raises:
        UserError: nothing is there, it was never finished, files are missing or damaged, or its key is another; for a
            path one level too high or too low, the message names the right one.
    """
    if "://" not in str(path):
        refuse_unusable_path(path)
    directory = _locate(path)
    header = _read_header(directory)
    if header is None:
        if (_stored_header(directory) or {}).get("format") in _OLDER_FORMATS:
            raise UserError(f"the trajectory at {directory} was made by an older version of mdw-jax; run mdw again in "
                            "another directory.")
        raise UserError(wrong_level(path, "trajectory") or
                        f"{directory} holds no finished trajectory (nothing was saved there, or saving was cut "
                        "short); train this expert again.")
    if key is not None and header["key"] != key:
        raise UserError(f"the trajectory at {directory} comes from other data, noise, recipe or seed than asked for "
                        f"(its key is {header['key'][:12]}, not {key[:12]}); train this expert again, "
                        "or point at the right run.")
    checksums = flatten_dict(header["checksums"])
    place = f"{directory}/snapshots/"
    base = place if "://" in place else {"driver": "file", "path": place}
    context = ts.Context()
    futures = {name: ts.open({"driver": "zarr3",
                              "kvstore": {"driver": "ocdbt", "base": base, "path": f"{'.'.join(name)}/"}},
                             open=True, read=True, context=context) for name in checksums}
    try:
        arrays = {name: future.result() for name, future in futures.items()}
    except (ValueError, OSError) as error:
        raise _damaged(f"the trajectory at {directory}") from error
    return Trajectory(str(directory), header["key"], header["length"], header["dtype"], header["metadata"], arrays,
                      checksums)


def read_snapshot(trajectory: Trajectory, index: int) -> dict:
    """Read one snapshot, and no other bytes, and check it against the checksums taken when it was saved.

    Args:
        trajectory: an open trajectory.
        index: the epoch; 0 is before training.

    Returns:
        The parameters, as nested dicts of float32 numpy arrays.

    Raises:
        UserError: the snapshot was not stored, or its bytes are not the ones that were saved.
    """
    if not 0 <= index < trajectory.length:
        raise UserError(f"snapshot {index} was not stored: the trajectory at {trajectory.path} holds 0 to "
                        f"{trajectory.length - 1}; lower distill.max_start_epoch or distill.match_epochs, or "
                        "train these experts again.")
    futures = {name: array[index].read() for name, array in trajectory.arrays.items()}
    leaves = {}
    for name, future in futures.items():
        description = f"'{'.'.join(name)}' in snapshot {index} of the trajectory at {trajectory.path}"
        try:
            stored = np.asarray(future.result())
        except (ValueError, OSError) as error:
            raise _damaged(description) from error
        if _checksum(stored) != trajectory.checksums[name][index]:
            raise _damaged(description)
        leaves[name] = stored.astype(np.float32, copy=False)
    return unflatten_dict(leaves)


def _locate(path) -> epath.Path:
    """A URL as it is; a local path made absolute, which TensorStore requires."""
    place = epath.Path(path)
    return place if "://" in str(place) else place.resolve()


def _stack(snapshots: Sequence[Mapping], dtype: str) -> dict[tuple[str, ...], np.ndarray]:
    """Parameter path -> host array (snapshots, ...) of `dtype`."""
    if not snapshots:
        raise ValueError("a trajectory needs at least one snapshot.")
    structure = jax.tree.structure(snapshots[0])
    flat = [flatten_dict(jax.device_get(snapshot)) for snapshot in snapshots]
    # Lists, None and empty dicts would not come back as they were.
    plain = jax.tree_util.all_leaves(flat[0].values()) and jax.tree.structure(unflatten_dict(flat[0])) == structure
    strings = all(isinstance(part, str) for name in flat[0] for part in name)
    if not (plain and strings and len({".".join(name) for name in flat[0]}) == len(flat[0])):
        raise ValueError("a snapshot is nested dicts of arrays, with string keys that joined by '.' all differ.")
    if any(jax.tree.structure(snapshot) != structure for snapshot in snapshots):
        raise ValueError("the snapshots of a trajectory must all have the same parameters.")
    arrays = {name: np.stack([np.asarray(leaves[name]) for leaves in flat]) for name in flat[0]}
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"parameter {'.'.join(name)} is {array.dtype}; a trajectory holds floating point only.")
    return {name: array.astype(jnp.dtype(dtype), copy=False) for name, array in arrays.items()}


def _checksum(array: np.ndarray) -> int:
    """crc32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _orbax_context() -> ocp.Context:
    """Default options, with the item named `header` kept as one JSON file."""
    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry()
    context.checkpointables.registry.add(ocp.handlers.JsonHandler, checkpointable_name="header")
    return context


def _check_destination(directory: epath.Path, overwrite: bool) -> None:
    """Refuse to save over a finished trajectory without `overwrite`, and over anything else always."""
    if not directory.exists():
        return
    names = {entry.name for entry in directory.iterdir()} if directory.is_dir() else {directory.name}
    foreign = sorted(names - _OWN_NAMES)
    if foreign:
        raise UserError(f"{directory} holds '{foreign[0]}', which is not part of a trajectory; choose another "
                        "directory.")
    if not overwrite and is_finished(directory):
        raise UserError(f"{directory} already holds a finished trajectory; delete it, or save with overwrite=True.")


def _read_header(directory: epath.Path) -> dict | None:
    """The header that `save_trajectory` wrote; None if the directory holds no finished trajectory."""
    header = _stored_header(directory)
    return header if _is_header(header) else None


def _stored_header(directory: epath.Path) -> dict | None:
    """The header of a checkpoint, of any version; None if there is none."""
    if not ocp.is_orbax_checkpoint(directory):
        return None
    try:
        with _orbax_context():
            header = ocp.load_checkpointables(directory, {"header": None})["header"]
    except (ValueError, OSError, KeyError):  # another program's checkpoint, or a file that is missing or cut short
        return None
    return header if isinstance(header, dict) else None


def _is_header(header) -> bool:
    """Whether a header has all entries of `save_trajectory`, in their types and lengths."""
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        return False
    kinds = {"key": str, "length": int, "dtype": str, "metadata": dict, "checksums": dict}
    if not all(isinstance(header.get(name), kind) for name, kind in kinds.items()):
        return False
    return all(isinstance(sums, list) and len(sums) >= header["length"]
               for sums in flatten_dict(header["checksums"]).values())


def _damaged(description: str) -> UserError:
    return UserError(f"{description} cannot be read back as it was saved: files are damaged, missing or out of reach; "
                     "restore them, or train this expert again.")
