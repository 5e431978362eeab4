"""Writing files so that a reader never sees half of one, and hashing what is in memory or on disk."""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import re
import socket
import tempfile
import time
from pathlib import Path

import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.runtime.processes import is_main

_UNFINISHED = ".part"  # ends the temporary names, so that what a killed process left can be told and removed
_HOLDER = "process {} on {}\n"  # in the lock of a run folder


def write_atomically(path, data: bytes) -> Path:
    """Write `data` to `path` by temporary name, fsync and rename. Of the processes of a run only the first one writes."""
    path = Path(path)
    if not is_main():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # of a full disk the system does not say which file
        raise
    _sync_folder(path.parent)
    return path


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` outlive a power cut, on file systems that can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path, value) -> Path:
    """Write `value` as indented JSON, atomically."""
    return write_atomically(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


@contextlib.contextmanager
def locked(path):
    """Holds an exclusive lock on the file `path`, waiting for it; the system lets go of it if the process dies.

    Of the processes of a run the first one holds it for all.
    """
    path = Path(path)
    if not is_main():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def run_folder_held(folder, shared: bool = False):
    """Makes a run folder and keeps other processes out of it while inside; with `shared`, only those that do not share.

    The system lets go of the folder when the process dies, however it does. Whoever finds nobody there removes the
    temporary files that a killed process has left. On a file system without locks nobody is kept out.

    Raises UserError: the folder cannot be made or written to, or another process is in it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder '{folder}' ({error.strerror}); set run.dir elsewhere.") from None
    try:
        file = open(folder / ".lock", "a+")
    except OSError as error:
        raise UserError(f"cannot write in the run folder '{folder}' ({error.strerror}); set run.dir elsewhere."
                        ) from None
    with file:
        if not _hold(file, shared, folder):
            file.seek(0)
            raise UserError(f"the run folder '{folder}' is in use by {file.read().strip() or 'another process'}; wait "
                            "for it, or set run.dir to another folder (sweeps share one if all are given --shard).")
        file.truncate(0)
        file.write(_HOLDER.format(os.getpid(), socket.gethostname()))
        file.flush()
        yield


def is_run_lock(path) -> bool:
    """Whether a file is the lock of a run folder, held or not: other programs have files of that name too."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return re.fullmatch(_HOLDER.format(r"\d+", r"\S+"), file.read(1000)) is not None
    except OSError:
        return False


def _hold(file, shared: bool, folder: Path) -> bool:
    """Lock an open file; whether that was possible within a moment, for which `mdw runs`, or another that shares and
    cleans up, may have it."""
    for _ in range(20 if shared else 10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError:  # no locks on this file system
            return True
        else:
            for left in folder.rglob(f".*{_UNFINISHED}"):
                left.unlink(missing_ok=True)
            if shared:
                fcntl.flock(file, fcntl.LOCK_SH)
            return True
        if shared:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
        time.sleep(0.1)
    return False


def digest(*parts) -> str:
    """sha256 (hex) of arrays (dtype, shape and bytes), strings, or anything JSON can hold, in order."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).tobytes())
        else:
            text = part if isinstance(part, str) else json.dumps(part, sort_keys=True)
            sha.update(f"{len(text.encode())}:".encode())
            sha.update(text.encode())
    return sha.hexdigest()


def write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    """Write a CSV with a header, atomically; what a row lacks is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
