"""Processes meet, agree, and end together: without jax, so that it takes seconds."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdw_jax.errors import UserError
from mdw_jax.runtime.meeting import Place, meet

# A process: it meets the others, then does what the words after its number say.
PROCESS = """
import os, sys, threading, time
from mdw_jax.errors import UserError
from mdw_jax.runtime import meeting, peers
from mdw_jax.runtime.meeting import Place, meet
meeting._ACKNOWLEDGED = 3.0
process, count, port, timeout, value, act = sys.argv[1:]
process = int(process)
say = lambda line: os.write(1, (line + "\\n").encode())  # whole, where two threads speak: `print` writes words one by one
try:
    met = meet(Place("localhost", int(port), int(count), process, float(timeout)), {"config": {"a": value}})
    others = peers.Peers(process, met)
    others.on_stop(lambda number: (say(f"told to stop by {number}"), os._exit(85)))
    say("ready")
    if act == "fail":
        raise UserError("the disk is full.")
    if act == "differ":
        others.agree({"data": {"captions": value}})
        time.sleep(0.5)
        others.agree({"data": {"captions": process == 1}})
    if act == "fork" and not os.fork():
        time.sleep(8)
        others.finish()  # as at the exit of a script: returns at once
        os._exit(0)
    if act == "hold":
        while True:
            sum(range(10**5))
    if act == "stop":
        others.say_stopped(15)
        others.leave(85)
    if act == "finish":
        time.sleep(process * 0.3)
        others.finish()
        say("finished")
        sys.exit(0)
    threading.Event().wait()
except UserError as error:
    if "met" in globals():
        others.say_failure(str(error), certain=True)
        print(error, file=sys.stderr, flush=True)
        others.leave(2)
    sys.exit(str(error))
"""


@pytest.fixture
def start():
    """Starts processes that are killed with the test."""
    started, environment = [], os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def run(process, count, value="1", act="wait", timeout=30):
        words = [process, count, port, timeout, value, act]
        one = subprocess.Popen([sys.executable, "-c", PROCESS, *map(str, words)], env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(one)
        return one

    run.port = port
    yield run
    for one in started:
        one.kill()
        one.communicate()


def end(processes, seconds=20):
    """(status, stderr) of each process, which have to end by then."""
    deadline = time.monotonic() + seconds
    said = [process.communicate(timeout=max(deadline - time.monotonic(), 0.1)) for process in processes]
    return [(process.returncode, errors.strip()) for process, (_, errors) in zip(processes, said, strict=True)]


def ready(processes):
    assert all(process.stdout.readline() == "ready\n" for process in processes), end(processes, 1)


def test_a_difference_is_said_by_all(start):
    ended = end([start(n, 4, value="2" if n == 2 else "1") for n in range(4)])
    assert [status for status, _ in ended] == [1] * 4 and len({text for _, text in ended}) == 1, ended
    assert "process 2 on" in ended[0][1] and "in their config: a is 2 there and 1 in process 0" in ended[0][1]


def test_a_later_difference_is_said_by_all(start):
    ended = end([start(n, 3, act="differ") for n in range(3)])
    assert [status for status, _ in ended] == [2] * 3
    assert all("in their data: captions is true there and false in process 0" in text for _, text in ended), ended


@pytest.mark.parametrize(("count", "who", "number"), [
    (2, 0, signal.SIGKILL), (3, 1, signal.SIGKILL),
    *(pytest.param(count, who, number, marks=pytest.mark.slow) for count in (2, 4) for who in (0, 1)
      for number in (signal.SIGSEGV, signal.SIGKILL))])
def test_who_ends_without_a_word_is_named_by_the_others(start, count, who, number):
    processes = [start(n, count, act="hold") for n in range(count)]
    ready(processes)
    begin = time.monotonic()
    processes[who].send_signal(number)
    ended = end(processes)
    assert time.monotonic() - begin < 15
    assert ended[who][0] == -number
    for status, text in ended[:who] + ended[who + 1:]:
        assert status == 2 and f"process {who} on {socket.gethostname()} ended without a word" in text, ended


@pytest.mark.parametrize("who", [0, 1])
def test_a_child_that_outlives_its_process_hides_nothing(start, who):
    processes = [start(n, 2, act="fork" if n == who else "wait") for n in range(2)]
    ready(processes)
    time.sleep(1)
    begin = time.monotonic()
    processes[who].kill()
    assert processes[1 - who].wait(6) == 2 and time.monotonic() - begin < 6


@pytest.mark.parametrize("who", [0, 1])
def test_an_error_of_one_is_said_by_all(start, who):
    ended = end([start(n, 3, act="fail" if n == who else "wait") for n in range(3)])
    assert [status for status, _ in ended] == [2] * 3
    assert ended[who][1] == "the disk is full."
    assert all(f"process {who} on {socket.gethostname()} stopped, and all others with it: the disk is full." in text
               for n, (_, text) in enumerate(ended) if n != who), ended


@pytest.mark.parametrize("who", [0, 1])
def test_a_stop_reaches_all(start, who):
    processes = [start(n, 3, act="stop" if n == who else "wait") for n in range(3)]
    said = [process.communicate(timeout=20)[0] for process in processes]  # it may come before they are ready
    assert [process.returncode for process in processes] == [85] * 3
    assert all("told to stop by 15\n" in text for n, text in enumerate(said) if n != who)


def test_who_is_done_waits_for_the_others(start):
    processes = [start(n, 3, act="finish") for n in range(3)]
    ready(processes)
    begin = time.monotonic()
    assert processes[0].stdout.readline() == "finished\n" and time.monotonic() - begin > 0.3
    assert end(processes) == [(0, "")] * 3


def test_a_port_in_use(start):
    with socket.create_server(("", start.port)) as other:
        other.settimeout(20)
        [(status, text)] = end([start(0, 2)])
        assert status == 1 and f"port {start.port} of this machine" in text and "is in use" in text
        begin = time.monotonic()
        [(status, text)] = end([start(1, 2, timeout=300)], 30)  # it finds the other there, who never answers
        assert status == 1 and "something else listens there" in text and time.monotonic() - begin < 25


def test_who_is_missing_is_named(start):
    ended = end([start(0, 4, timeout=3), start(2, 4, timeout=3)])
    assert [status for status, _ in ended] == [1, 1]
    assert all("of 4 processes, processes 1, 3 did not come to localhost" in text for _, text in ended), ended
    [(status, text)] = end([start(1, 2, timeout=2)])
    assert status == 1 and "process 0 was not found at localhost" in text and "MDW_JOIN_TIMEOUT" in text


def test_two_processes_of_one_number(start):
    first = start(1, 3, timeout=6)
    zero = start(0, 3, timeout=6)
    time.sleep(1)
    second = start(1, 3, timeout=6)
    [(status, text)] = end([second])
    assert status == 1 and "there is a process 1 of 3 already" in text
    assert all("process 2 did not come" in text for _, text in end([zero, first]))


def test_strangers_are_sent_away(start):
    zero, one = start(0, 2), None
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100 + b"\n", b"[]\n", b"{}\n", b"",
                  json.dumps({"process": 1, "count": 2, "host": "x", "facts": {"config": 3}}).encode() + b"\n",
                  json.dumps({"process": 1, "count": 2, "facts": {"config": {}}}).encode() + b"\n"):
        for _ in range(100):
            try:
                stranger = socket.create_connection(("localhost", start.port), timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        with stranger:
            stranger.sendall(words)
            if words:
                assert stranger.recv(100) == b""
    one = start(1, 2)
    ready([zero, one])


def test_a_process_may_start_again_before_all_are_there(start):
    zero, first = start(0, 3), start(1, 3)
    time.sleep(1.5)
    first.kill()
    time.sleep(0.3)
    ready([zero, start(1, 3), start(2, 3)])


def test_addresses():
    place = Place("::1", 2000, 2, 1, 0.5)
    assert place.address == "[::1]:2000" and place._replace(host="a.b").address == "a.b:2000"
    with pytest.raises(UserError, match=r"process 0 was not found at a\.\.b:2000"):
        meet(place._replace(host="a..b"), {})  # no name of a machine
