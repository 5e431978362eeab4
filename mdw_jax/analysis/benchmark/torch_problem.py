"""The problem of a case for the PyTorch reference: as arrays, and as a file for a process of its own."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.analysis.benchmark.case import Case
from mdw_jax.analysis.benchmark.timing import flatten, threads
from mdw_jax.models.image.mobilenet import read_mobilenet
from mdw_jax.models.weights.shipped import shipped_or_local


def find_reference(config: ConfigDict):
    """The module `torch_reference` and None; or None and a sentence that says why not.

    Args:
        config: resolved.
    """
    if importlib.util.find_spec("torch") is None:
        return None, "no comparison with PyTorch: it is not installed (pip install torch)."
    from mdw_jax.analysis.benchmark import torch_reference

    if jax.default_backend() == "gpu" and torch_reference.torch.cuda.is_available():
        torch_reference.use_gpu()
    elif jax.default_backend() != "cpu":
        return None, "no comparison with PyTorch: the installed one does not compute on this device."
    if config.model.tower not in torch_reference.TOWERS:
        return None, f"no comparison with PyTorch: the reference has no tower '{config.model.tower}'."
    torch_reference.torch.set_num_threads(threads())
    return torch_reference, None


def torch_settings(case: Case, reference, gradient: str):
    """What the reference has to know of a case.

    Args:
        case: what is measured.
        reference: the module `torch_reference`.
        gradient: "exact" or "detached".
    """
    m, method = case.config.model, case.method
    graph = mobilenet_graph(m.weights) if m.tower == "mobilenet" else ()
    return reference.Settings(m.mode, m.tau, method.loss, method.alpha, gradient, method.loss_merge, m.tower,
                              tuple(m.patches), graph)


def mobilenet_graph(path) -> tuple:
    """The operations of a mobilenet file that the tower `mobilenet` reads, up to its average pooling."""
    graph, _ = read_mobilenet(shipped_or_local(path))
    return tuple(graph["ops"][:-1])  # the last one is the pooling


def torch_problem(case: Case, reference):
    """The outer step of a case as flat dicts of numpy arrays: a `torch_reference.Problem`."""
    backbone = case.backbone if case.model.mode == "projection" else {}
    trees = (case.learned, case.starts, case.targets, backbone, {"rows": case.batches})
    return reference.Problem(*({name: np.asarray(x) for name, x in flatten(tree).items()} for tree in trees))


def torch_memory(reference, problem, settings) -> int | None:
    """Bytes by which a process of its own grows while it computes one outer gradient; None where that is not known.

    Args:
        reference: the module `torch_reference`.
        problem: of `torch_problem`.
        settings: of `torch_settings`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "problem.npz"
        reference.save_problem(path, problem, settings)
        # glibc would keep freed memory and hide that it is used again: hand back all but the smallest pieces.
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MALLOC_MMAP_THRESHOLD_": "65536"}
        command = [sys.executable, "-m", "mdw_jax.analysis.benchmark.torch_reference", str(path), str(threads())]
        result = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    return int(result.stdout) if result.returncode == 0 else None
