"""Rows of bench.csv."""

from typing import NamedTuple

from mdw_jax.analysis.benchmark.timing import Program

COLUMNS = ("measure", "value", "reference", "ratio", "unit", "device", "threads", "versions")
"""Columns of bench.csv. value: of mdw_jax. reference: of the implementation that `measure` names. ratio: how many times
better mdw_jax is, empty without a reference."""

PEAK = "matrix product"
LOOP, TORCH = "the backbone in every inner step", "PyTorch"  # names of the references
MDW_JAX = "mdw_jax"  # name of the implementation that is measured
_LESS_IS_BETTER = ("s", "MiB")


class Measured(NamedTuple):
    """What one part of the benchmark gives: rows, and sentences to print."""

    rows: list[dict]
    remarks: list[str]


def value_row(measure: str, value: float, unit: str) -> dict:
    """A row without a reference."""
    return {"measure": measure, "value": float(f"{value:.6g}"), "unit": unit}


def ratio_row(measure: str, name: str, value: float, reference: float, unit: str) -> dict:
    """A row with the value of the reference called `name`, and the ratio."""
    ratio = reference / value if unit in _LESS_IS_BETTER else value / reference
    return {**value_row(f"{measure}, against {name}", value, unit), "reference": float(f"{reference:.6g}"),
            "ratio": float(f"{ratio:.4g}")}


def cost_rows(measure: str, program: Program, seconds: float) -> list[dict]:
    """What is known of a program beside its time."""
    rows = []
    if program.compile_seconds is not None:
        rows.append(value_row(f"compiling {measure}", program.compile_seconds, "s"))
    if program.memory is not None:
        rows.append(value_row(memory_of(measure), program.memory / 2**20, "MiB"))
    if program.sent is not None:
        rows.append(value_row(f"collectives of {measure}, per device", program.sent / 2**20, "MiB"))
    if program.xla_flops:
        rows.append(value_row(f"XLA's operations of {measure}, per device, loops once", 1e-6 * program.xla_flops,
                              "MFLOP"))
    return rows + ([value_row(f"rate of {measure}", 1e-9 * program.flops / seconds, "GFLOP/s")] if program.flops else [])


def memory_of(measure: str) -> str:
    """The measure of the memory that a computation needs."""
    return f"memory beyond inputs of {measure}"
