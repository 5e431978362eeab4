"""The other processes of a run, while it runs: what they agree on, and that the end of one is the end of all.

Each process keeps a connection to process 0 (`mdw_jax.runtime.links`), and a thread that listens to it, for the main thread
may be deep in a computation that waits for a process which is no more. What is said over it:

    facts, verdict   what has to be the same in all processes, and whether it is
    ended            a process ended for an error, or without a word: all others say so and end, with status 2
    stopped          a signal stopped a process: the others stop too, as if it had come to them
    over             a process has done its work: it may go
"""

import contextlib
import os
import queue
import selectors
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from mdw_jax.runtime.agreement import Disagreement, Facts, difference
from mdw_jax.runtime.links import hang_up, ready
from mdw_jax.runtime.meeting import Met

STATUS = 2  # of a process that ends because another one has ended
_OWN_WORD = 1.0  # seconds in which the main thread may say itself what another process ended of
_SUSPECT = 3.0  # seconds after an error of a computation in which the end of another process explains it


class Peers:
    """The other processes.

    Attributes:
        process: the number of this one.
        hosts: the machine of each process.
    """

    def __init__(self, process: int, met: Met):
        self.process, self.hosts = process, met.hosts
        self._links = met.links
        self._over: set[int] = set()
        self._facts: queue.SimpleQueue[tuple[int, Facts]] = queue.SimpleQueue()
        self._verdicts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._all_over = threading.Event()
        self._sending, self._last_word = threading.Lock(), threading.Lock()
        self._stop: Callable[[int], None] | None = None
        self._stopped_by = 0  # the signal that stops the run
        os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def _forget(self) -> None:
        """In a child that was forked: it is none of the processes, and must not keep connections of a dead one open."""
        for link in self._links.values():
            link.socket.close()
        self._links = {}
        self._all_over.set()

    def agree(self, facts: Facts, within: float | None = None) -> None:
        """Compare facts with those of all other processes; all processes call this in the same order.

        Args:
            facts: {what: {key: value}}.
            within: seconds in which the others have to call it too; None: however long they take.

        Raises:
            Disagreement: they differ; in all processes.
            TimeoutError: not all others came in time.
        """
        try:
            verdict = self._verdict(facts, within)
        except queue.Empty:
            raise TimeoutError from None
        if verdict is not None:
            raise Disagreement(verdict)

    def _verdict(self, facts: Facts, within: float | None) -> str | None:
        if self.process:
            self._send({"is": "facts", "facts": facts})
            return self._verdicts.get(timeout=within)
        found = {0: facts}
        while len(found) < len(self.hosts):
            process, theirs = self._facts.get(timeout=within)
            found[process] = theirs
        verdict = difference([found[process] for process in range(len(self.hosts))], self.hosts)
        self._send({"is": "verdict", "verdict": verdict})
        return verdict

    def on_stop(self, stop: Callable[[int], None]) -> None:
        """Call `stop` with the signal that stops, or has stopped, another process, perhaps in another thread."""
        self._stop = stop
        if self._stopped_by:
            stop(self._stopped_by)

    def say_failure(self, why: str, *, certain: bool) -> None:
        """Tell the others that this process ends for an error; they end too.

        Call it before the sentence is printed: it does not return where the other thread has found that another
        process has ended, which explains the error, and says that.

        Args:
            why: one sentence.
            certain: whether the error cannot come from a computation in which another process is missing.
        """
        if not certain:
            time.sleep(_SUSPECT)
        self._last_word.acquire()  # never released: the other thread is silent from now on
        self._send({"is": "ended", "process": self.process, "why": why})

    def say_stopped(self, number: int) -> None:
        """Tell the others that a signal stops this process."""
        self._stopped_by = number
        self._over.add(self.process)
        self._send({"is": "stopped", "process": self.process, "signal": number})

    def leave(self, status: int) -> None:
        """End this process at once: jax's own way would wait for the others."""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        hang_up(self._links.values())
        os._exit(status)

    def finish(self) -> None:
        """Wait until all others have done their work as well, however long they take."""
        if self.process not in self._over:
            self._over.add(self.process)
            self._send({"is": "over", "process": self.process})
        self._count_over()
        self._all_over.wait()

    def _send(self, message: dict[str, Any], *, but: int | None = None) -> None:
        with self._sending:
            for process, link in self._links.items():
                if process != but:
                    link.send(message)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for process, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, process)
                for message in link.rest():
                    self._hear(process, message)
            while selector.get_map():
                for link, process in ready(selector):
                    messages = link.take()
                    for message in messages or ():
                        self._hear(process, message)
                    if messages is None:
                        selector.unregister(link)
                        self._lost(process)

    def _lost(self, process: int) -> None:
        """A connection is closed. While a signal stops the run, nobody has to explain; there is a time limit on that."""
        if process not in self._over and not self._stopped_by:
            self._pronounce(process, None)
        self._over.add(process)
        self._count_over()

    def _hear(self, source: int, message: dict[str, Any]) -> None:
        """Act on a message; process 0 passes on what all have to know."""
        kind = message.get("is")
        if kind == "facts":
            self._facts.put((source, message["facts"]))
        elif kind == "verdict":
            self._verdicts.put(message["verdict"])
        elif kind == "ended":
            self._pronounce(int(message["process"]), str(message["why"]) if message.get("why") else None)
        elif kind in ("stopped", "over"):
            if not self.process:
                self._send(message, but=source)
            self._over.add(int(message["process"]))
            self._count_over()
            if kind == "stopped" and self.process not in self._over:
                self._stopped_by = int(message["signal"])
                if self._stop is not None:
                    self._stop(self._stopped_by)

    def _count_over(self) -> None:
        if len(self._over) == len(self.hosts):
            self._all_over.set()

    def _pronounce(self, process: int, why: str | None) -> None:
        """Say that another process has ended, and end."""
        if not self.process:
            self._send({"is": "ended", "process": process, "why": why}, but=process)
        if why is not None:
            time.sleep(_OWN_WORD)  # it may have found the same, and says it in fewer words
        self._last_word.acquire()
        who = f"process {process} on {self.hosts[process]}"
        line = f"{who} stopped, and all others with it: {why}" if why else (
            f"{who} ended without a word (killed, crashed, or its machine or network is gone), and all others with it; "
            "the same command goes on from the last checkpoint.")
        with contextlib.suppress(OSError, ValueError):
            print(f"mdw: {line}", file=sys.stderr, flush=True)
        self.leave(STATUS)


_peers: Peers | None = None  # those of this process; global as jax's own are


def set_peers(peers: Peers) -> None:
    """Let the functions of this package find the other processes."""
    global _peers
    _peers = peers


def peers() -> Peers | None:
    """The other processes; None if there are none, or jax alone knows them."""
    return _peers
