"""Devices to plan for: what their makers say of them, and what this machine does, measured in about a second."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_PROBE_IMAGES = 16
_PROBE_SECONDS = 0.3  # each measurement is repeated for so long, and the fastest repetition counts
# What the constants of seconds were measured on: one core of a server, in Python loops per second (`_python_speed`).
_REFERENCE_LOOPS = 2.0e7


class Device(NamedTuple):
    """One device.

    Attributes:
        matmul: FLOP/s of dense matrix products. Of accelerators the peak in JAX's default precision for float32 (TF32;
            bfloat16 passes on a TPU) by their makers' data sheets; they reach a share of it (`plan.utilization`).
        memory: bytes.
        bandwidth: bytes/s between the device and its memory.
        tower: FLOP/s of a forward pass of the image tower; None: as of matrix products.
        host: how many times as fast the host's one core is as the one that constants were measured on.
        measured: whether these are measurements, and no share of them has to be taken.
    """

    matmul: float
    memory: float
    bandwidth: float
    tower: float | None = None
    host: float = 1.0
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
    """The first device of this process, measured: a matrix product, a copy, a forward pass of the image tower.

    Other work on the machine slows the measurements as it will slow the run; the fastest of several counts.

    Args:
        features: (params, images (B, H, W, C)) -> features, the tower.
        params: shapes of its parameters; they are filled with small numbers.
        images: (H, W, C) of an image.
        flops: of the forward pass of one image.
    """
    filled = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), params)
    batch = jnp.full((_PROBE_IMAGES, *images), 0.5)
    square = jnp.ones((1024, 1024))
    column = jnp.ones(8 * 2**20)
    matmul = 2 * 1024**3 / _fastest(jax.jit(jnp.matmul), square, square)
    bandwidth = 2 * column.nbytes / _fastest(jax.jit(lambda x: x + 1), column)
    tower = _PROBE_IMAGES * flops / _fastest(jax.jit(features), filled, batch)
    return Device(matmul, _device_memory(), bandwidth, tower, _python_speed(), measured=True)


def _fastest(function: Callable, *arguments) -> float:
    """Seconds of the fastest of several calls, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    seconds, end = [], time.perf_counter() + _PROBE_SECONDS
    while not seconds or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _python_speed() -> float:
    """Loops per second of one core in Python, in units of the machine that constants were measured on."""
    def loop() -> float:
        start = time.perf_counter()
        total = 0
        for number in range(200_000):
            total += number
        return time.perf_counter() - start

    return 200_000 / min(loop() for _ in range(5)) / _REFERENCE_LOOPS


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

