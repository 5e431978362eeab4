"""Connections between the processes of a run: JSON lines over TCP, whose other end is noticed when it is gone.

The kernel closes the connections of a process that ends, however it ends, and asks every few seconds whether a silent
machine is still there (TCP keepalive). So it does not matter how long a process computes without listening.
"""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Iterable
from typing import Any

GONE = 20  # seconds after which a machine that does not answer counts as gone
_MOST_BYTES = 1 << 22  # of one message: all that processes tell each other is a hundredth of it


class Link:
    """One connection.

    Attributes:
        socket: a connected TCP socket.
    """

    def __init__(self, connected: socket.socket):
        self.socket = connected
        self._buffer = b""
        self._read: list[dict[str, Any]] = []
        connected.setblocking(True)
        for level, name, value in ((socket.SOL_SOCKET, "SO_KEEPALIVE", 1), (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
                                   (socket.IPPROTO_TCP, "TCP_KEEPIDLE", GONE // 4),
                                   (socket.IPPROTO_TCP, "TCP_KEEPINTVL", GONE // 4),
                                   (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
                                   (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 1000 * GONE)):
            if hasattr(socket, name):  # systems differ in what can be set
                connected.setsockopt(level, getattr(socket, name), value)

    def fileno(self) -> int:
        """For selectors."""
        return self.socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message that JSON can hold; nothing happens if the other end is gone, which reading will tell."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def take(self) -> list[dict[str, Any]] | None:
        """What has come, waiting for at least a part of a message; None if the other end is gone or talks nonsense."""
        try:
            data = self.socket.recv(1 << 16)
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except TimeoutError:
            return []
        except (OSError, ValueError, RecursionError):
            return None
        good = all(isinstance(message, dict) for message in messages) and len(self._buffer) < _MOST_BYTES
        return messages if data and good else None

    def wait(self, deadline: float) -> dict[str, Any] | None:
        """The next message, by a time of `time.monotonic`; None if there is none.

        Raises:
            ConnectionError: the other end is gone.
        """
        while not self._read:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self.socket.settimeout(left)
            try:
                taken = self.take()
            finally:
                with contextlib.suppress(OSError):
                    self.socket.setblocking(True)
            if taken is None:
                raise ConnectionError("the other end is gone")
            self._read += taken
        return self._read.pop(0)

    def rest(self) -> list[dict[str, Any]]:
        """Messages that came together with those that `wait` returned."""
        read, self._read = self._read, []
        return read


def hang_up(links: Iterable[Link], seconds: float = 0.5) -> None:
    """Close connections so that what was sent arrives: bytes unread at closing would take it back."""
    with selectors.DefaultSelector() as selector:
        for link in links:
            with contextlib.suppress(OSError, ValueError):
                link.socket.shutdown(socket.SHUT_WR)
                selector.register(link, selectors.EVENT_READ)
        deadline = time.monotonic() + seconds
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for link, _ in ready(selector, left):
                if link.take() is None:
                    selector.unregister(link)
    for link in links:
        link.socket.close()


def ready(selector: selectors.BaseSelector, timeout: float | None = None) -> list[tuple[Any, Any]]:
    """(what is registered, its data) of each that can be read, waiting for one of them."""
    return [(key.fileobj, key.data) for key, _ in selector.select(timeout)]


def listen(port: int) -> socket.socket:
    """A socket that listens on a port of all addresses of this machine, 0 for any free one.

    Raises:
        OSError: the port is in use.
    """
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def hold_port(first: int) -> socket.socket:
    """A port kept for a server that begins later: `first`, or any other one if that is in use.

    The socket is bound and does not listen. Servers of other programs are refused the port until it is closed; one that
    shares ports (SO_REUSEPORT), as gRPC's and so jax's do, can be begun beside it. Where the system knows no such option,
    it has to be closed first. For a minute after an earlier run, whose connections are being closed at `first`, the port is
    found and not kept from others.

    Raises:
        OSError: no port is free.
    """
    for port, lately_used in ((first, False), (first, True), (0, False)):
        if lately_used and not _nobody_listens(port):
            continue  # else connections of an earlier run are still being closed there
        with contextlib.suppress(OSError, OverflowError):
            return _bound(port, lately_used)
    raise OSError("no port of this machine is free")


def _bound(port: int, lately_used: bool) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    held = socket.socket(socket.AF_INET6 if dual else socket.AF_INET)
    try:
        if dual:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if lately_used:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("", port))
        if hasattr(socket, "SO_REUSEPORT"):  # only now: before, the port could have been another server's that shares it
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        held.close()
        raise
    return held


def _nobody_listens(port: int) -> bool:
    with contextlib.suppress(OSError, OverflowError), listen(port):
        return True
    return False
