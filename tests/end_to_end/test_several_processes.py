"""`mdw run` by two processes of four devices each leaves what one process leaves."""

import csv
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from test_preemption import ROOT, arguments

from mdw_jax.io.distilled_set import load_distilled


def start(folder, processes: int, process: int, port: int):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    if processes > 1:
        environment |= {"MDW_COORDINATOR": f"localhost:{port}", "MDW_PROCESSES": str(processes),
                        "MDW_PROCESS": str(process), "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
                        "--xla_force_host_platform_device_count=4"}
    words = arguments("run", folder, run__presets="random,mdw", distill__optimizer="sgd", distill__trajectories="2")
    return subprocess.Popen([sys.executable, "-m", "mdw_jax", *words], env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def finished(folder, processes: int):
    """The scores and the distilled set of a run, and what each process printed."""
    folder.with_suffix(".py").write_text("from mdw_jax.config import base as get_config\n")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [start(folder, processes, n, port) for n in range(processes)]
    said = [process.communicate(timeout=300) for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == 0, errors
    with open(folder / "scores.csv", newline="") as file:
        scores = np.array([float(row["r_mean"]) for row in csv.DictReader(file)])
    [card] = folder.glob("distilled/mdw-*/set_0/card.json")
    ours = lambda out: "".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]"))
    return scores, load_distilled(card.parent)[0], [ours(out) for out, _ in said]


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(tmp_path):
    scores, one, _ = finished(tmp_path / "one", 1)
    found, two, said = finished(tmp_path / "two", 2)
    assert "scores:" in said[0] and said[1] == ""  # the first process alone speaks
    np.testing.assert_allclose(two.images, one.images, atol=1e-3)
    np.testing.assert_allclose(two.texts, one.texts, atol=1e-3 * np.abs(one.texts).max())
    assert len(found) == len(scores) and np.abs(found - scores).max() <= 100 / 30  # at most a query of 30 otherwise
    left = {path.name for path in (tmp_path / "two").rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith((".part", "checkpoint.safetensors"))]
    # The same command, given again, has nothing to do.
    again, _, said = finished(tmp_path / "two", 2)
    np.testing.assert_array_equal(again, found)
