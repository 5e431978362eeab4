"""Locks on files: one process at a time in a run directory, and around what several processes may write."""

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mdw_jax.errors import UserError
from mdw_jax.io.files import UNFINISHED_SUFFIX
from mdw_jax.runtime.processes import is_main

_HOLDER = "process {} on {}\n"  # the content of a run directory's lock


@contextlib.contextmanager
def locked(path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` inside the block, waiting for it.

    The system releases the lock if the process dies. With several processes, process 0 holds it for all.
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
def hold_run_directory(directory, shared: bool = False) -> Iterator[None]:
    """Make a run directory and keep other processes out of it inside the block.

    The system releases the directory when the process dies, for whatever reason. The first process in an unused
    directory removes the temporary files that a killed one left. On a file system without locks, no process is kept
    out.

    Args:
        directory: the run directory.
        shared: keep out only processes that do not share.

    Raises:
        UserError: the directory cannot be made or written to, or another process is in it.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run directory '{directory}' ({error.strerror}); set run.dir elsewhere."
                        ) from None
    try:
        file = open(directory / ".lock", "a+")
    except OSError as error:
        raise UserError(f"cannot write in the run directory '{directory}' ({error.strerror}); set run.dir elsewhere."
                        ) from None
    with file:
        if not _acquire(file, shared, directory):
            file.seek(0)
            raise UserError(f"the run directory '{directory}' is in use by {file.read().strip() or 'another process'}; "
                            "wait for it, or set run.dir to another directory (sweeps share one if all are given "
                            "--shard).")
        file.truncate(0)
        file.write(_HOLDER.format(os.getpid(), socket.gethostname()))
        file.flush()
        yield


def is_run_lock(path) -> bool:
    """Whether a file is the lock of a run directory, held or not: other programs have files of that name too."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return re.fullmatch(_HOLDER.format(r"\d+", r"\S+"), file.read(1000)) is not None
    except OSError:
        return False


def is_locked(path, shared_locks_exist: bool) -> bool:
    """Whether a process holds the lock file `path`. Takes and releases it for a moment to find out.

    Args:
        path: the lock file.
        shared_locks_exist: several processes may hold it together (`hold_run_directory` with `shared`), so that only
            an exclusive lock tells.
    """
    for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH) if shared_locks_exist else (fcntl.LOCK_SH,):
        with contextlib.suppress(OSError):  # no file, or no such locks: NFS has exclusive ones for writers alone
            try:
                file = open(path, "r+")
            except OSError:  # no permission to write
                file = open(path)
            with file:
                try:
                    fcntl.flock(file, kind | fcntl.LOCK_NB)  # closing releases it
                    return False
                except BlockingIOError:
                    return True
    return False


def _acquire(file, shared: bool, directory: Path) -> bool:
    """Lock an open file; False if another process keeps it for a second or two.

    It waits that long because `mdw runs`, or a process that shares and is cleaning up, may hold it for a moment.
    """
    for _ in range(20 if shared else 10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError:  # no locks on this file system
            return True
        else:
            for leftover in directory.rglob(f".*{UNFINISHED_SUFFIX}"):
                leftover.unlink(missing_ok=True)
            if shared:
                fcntl.flock(file, fcntl.LOCK_SH)
            return True
        if shared:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
        time.sleep(0.1)
    return False
