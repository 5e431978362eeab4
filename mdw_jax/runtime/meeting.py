"""How the processes of a run meet: all connect to process 0, which compares what they bring and lets them in, or not."""

import contextlib
import errno
import logging
import selectors
import socket
import time
from typing import Any, NamedTuple

from mdw_jax.errors import UserError
from mdw_jax.runtime.agreement import Facts, difference
from mdw_jax.runtime.links import Link, hang_up, hold_port, listen, ready

_LOG = logging.getLogger(__name__)
_RETRY, _SAY_AFTER = 0.3, 10.0  # seconds between two attempts, and until it is said that one waits
_ACKNOWLEDGED, _STRANGERS = 8.0, 2  # seconds for a first answer, and how often it may fail to come
_EXTRA = 15.0  # seconds longer than process 0 that the others wait for its answer: it started later, perhaps


def host_and_port(host: str, port: int) -> str:
    """"host:port", and of an IPv6 address "[host]:port"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Place(NamedTuple):
    """Where the processes of a run meet.

    Attributes:
        host, port: of process 0.
        processes: their number.
        process: the number of this one.
        timeout: seconds until all have to be there.
    """

    host: str
    port: int
    processes: int
    process: int
    timeout: float

    @property
    def address(self) -> str:
        """host:port."""
        return host_and_port(self.host, self.port)


class Met(NamedTuple):
    """The processes, met.

    Attributes:
        links: {process: the connection to it}; all others in process 0, process 0 alone in the others.
        hosts: the machine of each process.
        port: a port of process 0 for jax's coordinator.
        held: in process 0 what keeps it (`links.hold_port`), to be closed once the coordinator is there; else None.
    """

    links: dict[int, Link]
    hosts: list[str]
    port: int
    held: socket.socket | None = None


def meet(place: Place, facts: Facts) -> Met:
    """Wait until all processes are there, and compare what has to be the same in all of them.

    Args:
        place: where, and which process this is.
        facts: of this process (`mdw_jax.runtime.agreement`).

    Raises:
        UserError: the port is in use, not all processes come in time, or they differ; in all that have come.
    """
    hello = {"process": place.process, "count": place.processes, "host": socket.gethostname(), "facts": facts}
    return _receive(place, hello) if place.process == 0 else _visit(place, hello)


def _receive(place: Place, hello: dict[str, Any]) -> Met:
    """Process 0: wait for the others."""
    try:
        server = listen(place.port)
    except (OSError, OverflowError) as error:
        reason = "is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else f"cannot be used ({error})"
        raise UserError(f"port {place.port} of this machine, at which the processes of this run are to meet, {reason}; "
                        "give all processes another one in MDW_COORDINATOR, or end what uses it.") from None
    with server:
        links, hellos = _gather(server, place, hello)
    missing = [process for process in range(place.processes) if process not in hellos]
    if missing:
        verdict = (f"of {place.processes} processes, {_listed(missing)} did not come to {place.address} within "
                   f"{place.timeout:.0f} s; start all of them with one MDW_COORDINATOR, open this port between their "
                   "machines, or give them longer (MDW_JOIN_TIMEOUT, in seconds).")
        hosts = []
    else:
        ordered = [hellos[process] for process in range(place.processes)]
        hosts = [str(one["host"]) for one in ordered]
        verdict = difference([{"number of processes": {"MDW_PROCESSES": one["count"]}, **one["facts"]}
                              for one in ordered], hosts)
    held = hold_port(place.port + 1)
    port = held.getsockname()[1]
    if not hasattr(socket, "SO_REUSEPORT"):
        held.close()
    answer = {"verdict": verdict, "hosts": hosts, "port": port}
    for link in links.values():
        link.send(answer)
    if verdict is not None:
        held.close()
        hang_up(links.values())
        raise UserError(verdict)
    return Met(links, hosts, port, held)


def _gather(server: socket.socket, place: Place, hello: dict[str, Any]) -> tuple[dict[int, Link], dict[int, dict]]:
    """The connections of all other processes, and what each process says first; fewer, if the time is over."""
    links: dict[int, Link] = {}
    hellos = {0: hello}
    start, said = time.monotonic(), False
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(hellos) < place.processes and (left := start + place.timeout - time.monotonic()) > 0:
            for link, _ in ready(selector, min(left, 1.0)):
                if link is server:
                    with contextlib.suppress(OSError):
                        selector.register(Link(server.accept()[0]), selectors.EVENT_READ)
                    continue
                taken = link.take()
                for message in [None] if taken is None else taken:
                    if message is None or not _is_hello(message):  # gone, or none of us
                        selector.unregister(link)
                        link.socket.close()
                        for process in [process for process, one in links.items() if one is link]:
                            del links[process], hellos[process]
                    elif message["process"] in links or not 0 < message["process"] < place.processes:
                        link.send({"verdict": f"there is a process {message['process']} of {place.processes} already at "
                                              f"{place.address}; give each process its own number in MDW_PROCESS, from "
                                              "0, and all of them one MDW_PROCESSES."})
                    else:
                        links[message["process"]], hellos[message["process"]] = link, message
                        link.send({"verdict": None})  # of what it is: known; the others are waited for
            if not said and time.monotonic() - start > _SAY_AFTER:
                said = True
                missing = [process for process in range(place.processes) if process not in hellos]
                _LOG.info("waiting for %s of %d at %s, for up to %.0f s.", _listed(missing), place.processes,
                          place.address, place.timeout)
    return links, hellos


def _is_hello(message: dict[str, Any]) -> bool:
    return (isinstance(message.get("process"), int) and isinstance(message.get("count"), int)
            and isinstance(message.get("host"), str)
            and isinstance(message.get("facts"), dict)
            and all(isinstance(values, dict) for values in message["facts"].values()))


def _visit(place: Place, hello: dict[str, Any]) -> Met:
    """Another process: connect to process 0, and wait for its answer."""
    start = time.monotonic()
    deadline, strangers, said = start + place.timeout, 0, False
    reason = "nothing tried"
    while time.monotonic() < deadline and strangers < _STRANGERS:
        try:
            link = Link(socket.create_connection((place.host, place.port), timeout=5))
        except (OSError, OverflowError, UnicodeError) as error:  # not there yet, or its name is none
            reason = str(error)
        else:
            link.send(hello)
            known = _answer(link, time.monotonic() + _ACKNOWLEDGED)
            if known is not None:
                return _let_in(place, known, link, deadline + _EXTRA)
            link.socket.close()
            strangers, reason = strangers + 1, "something else listens there"
        if not said and time.monotonic() - start > _SAY_AFTER:
            said = True
            _LOG.info("waiting for process 0 at %s, for up to %.0f s.", place.address, place.timeout)
        time.sleep(_RETRY)
    raise UserError(f"process 0 was not found at {place.address} in {time.monotonic() - start:.0f} s ({reason}); start it, "
                    "check MDW_COORDINATOR, open this port between the machines, or give it longer (MDW_JOIN_TIMEOUT, "
                    "in seconds).")


def _let_in(place: Place, known: dict[str, Any], link: Link, deadline: float) -> Met:
    """Wait until process 0, which knows of this process, knows of all. Raises UserError if it does not let them in."""
    answer = known if known["verdict"] is not None else _answer(link, deadline)
    if answer is None:
        raise UserError(f"process 0 at {place.address} ended, or was lost, before all {place.processes} processes were "
                        "there; see its own message.")
    if answer["verdict"] is not None:
        raise UserError(str(answer["verdict"]))
    return Met({0: link}, [str(host) for host in answer["hosts"]], int(answer["port"]))


def _answer(link: Link, deadline: float) -> dict[str, Any] | None:
    """The next message of process 0; None if none comes, or what comes is none of its."""
    try:
        answer = link.wait(deadline)
    except ConnectionError:
        return None
    return answer if answer is not None and "verdict" in answer else None


def _listed(processes: list[int]) -> str:
    """"process 1", "processes 1, 2, 3"."""
    return f"process{'es' * (len(processes) > 1)} {', '.join(map(str, processes))}"
