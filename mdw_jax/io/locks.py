"""Locks on files, around what several processes may write; of run directories: `run_lock.py`."""

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

from mdw_jax.runtime.processes import is_main

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` inside the block, waiting for it.

    The system releases the lock if the process dies. With several processes, process 0 holds it for all. On a file
    system without locks there is none, which is said: two processes then do the same work, and the later one's files
    stay.
    """
    path = Path(path)
    if not is_main():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            _log.warning("'%s' cannot be locked (%s): another process may do the same work.", path, error.strerror)
        yield


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
