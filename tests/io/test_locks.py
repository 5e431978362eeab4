"""One process per run directory, whatever happened to the one before."""

import fcntl
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mdw_jax.errors import UserError
from mdw_jax.io.locks import hold_run_directory, is_run_lock

HOLD = """
import sys, time
from mdw_jax.io.locks import hold_run_directory
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
    (tmp_path / "run" / "deep" / ".scores.json.abc.part").touch()  # what a killed process leaves
    (tmp_path / "run" / "deep" / "scores.part").touch()
    first.send_signal(signal.SIGKILL)
    first.wait()
    with hold_run_directory(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run" / "deep").iterdir()] == ["scores.part"]
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
    unfinished = tmp_path / "run" / ".scores.json.abc.part"
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
