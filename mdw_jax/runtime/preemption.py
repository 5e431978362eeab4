"""Stopping on a signal: finish the current step, save, and exit within half a minute.

A scheduler sends SIGTERM before it takes the machine away; Ctrl-C is SIGINT. Inside `handle_signals`, the first signal
is only recorded. Long loops call `raise_if_interrupted` where their state is saved or quick to save; the command line
handles the exception. A loop that does not get there in time (an epoch of minutes, a large step on a slow device) is
abandoned: files are written whole or not at all, so the same command resumes from the last checkpoint. A second signal
kills the process at once.

With several processes, a signal to one of them stops all.

A thread waits for signals, because Python runs signal handlers between two of its own instructions, and those of the
main thread may be minutes apart while a compiled function runs.
"""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from mdw_jax.runtime.peers import peers

GRACE = 25.0  # seconds from the signal to the exit; SLURM and Kubernetes kill 30 s after SIGTERM
ECHO = 1.0  # seconds in which a second signal counts as the first one: `timeout` and terminals can send it twice
SIGNALS = (signal.SIGTERM, signal.SIGINT)

_received = 0  # the first signal of this process, 0 before it; global because signals belong to the process


class Interrupted(BaseException):
    """A signal asked the process to stop. It is not an error: `except Exception` lets it pass.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_status(number: int) -> int:
    """The exit status after a stop: 130 after Ctrl-C; after SIGTERM the value of MDW_STATUS_WHEN_STOPPED, or 0.

    Some schedulers read 0 as "finished"; the launch files set another number, so that these start the run again.
    """
    return 130 if number == signal.SIGINT else int(os.environ.get("MDW_STATUS_WHEN_STOPPED") or 0)


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Handle SIGTERM and SIGINT inside the block. Use it once per process, in its main thread; elsewhere it does nothing.

    A signal that is ignored stays ignored (`nohup`, background jobs of a script). After a signal the process has to
    exit: the handlers and the deadline stay in force when the block is left.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS
              if signal.getsignal(number) is not signal.SIG_IGN}
    woken = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(inbox,), name="signals", daemon=True).start()
    if (others := peers()) is not None:
        others.on_stop(functools.partial(_receive, outbox))
    try:
        yield
    finally:
        if not _received:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
            outbox.close()  # which ends the thread


def raise_if_interrupted(*, together: bool = True) -> None:
    """Raise `Interrupted` if a signal has come; with several processes, if it has come to any of them.

    Args:
        together: all processes of the run call this in the same order, so that they stop at the same step. False where
            each process works on its own.
    """
    number = _received
    if together:
        number = _agreed(number)
    if number:
        raise Interrupted(number)


@contextlib.contextmanager
def save_on_interrupt(save: Callable[..., None]) -> Iterator[None]:
    """Call `save` if the block is interrupted; for loops that call `raise_if_interrupted`."""
    try:
        yield
    except Interrupted:
        save()
        raise


def _agreed(number: int) -> int:
    """The signal that any process of the run has received, 0 if none has; the same in all of them."""
    global _received
    import jax  # here, because `mdw --help` does without it

    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return number
    import numpy as np
    from jax.experimental import multihost_utils

    agreed = int(np.max(multihost_utils.process_allgather(np.int32(number))))
    if agreed and not number:  # another process received it and will exit, so this one must exit too
        _received = agreed
        timer = threading.Timer(GRACE, _abandon, (agreed,))
        timer.daemon = True
        timer.start()
    return agreed


def _receive(outbox: socket.socket, number: int) -> None:
    """Act as if a signal that stopped another process had come to this one."""
    if not _received:
        with contextlib.suppress(OSError):  # `handle_signals` is left already
            outbox.send(bytes([number]))


def _watch(inbox: socket.socket) -> None:
    """Record the first signal, then wait for the second or for the deadline; ends when the socket is closed."""
    global _received
    since = None
    with inbox:
        while True:
            inbox.settimeout(None if since is None else max(since + GRACE - time.monotonic(), 0.001))
            try:
                byte = inbox.recv(1)
            except TimeoutError:
                _abandon(_received)
            if not byte:
                return
            number = byte[0]
            if number not in SIGNALS:
                continue
            if since is None:
                _received, since = number, time.monotonic()
                _print(f"mdw: {signal.Signals(number).name}: stopping after this step; a second signal stops at once.")
            elif time.monotonic() - since > ECHO:
                _say_stopped(number)
                os._exit(128 + number)


def _abandon(number: int) -> None:
    """End the process in the middle of a step."""
    _print(f"mdw: stopped {GRACE:.0f} s after the signal, in the middle of a step; the same command resumes from the "
           "last checkpoint.")
    _say_stopped(number)
    os._exit(exit_status(number))


def _say_stopped(number: int) -> None:
    """Tell the other processes why this one ends, so that they stop as well."""
    if (others := peers()) is not None:
        others.say_stopped(number)


def _print(line: str) -> None:
    """Print one line on stderr; its reader may be gone."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
