"""Stopping on a signal: end the step at hand, keep what is done, and be gone within half a minute.

SIGTERM is what a scheduler sends before it takes the machine away, SIGINT is Ctrl-C. While `handle_signals`, the first one
only leaves a note. Long loops `raise_if_interrupted` it where their state is saved or cheap to save, and what they raise is handled in
`cli.main`. A loop that does not come by in time (an epoch of minutes, a large step on a slow device) is abandoned:
every file is written whole or not at all, so the same command goes on from the last checkpoint. A second signal kills
at once.

A thread does the waiting, because Python runs signal handlers between two of its own instructions, and those of the
main thread may be minutes apart while a compiled function runs.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

import numpy as np

GRACE = 25.0  # seconds from the signal to the end; SLURM and Kubernetes kill 30 s after SIGTERM
ECHO = 1.0  # seconds in which a second signal is the first one again: `timeout` and terminals can send it twice
SIGNALS = (signal.SIGTERM, signal.SIGINT)

_received = 0  # the first signal of this process, 0 before it: signals belong to the process, and so does this


class Interrupted(BaseException):
    """A signal asked the process to stop, and what it did is kept. No error: `except Exception` lets it pass.

    number: the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_status(number: int) -> int:
    """The exit status after a stop: 130 after Ctrl-C; after SIGTERM 0, or what MDW_STATUS_WHEN_STOPPED says.

    Schedulers that take 0 for "finished" are told another number by the launch files, and start the run again.
    """
    return 130 if number == signal.SIGINT else int(os.environ.get("MDW_STATUS_WHEN_STOPPED") or 0)


@contextlib.contextmanager
def handle_signals():
    """Takes SIGTERM and SIGINT while inside, once a process and in its main thread (elsewhere it does nothing).

    A signal that is ignored stays so (`nohup`, jobs in the background of a script). After a signal the process has to
    end: handlers and deadline stay in force when this is left.
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
    try:
        yield
    finally:
        if not _received:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
            outbox.close()  # which ends the thread


def raise_if_interrupted(*, together: bool = True) -> None:
    """Raises Interrupted if a signal has come; with several jax processes, if it has come to any of them.

    together: all processes of the run come by here in the same order, so that they stop at the same step. False where
    each goes its own way.
    """
    number = _received
    if together:
        number = _agreed(number)
    if number:
        raise Interrupted(number)


@contextlib.contextmanager
def save_on_interrupt(save):
    """Around a loop that checks: calls `save()` on the way out where it is interrupted."""
    try:
        yield
    except Interrupted:
        save()
        raise


def _agreed(number: int) -> int:
    """The signal that any process of the run has received, 0 if none has: the same on all of them."""
    import jax  # here, because `mdw --help` does without it

    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    agreed = int(np.max(multihost_utils.process_allgather(np.int32(number))))
    if agreed and not number:  # another process's: it is on its way out, and so must this one be
        timer = threading.Timer(GRACE, _abandon, (agreed,))
        timer.daemon = True
        timer.start()
    return agreed


def _watch(inbox: socket.socket) -> None:
    """Notes the first signal, then waits for the second or for the deadline; ends when nobody listens any more."""
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
                _say(f"mdw: {signal.Signals(number).name}: stopping after this step; a second signal stops at once.")
            elif time.monotonic() - since > ECHO:
                os._exit(128 + number)


def _abandon(number: int) -> None:
    """Ends the process in the middle of what it does."""
    _say(f"mdw: stopped {GRACE:.0f} s after the signal, in the middle of a step; the same command goes on from the "
         "last checkpoint.")
    os._exit(exit_status(number))


def _say(line: str) -> None:
    """One line on stderr; whoever read it may be gone."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
