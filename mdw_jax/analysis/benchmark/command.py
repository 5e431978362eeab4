"""`mdw bench`: how fast the computations of a config are on this machine, in ratios.

Everything runs in this process on random tensors of the config's shapes (no data are opened), without augmentation and
mixing. Programs that are compared take turns, so that other work on the machine slows both, and medians are reported.
References: a loop that runs the frozen backbone inside every inner step (`projection` mode), and a PyTorch
implementation of the same computation (`torch_reference.py`; on CPUs and GPUs, if torch is installed). Outputs are
compared first: where they differ, there is no ratio.
"""

import os
import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mdw_jax.analysis.benchmark.case import Case, make_case
from mdw_jax.analysis.benchmark.expert_step import expert_step
from mdw_jax.analysis.benchmark.other_parts import matrix_product, store, students
from mdw_jax.analysis.benchmark.outer_step import outer_step
from mdw_jax.analysis.benchmark.rows import COLUMNS, PEAK, Measured, value_row
from mdw_jax.analysis.benchmark.timing import threads
from mdw_jax.analysis.benchmark.torch_problem import find_reference
from mdw_jax.analysis.scale.command import scale_command
from mdw_jax.analysis.scale.devices import devices_command
from mdw_jax.config.overrides import preset_config
from mdw_jax.data.registry import image_shape
from mdw_jax.errors import UserError
from mdw_jax.io.files import write_csv
from mdw_jax.pipeline.run_folder import run_folder
from mdw_jax.reporting.text import markdown_table
from mdw_jax.runtime.progress import progress


def bench_command(config: ConfigDict, sizes: Sequence[int] = (), devices: Sequence[int] = (), repeats: int = 5) -> None:
    """Measure a config, as the preset `mdw` resolves it; print a table and write `<run.dir>/bench.csv`.

    Args:
        config: the run's config, not resolved.
        sizes: numbers of made pairs on which whole runs are measured instead (`analysis.scale.command`).
        devices: numbers of virtual devices for which steps are compiled instead (`analysis.scale.devices`).
        repeats: how often each computation is timed, after a call that does not count.

    Raises:
        UserError: both are given, the config is not valid, or trains its text encoder.
    """
    if sizes and devices:
        raise UserError("--scale and --devices are two measurements; give one of them.")
    if sizes or devices:
        scale_command(config, sizes) if sizes else devices_command(config, devices)
        return
    c = preset_config(config, "mdw")
    folder, about = run_folder(c), machine()
    rows, remarks = bench(c, folder, repeats)
    write_csv(folder / "bench.csv", list(COLUMNS), [{**row, **about} for row in rows])
    d, sides = c.distill, "x".join(map(str, image_shape(c.data)[:2]))
    print(f"{c.model.tower}, {c.model.mode} mode, {sides} px, M = {d.pairs}, S = {d.inner_steps}, b = {d.batch}, "
          f"{d.trajectories} trajectories, loss {d.loss}; medians of {repeats}\n"
          f"{about['device']}, {about['threads']} of {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; "
          f"{about['versions']}")
    print(*remarks, "", sep="\n")
    print(markdown_table([{name: _digits(row.get(name)) for name in COLUMNS[:5]} for row in rows]))
    print(f"a ratio above 1 means that mdw_jax is so many times better, below 1 that it is worse.  {folder / 'bench.csv'}")


def bench(config: ConfigDict, directory: Path, repeats: int) -> tuple[list[dict], list[str]]:
    """Measure a resolved config.

    Args:
        config: resolved.
        directory: where the store of snapshots is measured.
        repeats: timed calls.

    Returns:
        Rows of the table, those with a ratio first, and sentences about them.
    """
    reference, why_none = find_reference(config)
    remarks = [why_none] if why_none else []
    if config.distill.augment != "none" or config.distill.mixup or config.experts.augment != "none":
        remarks.append("augmentation and mixing are left out of what is measured.")
    with progress("bench", 5, "parts") as advance:
        case, rows = make_case(config), []
        for measured in _parts(case, reference, repeats, directory):
            rows += measured.rows
            remarks += measured.remarks
            advance()
    peak = next(row["value"] for row in rows if row["measure"].startswith(PEAK))
    rows += [value_row(f"share of the {PEAK}'s {row['measure']}", 100 * row["value"] / peak, "%")
             for row in rows if row["measure"].startswith("rate of")]
    return sorted(rows, key=lambda row: row.get("ratio") is None), remarks


def _parts(case: Case, reference, repeats: int, directory: Path) -> Iterator[Measured]:
    yield matrix_product(reference, repeats)
    yield expert_step(case, reference, repeats)
    yield outer_step(case, reference, repeats)
    yield store(case, repeats, directory)
    yield students(case, repeats)


def machine() -> dict:
    """Columns device, threads and versions of the CSV."""
    device = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        names = [line for line in lines if line.startswith("model name")]
        device = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    versions = {name: _version(name) for name in ("mdw-jax", "jax", "torch")}
    return {"device": device, "threads": threads(),
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _digits(value):
    """Three significant digits for the terminal."""
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
