"""Timing compiled programs: medians of alternating runs, memory and operations by the compiler."""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental.compilation_cache import compilation_cache

from mdw_jax.analysis.cost.collectives import collective_bytes
from mdw_jax.analysis.cost.flops import count_flops


class Program(NamedTuple):
    """A computation, ready to run.

    run: does it once and waits. compiling: seconds to trace and compile. memory: bytes it needs beyond its inputs.
    flops: see `flops.py`; what is rematerialized counts again. sent: of several devices, bytes of collectives on each
    (`collectives.py`), and XLA's count of operations on each. None where there is no such number.
    """

    run: Callable[[], Any]
    compiling: float | None = None
    memory: int | None = None
    flops: int | None = None
    sent: int | None = None
    xla_flops: float | None = None


def medians(runs: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, float]:
    """Median seconds of each function. They take turns, there and back, after one call of each that does not count."""
    for run in runs.values():
        run()
    seconds = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            begin = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - begin)
    return {name: float(np.median(taken)) for name, taken in seconds.items()}


def compiled(function, *arguments) -> Program:
    """A jitted function, compiled for these arguments."""
    costs = _compile(function, *arguments)
    return Program(lambda: jax.block_until_ready(function(*arguments)), *costs)


def _compile(function, *arguments):
    """Of a `Program` all but `run`; the function's next call finds it compiled."""
    with without_compilation_cache():
        begin = time.perf_counter()
        call = function.lower(*arguments).compile()
        seconds = time.perf_counter() - begin
    found = call.memory_analysis()
    memory = found and found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    flops = count_flops(function, *arguments)
    if len(jax.devices()) == 1:
        return seconds, memory, flops
    return seconds, memory, flops, sum(collective_bytes(call.as_text()).values()), _xla_flops(call)


def _xla_flops(call) -> float | None:
    """XLA's own count for one device. It counts what is in a loop once: good for comparing devices, not for rates."""
    found = call.cost_analysis()
    return found and found.get("flops")


@contextlib.contextmanager
def without_compilation_cache():
    """Within it nothing compiled is read from or written to a disk: compile times are what they say."""
    wanted = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", wanted)
        compilation_cache.reset_cache()


def _flat(tree) -> dict:
    """Leaves of nested dicts by their path, joined by "/"."""
    return flatten_dict(tree, sep="/")


def threads() -> int:
    """Cores that this process may use: what both JAX and PyTorch are given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
