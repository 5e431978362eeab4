"""Devices to plan for: what their makers say of them, and what this machine does, measured in about a second."""

import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_PROBE_FLOPS = 2e9  # of a forward pass of the tower, on 1 to 16 images
_PROBE_PRODUCT = (128, 512, 256)  # a batch of pairs and a layer of a head
_PROBE_SECONDS = 0.25  # each measurement is repeated for so long
_SCALING = 0.7  # N cores do N^0.7 times as much as one: the quickstart on two, measured for this work
# What the constants of seconds were measured on: one core of a server, in Python loops per second of it.
_REFERENCE_LOOPS = 2.6e7


class Device(NamedTuple):
    """One device.

    Attributes:
        matmul: FLOP/s of dense matrix products. Of accelerators the peak in JAX's default precision for float32 (TF32;
            bfloat16 passes on a TPU) by their makers' data sheets; they reach a share of it (`plan.utilization`).
        memory: bytes.
        bandwidth: bytes/s between the device and its memory.
        tower: FLOP/s of a forward pass of the image tower; None: as of matrix products.
        host: how many times as fast the host's one core is as the one that constants were measured on.
        busy: how many seconds pass in a second of the processor's, because others use the machine.
        measured: whether these are measurements, and no share of them has to be taken.
    """

    matmul: float
    memory: float
    bandwidth: float
    tower: float | None = None
    host: float = 1.0
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


def this_machine(features: Callable, params: Any, images: tuple, flops: int) -> Device:
    """The first device of this process, measured for about a second: matrix products, a copy, the image tower, Python.

    On a CPU the seconds of the processor count, so that other work on the machine does not hide what a core can do, and
    `busy` says how much of a core this process gets beside that work now.

    Args:
        features: (params, images (B, H, W, C)) -> features, the tower.
        params: shapes of its parameters; they are filled with small numbers.
        images: (H, W, C) of an image.
        flops: of the forward pass of one image.
    """
    on_cpu = jax.default_backend() == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    together = usable_cores() ** _SCALING if on_cpu else 1.0
    filled = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), params)
    count = max(1, min(16, round(_PROBE_FLOPS / flops)))
    batch = jnp.full((count, *images), 0.5)
    left, right, column = jnp.ones(_PROBE_PRODUCT[:2]), jnp.ones(_PROBE_PRODUCT[1:]), jnp.ones(2**20)
    rates = (2 * math.prod(_PROBE_PRODUCT) / _seconds(clock, jax.jit(jnp.matmul), left, right),
             2 * column.nbytes / _seconds(clock, jax.jit(lambda x: x * 0.5 + 1), column),
             count * flops / _seconds(clock, jax.jit(features), filled, batch))
    loops, busy = _python()
    matmul, bandwidth, tower = (rate * together for rate in rates)
    return Device(matmul, _device_memory(), bandwidth, tower, loops / _REFERENCE_LOOPS, busy, measured=True)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds(clock: Callable[[], float], function: Callable, *arguments) -> float:
    """Median seconds of a call, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    seconds, end = [], time.perf_counter() + _PROBE_SECONDS
    while len(seconds) < 2 or time.perf_counter() < end:
        start = clock()
        jax.block_until_ready(function(*arguments))
        seconds.append(clock() - start)
    return max(statistics.median(seconds), 1e-7)


def _python() -> tuple[float, float]:
    """Loops per second of one core in Python, and seconds that pass in a second of the processor's."""
    wall, cpu, rates = time.perf_counter(), time.process_time(), []
    while time.perf_counter() < wall + _PROBE_SECONDS:
        start, loops = time.process_time(), 0
        for _ in range(100_000):
            loops += 1
        rates.append(loops / max(time.process_time() - start, 1e-4))
    wall, cpu = time.perf_counter() - wall, max(time.process_time() - cpu, 1e-3)
    return statistics.median(rates), max(1.0, wall / cpu)


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

