"""One process a run folder, whatever happens to the one before; files whole or not at all."""

import fcntl
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mdw_jax.errors import UserError
from mdw_jax.io.files import is_run_lock, run_folder_held, write_atomically

HOLD = """
import sys, time
from mdw_jax.files import run_folder_held
with run_folder_held(sys.argv[1], shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the folder tmp_path / "run"; ends it with the test."""
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
            with run_folder_held(tmp_path / "run", shared):
                pass
    (tmp_path / "run" / "deep").mkdir()
    (tmp_path / "run" / "deep" / ".scores.json.abc.part").touch()  # what a killed process leaves
    (tmp_path / "run" / "deep" / "scores.part").touch()
    first.send_signal(signal.SIGKILL)
    first.wait()
    with run_folder_held(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run" / "deep").iterdir()] == ["scores.part"]
    with run_folder_held(tmp_path / "run"):
        pass


def test_one_who_only_looks_keeps_nobody_out(tmp_path):
    path = tmp_path / "run" / ".lock"
    path.parent.mkdir()
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as `mdw runs` does for a moment
        threading.Timer(0.3, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with run_folder_held(path.parent):
            assert is_run_lock(path)
    path.write_text("process of another program")
    assert not is_run_lock(path) and not is_run_lock(path.parent) and not is_run_lock(tmp_path / "none")


def test_parts_of_a_sweep_share_a_folder_and_keep_others_out(holder, tmp_path):
    holder("shared")
    unfinished = tmp_path / "run" / ".scores.json.abc.part"
    unfinished.touch()
    with run_folder_held(tmp_path / "run", shared=True):
        assert unfinished.exists()  # the other one may be writing it
        with pytest.raises(UserError, match="in use"):
            with run_folder_held(tmp_path / "run"):
                pass


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the run folder .*run.dir"):
        with run_folder_held(tmp_path / "file" / "run"):
            pass


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = write_atomically(tmp_path / "deep" / "file", b"before")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"before" and list(path.parent.iterdir()) == [path]
