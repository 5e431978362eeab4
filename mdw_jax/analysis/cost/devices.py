"""Devices to plan for: what their makers say of them, and what this machine does, measured in about a second."""

import functools
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdw_jax.analysis.cost.model_cost import TowerShapes

_PROBE_FLOPS = 2e9  # of a forward pass of the tower, on 1 to 16 images
_PROBE_PRODUCT = (128, 512, 256)  # a batch of pairs and a layer of a head
_PROBE_COLUMN = 2**22  # numbers, more than caches next to a core hold
_PROBE_SECONDS = 0.8  # of all measurements, which take turns
_LOOPS = 100_000
_SCALING = 0.7  # N cores do N^0.7 times as much as one: the quickstart on two, measured for this work
# What the constants of seconds were measured on: one core of a server, in Python loops per second of it.
_REFERENCE_LOOPS = 3.05e7


class Device(NamedTuple):
    """One device.

    Attributes:
        matmul: FLOP/s of dense matrix products. Of accelerators the peak in JAX's default precision for float32 (TF32;
            bfloat16 passes on a TPU) by their makers' data sheets; they reach a share of it (`plan.utilization`).
        memory: bytes.
        bandwidth: bytes/s between the device and its memory.
        tower: FLOP/s of a forward pass of the image tower; None: not measured.
        host: how many times as fast the host's one core is as the one that constants were measured on.
        cores: cores of the host for each device, which decode images; of machines that are not here, as many as
            launch/slurm.sh asks for.
        busy: how many seconds pass in a second of the processor's, because others use the machine.
        measured: whether these are measurements, and no share of them has to be taken.
    """

    matmul: float
    memory: float
    bandwidth: float
    tower: float | None = None
    host: float = 1.0
    cores: float = 8
    busy: float = 1.0
    measured: bool = False


# None: this machine, to be measured. "cpu": one core of a server, measured for this work.
DEVICES: dict[str, Device | None] = {
    "here": None,
    "a100": Device(156e12, 80e9, 2.0e12), "h100": Device(494e12, 80e9, 3.35e12), "h200": Device(494e12, 141e9, 4.8e12),
    "tpu_v4": Device(275e12, 32e9, 1.2e12), "tpu_v5e": Device(197e12, 16e9, 0.82e12),
    "tpu_v5p": Device(459e12, 95e9, 2.77e12), "tpu_v6e": Device(918e12, 32e9, 1.64e12),
    "cpu": Device(0.1e12, 24e9, 1e10),
}


def this_machine(tower: TowerShapes | None = None, flops: int = 0) -> Device:
    """The first device of this process, measured for about a second: matrix products, a copy, the image tower, Python.

    On a CPU the seconds of the processor count, so that other work on the machine does not hide what a core can do, and
    `busy` says how much of a core this process gets beside that work now.

    Args:
        tower: the image tower, whose forward pass is measured with small numbers for weights; None: it is not, as a large
            one takes seconds to compile.
        flops: of its forward pass on one image.
    """
    on_cpu = jax.default_backend() == "cpu"
    left, right, column = jnp.ones(_PROBE_PRODUCT[:2]), jnp.ones(_PROBE_PRODUCT[1:]), jnp.ones(_PROBE_COLUMN)
    calls: dict[str, Callable[[], Any]] = {"matmul": functools.partial(jax.jit(jnp.matmul), left, right),
                                           "copy": functools.partial(jax.jit(lambda x: x * 0.5 + 1), column)}
    count = max(1, min(16, round(_PROBE_FLOPS / max(flops, 1))))
    if tower:
        params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), tower.params)
        calls["tower"] = functools.partial(jax.jit(tower.features), params, jnp.full((count, *tower.image), 0.5))
    seconds, busy = _fastest(calls, time.process_time if on_cpu else time.perf_counter)
    cores = usable_cores()
    together = cores ** _SCALING if on_cpu else 1.0
    return Device(together * 2 * math.prod(_PROBE_PRODUCT) / seconds["matmul"], _device_memory(),
                  together * 2 * column.nbytes / seconds["copy"],
                  together * count * flops / seconds["tower"] if tower else None,
                  _LOOPS / seconds["python"] / _REFERENCE_LOOPS,
                  cores if on_cpu else cores / len(jax.devices()), busy, measured=True)


def _fastest(calls: dict[str, Callable[[], Any]], clock: Callable[[], float]) -> tuple[dict[str, float], float]:
    """Seconds of the fastest of many calls of each function and of a loop in Python, called in turn: others on the
    machine make single calls twice as long. And how many seconds pass in one of the processor's."""
    for call in calls.values():
        jax.block_until_ready(call())  # compiles
    timed = {**{name: functools.partial(_timed, call, clock) for name, call in calls.items()},
             "python": functools.partial(_timed, _loop, time.process_time)}
    seconds, wall, cpu = dict.fromkeys(timed, math.inf), 0.0, 0.0
    end, rounds = time.perf_counter() + _PROBE_SECONDS, 0
    while rounds < 3 or time.perf_counter() < end:
        rounds += 1
        for name, call in timed.items():
            start = time.perf_counter()
            took = call()
            seconds[name] = min(seconds[name], max(took, 1e-7))
            if name == "python":
                wall, cpu = wall + time.perf_counter() - start, cpu + took
    return seconds, max(1.0, wall / max(cpu, 1e-6))


def _timed(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    jax.block_until_ready(call())
    return clock() - start


def _loop() -> None:
    total = 0
    for number in range(_LOOPS):
        total += number


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device_memory() -> float:
    """Bytes of the first device; of a CPU the memory of the host."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return float(limit or host_memory())


def host_memory() -> int:
    """Bytes of memory that this machine has free, where the system says so; else all that it has."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

