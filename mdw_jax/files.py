"""Writing files so that a reader never sees half of one, and hashing what is in memory or on disk."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np


def write_atomically(path, data: bytes) -> Path:
    """Write `data` to `path` by temporary name, fsync and rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_json(path, value) -> Path:
    """Write `value` as indented JSON, atomically."""
    return write_atomically(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


@contextlib.contextmanager
def locked(path):
    """Holds an exclusive lock on the file `path`, waiting for it; the system lets go of it if the process dies."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
