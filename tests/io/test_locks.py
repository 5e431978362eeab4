"""One process per run directory, whatever happened to the one before."""

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mdw_jax.errors import UserError
from mdw_jax.io import locks, run_lock
from mdw_jax.io.files import write_atomically
from mdw_jax.io.run_lock import hold_run_directory, is_run_lock
from mdw_jax.io.spreadsheet import write_spreadsheet

HOLD = """
import sys, time
from mdw_jax.io import locks, run_lock
from mdw_jax.io.files import write_atomically
from mdw_jax.io.run_lock import hold_run_directory
with hold_run_directory(sys.argv[1], shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds the directory tmp_path / "run"; end it with the test."""
    started = []

    def start(kind):
        process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run", kind], stdout=subprocess.PIPE,
                                   cwd=Path(__file__).parents[2])
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_second_process_is_refused_until_the_first_is_dead(holder, tmp_path):
    first = holder("alone")
    for shared in (False, True):
        with pytest.raises(UserError, match=rf"in use by process {first.pid} on .*--shard"):
            with hold_run_directory(tmp_path / "run", shared):
                pass
    (tmp_path / "run" / "deep").mkdir()
    (tmp_path / "run" / "deep" / ".scores.json.0123456789ab.mdw-part").touch()  # what a killed process leaves
    (tmp_path / "run" / "deep" / ".notes.part").touch()  # of another program
    (tmp_path / "run" / "deep" / "scores.part").touch()
    first.send_signal(signal.SIGKILL)
    first.wait()
    with hold_run_directory(tmp_path / "run"):
        assert sorted(path.name for path in (tmp_path / "run" / "deep").iterdir()) == [".notes.part", "scores.part"]
    with hold_run_directory(tmp_path / "run"):
        pass


def test_one_who_only_looks_keeps_nobody_out(tmp_path):
    path = tmp_path / "run" / ".lock"
    path.parent.mkdir()
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as `mdw runs` does for a moment
        threading.Timer(0.3, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with hold_run_directory(path.parent):
            assert is_run_lock(path)
    path.write_text("process of another program")
    assert not is_run_lock(path) and not is_run_lock(path.parent) and not is_run_lock(tmp_path / "none")


def test_parts_of_a_sweep_share_a_folder_and_keep_others_out(holder, tmp_path):
    holder("shared")
    unfinished = tmp_path / "run" / ".scores.json.0123456789ab.mdw-part"
    unfinished.touch()
    with hold_run_directory(tmp_path / "run", shared=True):
        assert unfinished.exists()  # the other one may be writing it
        with pytest.raises(UserError, match="in use"):
            with hold_run_directory(tmp_path / "run"):
                pass


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the run directory .*run.dir"):
        with hold_run_directory(tmp_path / "file" / "run"):
            pass


def other_host(path, age, named="process 7 on elsewhere\n"):
    """The lock of a holder on another host, renewed so many seconds ago."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(named)
    os.utime(path, (time.time() - age,) * 2)


def test_a_lock_of_another_host_is_respected_while_it_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "RENEWED_EVERY", 0.1)
    monkeypatch.setattr(run_lock, "_DEAD_AFTER", 1.0)
    path = tmp_path / "run" / ".lock"
    other_host(path, 0)
    threading.Timer(0.3, os.utime, (path,)).start()
    with pytest.raises(UserError, match="in use by process 7 on elsewhere; wait for it"):
        with hold_run_directory(path.parent):
            pass
    other_host(path, 0)  # it died a moment ago: nobody renews it
    start = time.monotonic()
    with hold_run_directory(path.parent):
        assert 0.5 < time.monotonic() - start < 10
    assert path.read_text().startswith("left by process") and is_run_lock(path)
    for age, named in ((100, "process 7 on elsewhere\n"), (0, "left by process 7 on elsewhere\n")):
        other_host(path, age, named)
        start = time.monotonic()
        with hold_run_directory(path.parent):
            assert time.monotonic() - start < 0.5


def test_parts_of_a_sweep_on_two_hosts_share(tmp_path):
    path = tmp_path / "run" / ".lock"
    other_host(path, 0, "process 7 on elsewhere (shares)\n")
    with hold_run_directory(path.parent, shared=True):
        pass


def test_a_holder_renews_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "RENEWED_EVERY", 0.05)
    with hold_run_directory(tmp_path):
        os.utime(tmp_path / ".lock", (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / ".lock").stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / ".lock").stat().st_mtime > 1


def test_a_file_system_without_locks_is_said_and_its_holders_still_keep_each_other_out(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_run_directory(tmp_path):
        assert "has no locks (No locks available)" in caplog.text
    path = tmp_path / ".lock"
    path.write_text(f"process {os.getppid()} on {socket.gethostname()}\n")  # alive
    with pytest.raises(UserError, match="in use by process"):
        with hold_run_directory(tmp_path):
            pass
    with locks.locked(tmp_path / "other.lock"):
        assert "another process may do the same work" in caplog.text


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "a.json", b"{}")
        os.umask(0o002)
        write_spreadsheet(tmp_path / "b.csv", ("x",), [{"x": "=1"}])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "b.csv").stat().st_mode) == 0o664


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("of the user")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot write in the run directory"):
        with hold_run_directory(tmp_path / "run"):
            pass
    assert (tmp_path / "mine").read_text() == "of the user"


@pytest.mark.parametrize("content", [
    b"12345", b"process 7 on host", b"\xff\x00 of an editor\n", b"process 7 on host\n12345\n",
    b"process 7 on host\n" * 10_000])
def test_a_lock_of_another_program_is_left_as_it_is(tmp_path, content):
    path = tmp_path / ".lock"
    path.write_bytes(content)
    for shared in (False, True):
        with pytest.raises(UserError, match=r"/\.lock' belongs to another program, and was left as it is; set run.dir"):
            with hold_run_directory(tmp_path, shared):
                pass
    assert path.read_bytes() == content and [one.name for one in tmp_path.iterdir()] == [".lock"]


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(UserError, match="cannot write in the run directory .*is not a file"):
        with hold_run_directory(tmp_path):
            pass


@pytest.mark.parametrize("content", ["", "process 7 on host (shares)\nprocess 8 on host (shares)\n",
                                     "left by process 7 on host\n"])
def test_what_a_kill_leaves_of_our_own_is_taken(tmp_path, content):
    path = tmp_path / ".lock"
    path.write_text(content)
    os.utime(path, (1, 1))
    with hold_run_directory(tmp_path):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert is_run_lock(path)


def test_the_last_of_several_lines_says_who_holds_it(tmp_path, monkeypatch):
    """Two that share may empty the file one after the other, and then write."""
    monkeypatch.setattr(run_lock, "RENEWED_EVERY", 0.1)
    path = tmp_path / "run" / ".lock"
    other_host(path, 0, "process 7 on elsewhere (shares)\nprocess 8 on elsewhere (shares)\n")
    assert is_run_lock(path)
    threading.Timer(0.3, os.utime, (path,)).start()
    with pytest.raises(UserError, match="in use by process 8 on elsewhere;"):
        with hold_run_directory(path.parent):
            pass
