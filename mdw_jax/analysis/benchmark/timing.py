"""Timing compiled programs: medians of alternating runs; memory and operations from the compiler."""

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
    """A computation that is ready to run. Numbers that are not known are None.

    Attributes:
        run: runs it once and waits.
        compile_seconds: to trace and compile it.
        memory: bytes that it needs beyond its inputs.
        flops: of `count_flops`; what is rematerialized counts again.
        sent: with several devices, bytes of collectives on each (`collective_bytes`).
        xla_flops: with several devices, XLA's count of operations on each.
    """

    run: Callable[[], Any]
    compile_seconds: float | None = None
    memory: int | None = None
    flops: int | None = None
    sent: int | None = None
    xla_flops: float | None = None


def medians(runs: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, float]:
    """Median seconds of each function.

    They take turns, in alternating order, after one call of each that does not count.

    Args:
        runs: functions by name.
        repeats: timed calls of each.
    """
    for run in runs.values():
        run()
    seconds = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            begin = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - begin)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def compiled(function, *arguments) -> Program:
    """A jitted function, compiled for these arguments."""
    return compile_program(lambda: jax.block_until_ready(function(*arguments)), function, *arguments)


def compile_program(run: Callable[[], Any], function, *arguments) -> Program:
    """A program that calls a jitted function with arguments of these shapes, which is compiled here.

    Args:
        run: calls the function once and waits.
        function: a jitted function.
        arguments: that it is compiled for.
    """
    with without_compilation_cache():
        begin = time.perf_counter()
        call = function.lower(*arguments).compile()
        seconds = time.perf_counter() - begin
    program = Program(run, seconds, memory_beyond_inputs(call), count_flops(function, *arguments))
    if len(jax.devices()) == 1:
        return program
    return program._replace(sent=sum(collective_bytes(call.as_text()).values()), xla_flops=xla_flops(call))


def memory_beyond_inputs(call) -> int | None:
    """Bytes that a compiled program needs on a device beyond its inputs; None where the compiler does not tell."""
    analysis = call.memory_analysis()
    return analysis and analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes


def xla_flops(call) -> float | None:
    """XLA's own count for one device. It counts a loop's body once: good for comparing devices, not for rates."""
    analysis = call.cost_analysis()
    return analysis and analysis.get("flops")


@contextlib.contextmanager
def without_compilation_cache():
    """A context in which no compiled program is read from or written to a disk, so that compile times are real."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def flatten(tree) -> dict:
    """Leaves of nested dicts by their path, joined by "/"."""
    return flatten_dict(tree, sep="/")


def threads() -> int:
    """Cores that this process may use, and that JAX and PyTorch both get."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
