"""Connections carry whole messages, and tell when the other end is gone."""

import contextlib
import socket
import threading
import time

import pytest

from mdw_jax.runtime.links import GONE, Link, hang_up, hold_port, listen


@pytest.fixture
def pair():
    with listen(0) as server:
        first = socket.create_connection(("localhost", server.getsockname()[1]))
        second, _ = server.accept()
    links = Link(first), Link(second)
    yield links
    for link in links:
        link.socket.close()


def test_messages_come_whole_and_in_order(pair):
    first, second = pair
    long = {"text": "x" * 300_000}
    first.send({"n": 1})
    first.socket.sendall(b'{"n": ')
    assert second.wait(time.monotonic() + 5) == {"n": 1}
    assert second.wait(time.monotonic() + 0.1) is None
    first.socket.sendall(b"2}\n{\"n\": 3}\n")
    assert second.wait(time.monotonic() + 5) == {"n": 2} and second.rest() == [{"n": 3}]
    threading.Thread(target=first.send, args=(long,)).start()
    assert second.wait(time.monotonic() + 5) == long


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"3\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n",
                                  b"x" * 5_000_000])
def test_nonsense_counts_as_gone(pair, data):
    first, second = pair
    threading.Thread(target=_sent, args=(first, data), daemon=True).start()
    with pytest.raises(ConnectionError):
        second.wait(time.monotonic() + 5)


def _sent(link, data):
    with contextlib.suppress(OSError):  # closed by the test, which need not take all of it
        link.socket.sendall(data)


def test_what_was_sent_arrives_although_the_sender_did_not_read(pair):
    first, second = pair
    second.send({"unread": "y" * 10_000})
    first.send({"last": "word"})
    hang_up([first])
    assert second.wait(time.monotonic() + 5) == {"last": "word"}
    with pytest.raises(ConnectionError):
        second.wait(time.monotonic() + 5)
    second.send({"to": "nobody"})  # no error


def test_the_kernel_asks_whether_a_silent_machine_is_there(pair):
    for link in pair:
        option = lambda name, level=socket.IPPROTO_TCP, link=link: link.socket.getsockopt(level, getattr(socket, name))
        assert option("SO_KEEPALIVE", socket.SOL_SOCKET) == 1
        assert option("TCP_KEEPIDLE") + option("TCP_KEEPINTVL") * option("TCP_KEEPCNT") <= GONE <= 25
        assert option("TCP_USER_TIMEOUT") == 1000 * GONE


def test_a_port_is_held_the_first_that_is_free():
    with listen(0) as taken:
        port = taken.getsockname()[1]
        with hold_port(port) as other:
            assert other.getsockname()[1] != port
    with hold_port(port) as held, hold_port(1 << 16) as high:
        assert held.getsockname()[1] == port and 0 < high.getsockname()[1] < 1 << 16


@pytest.mark.parametrize("lately_used", [False, True])
def test_a_held_port_is_no_other_programs_but_of_a_server_that_shares_it(lately_used):
    with listen(0) as first:
        port = first.getsockname()[1]
        if lately_used:  # a connection that the server closed first is remembered for a minute
            with socket.create_connection(("localhost", port)) as visitor:
                first.accept()[0].close()
                assert visitor.recv(1) == b""
    with hold_port(port) as held:
        assert held.getsockname()[1] == port
        if not lately_used:
            with hold_port(port) as other:
                assert other.getsockname()[1] != port
            with pytest.raises(OSError):
                listen(port)
        with socket.socket() as sharing:
            sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sharing.bind(("", port))
            sharing.listen()
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            sharing.accept()[0].close()  # what is held gets no connections
