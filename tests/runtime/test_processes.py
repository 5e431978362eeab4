"""Processes find each other, and stop together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mdw_jax.errors import UserError
from mdw_jax.runtime import processes

EXPLICIT = {"MDW_COORDINATOR": "localhost:1234", "MDW_PROCESSES": "2", "MDW_PROCESS": "0"}
# Process 1 alone gets a signal, somewhere between the steps; both say at which step they stop.
TOGETHER = """
import os, signal, sys
from mdw_jax.runtime import preemption, processes
processes.join()
processes.join()
import jax
with preemption.handle_signals():
    try:
        for step in range(1000):
            if step == 3 and jax.process_index() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            preemption.raise_if_interrupted()
    except preemption.Interrupted as stop:
        print(jax.process_index(), jax.process_count(), step, flush=True)
        sys.exit(preemption.exit_status(stop.number))
"""


@pytest.mark.parametrize("environment", [
    {}, {"MDW_DISTRIBUTED": "0"}, {"MDW_DISTRIBUTED": "1", "SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "8"},
    EXPLICIT | {"MDW_PROCESSES": "1"}])
def test_a_single_process_joins_nobody(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)  # not even asked
    processes.join(environment)


@pytest.mark.parametrize(("changes", "message"), [
    ({"MDW_PROCESS": ""}, "MDW_PROCESS is not"), ({"MDW_PROCESS": "2"}, "make no sense"),
    ({"MDW_PROCESSES": "two"}, "make no sense"), ({"MDW_COORDINATOR": "localhost"}, "is not host:port"),
    ({"MDW_COORDINATOR": "localhost:70000"}, "is not host:port"),
    ({"MDW_COORDINATOR": "localhost:\u00b2"}, "is not host:port"), ({"MDW_JOIN_TIMEOUT": "soon"}, "number of seconds"),
    ({"MDW_JOIN_TIMEOUT": "0"}, "number of seconds")])
def test_what_makes_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        processes.join(EXPLICIT | changes)


def test_outside_a_cluster_nobody_is_detected(monkeypatch):
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    with pytest.raises(UserError, match="jax finds neither SLURM"):
        processes.join({"MDW_DISTRIBUTED": "1"})


def given(port, process):
    return {"MDW_COORDINATOR": f"localhost:{port}", "MDW_PROCESSES": "2", "MDW_PROCESS": str(process)}


def by_slurm(port, process):
    return {"MDW_DISTRIBUTED": "1", "JAX_COORDINATOR_PORT": str(port), "SLURM_JOB_ID": "17", "SLURM_NTASKS": "2",
            "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": str(process), "SLURM_LOCALID": str(process),
            "SLURM_STEP_NUM_NODES": "1"}


@pytest.mark.parametrize("variables", [given, by_slurm])
def test_processes_join_and_stop_at_the_same_step(variables):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = os.environ | {"JAX_PLATFORMS": "cpu", "MDW_STATUS_WHEN_STOPPED": "85",
                           "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [subprocess.Popen([sys.executable, "-c", TOGETHER], env=common | variables(port, n), text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for n in (0, 1)]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [status for *_, status in ended] == [85, 85], ended
    # Gloo may speak on stdout as well.
    [[first], [second]] = [[line.split() for line in out.splitlines() if line[:1].isdigit()] for out, *_ in ended]
    assert first[:2] == ["0", "2"] and second[:2] == ["1", "2"] and first[2] == second[2] and int(first[2]) >= 3
