"""A way to jax's coordinator in process 0 that stays open when process 0 is gone.

jax's own client aborts the process, with a stack of C++, in the very moment in which its connection to the coordinator
closes. That hides what happened and leaves no time to say it (`mdw_jax.runtime.peers`). So it connects to a port of its
own machine, behind which this module passes on bytes; when process 0 is gone, nothing more comes, and that is all.
"""

import contextlib
import socket
import threading
import time

from mdw_jax.runtime.links import Link

_CHUNK = 1 << 16
_PATIENCE = 10.0  # seconds


def relay_to(host: str, port: int) -> str:
    """Relay from a free port of this machine to another address, until the process ends.

    Returns:
        The address to connect to instead: "127.0.0.1:port".
    """
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(server, (host, port)), name="relay", daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def _accept(server: socket.socket, address: tuple[str, int]) -> None:
    while True:
        inside, _ = server.accept()
        outside = _connect(address)
        if outside is None:  # jax tries again
            inside.close()
            continue
        Link(outside)  # sets the options of the socket
        Link(inside)
        for source, target, passes_end in ((inside, outside, True), (outside, inside, False)):
            threading.Thread(target=_copy, args=(source, target, passes_end), name="relay", daemon=True).start()


def _connect(address: tuple[str, int]) -> socket.socket | None:
    """A connection to the coordinator, which may start a little later than this process."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return socket.create_connection(address, timeout=_PATIENCE)
        time.sleep(0.1)
    return None


def _copy(source: socket.socket, target: socket.socket, passes_end: bool) -> None:
    """Pass on what comes from `source`; the other connection closes with it only if `passes_end`."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    if passes_end:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
