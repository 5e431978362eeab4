"""One process at a time in a run directory, on whatever file system it lies.

The lock is the system's own (flock) on the file `.lock`, which is released when its holder dies. There are file systems
on which it keeps out nobody, or nobody of another host. So the holder also writes its name into the file and renews its
date every few seconds: a file of another host that is still renewed is respected, and one that is not, after a while, is
of a holder that died.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mdw_jax.errors import UserError
from mdw_jax.io.files import remove_unfinished

RENEWED_EVERY = 5.0  # seconds
_DEAD_AFTER = 4 * RENEWED_EVERY  # seconds without renewal
_HOLDER = "process {} on {}"  # the first line of the file while it is held; "left by" stands before it afterwards
_SHARED = " (shares)"
_NAMED = re.compile(r"(left by )?process (\d+) on (\S+)( \(shares\))?")
# One line, or several where processes that share wrote their names at the same moment.
_OWN = re.compile(rf"({_NAMED.pattern}\n)+")
_MOST = 10_000  # characters of a lock that are read
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold_run_directory(directory, shared: bool = False) -> Iterator[None]:
    """Make a run directory and keep other processes out of it inside the block.

    The directory is free again when the process dies, for whatever reason. The first process in an unused directory
    removes the temporary files that a killed one left.

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
        file = open(directory / ".lock", "a+", encoding="utf-8", errors="replace", opener=_not_a_link)
    except OSError as error:
        raise UserError(f"cannot write in the run directory '{directory}' ({error.strerror}); set run.dir elsewhere."
                        ) from None
    with file:
        _refuse_foreign(file, directory)
        if not _acquire(file, shared, directory):
            holder = _last_line(file).removesuffix(_SHARED).removeprefix("left by ") or "another process"
            raise UserError(f"the run directory '{directory}' is in use by {holder}; wait for it, or set run.dir to "
                            "another directory (sweeps share one if all are given --shard).")
        name = _HOLDER.format(os.getpid(), socket.gethostname())
        _write(file, name + _SHARED * shared)
        with _renewed(file):
            yield
        if not shared:  # of those that share, another one may still be in it
            _write(file, f"left by {name}")


def _not_a_link(path: str, flags: int) -> int:
    """Open a file that is written to; a link, in a folder that a stranger made, could lead to any file of the user's.

    Nor may it be a pipe, which has no content, or a device.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, ".lock in it is not a file")
    return descriptor


def is_run_lock(path) -> bool:
    """Whether a file is the lock of a run directory, held or not: other programs have files of that name too."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return _OWN.fullmatch(file.read(_MOST)) is not None
    except OSError:
        return False


def _refuse_foreign(file, directory: Path) -> None:
    """Raises UserError where an open file, the lock by its name, holds what `hold_run_directory` never wrote.

    An empty one is taken: a process that is killed before it has written its name leaves it.
    """
    content = _content(file)
    if content and not _OWN.fullmatch(content):
        raise UserError(f"'{directory / '.lock'}' belongs to another program, and was left as it is; set run.dir to a "
                        "directory of its own, or remove that file if nothing needs it.")


def _acquire(file, shared: bool, directory: Path) -> bool:
    """Lock an open file; False if another process keeps it for a second or two.

    It waits that long because `mdw runs`, or a process that shares and is cleaning up, may hold it for a moment.
    """
    for _ in range(20 if shared else 10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:
            _log.warning("the file system of '%s' has no locks (%s); other processes are kept out by the date of .lock "
                         "alone.", directory, error.strerror)
            return not _held_without_lock(file, shared, directory, locks=False)
        else:
            if _held_without_lock(file, shared, directory):
                return False
            remove_unfinished(directory)
            if shared:
                fcntl.flock(file, fcntl.LOCK_SH)
            return True
        if shared:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return not _held_without_lock(file, shared, directory)
        time.sleep(0.1)
    return False


def _held_without_lock(file, shared: bool, directory: Path, locks: bool = True) -> bool:
    """Whether a living process holds the directory, although the system's lock does not tell.

    Args:
        file: the lock file, open.
        shared: whether this process shares.
        directory: the run directory.
        locks: whether the system's lock works among the processes of this host.
    """
    named = _NAMED.fullmatch(_last_line(file))
    if named is None or named[1] or (shared and named[4]):
        return False
    if named[3] == socket.gethostname():
        return not locks and int(named[2]) != os.getpid() and _is_alive(int(named[2]))
    before = os.fstat(file.fileno()).st_mtime_ns
    left = _DEAD_AFTER - (_now_of(directory) - before / 1e9)
    if left <= 0:
        return False
    _log.info("process %s on %s was in '%s' a moment ago; waiting up to %.0f seconds to see whether it still is.",
              named[2], named[3], directory, left)
    end = time.monotonic() + left
    while time.monotonic() < end:
        time.sleep(min(1.0, RENEWED_EVERY / 5))
        if os.stat(directory / ".lock").st_mtime_ns != before:
            return True
    return False


def _now_of(directory: Path) -> float:
    """The time by the clock of the file system, which may be another host's."""
    with tempfile.TemporaryFile(dir=directory) as probe:
        return os.fstat(probe.fileno()).st_mtime


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def _renewed(file) -> Iterator[None]:
    """Renew the date of an open file inside the block, in a thread."""
    ended = threading.Event()

    def renew():
        while not ended.wait(RENEWED_EVERY):
            with contextlib.suppress(OSError):
                os.utime(file.fileno())

    thread = threading.Thread(target=renew, daemon=True, name="run-lock")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _content(file) -> str:
    file.seek(0)
    return file.read(_MOST)


def _last_line(file) -> str:
    """Who holds an open lock, or did: of several that share, the last."""
    return _content(file).rstrip("\n").rpartition("\n")[2]


def _write(file, text: str) -> None:
    file.truncate(0)
    file.write(f"{text}\n")
    file.flush()
