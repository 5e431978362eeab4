"""`mdw bench --devices 1,2,4,8`: weak scaling, by what compiled steps do and send on each of N virtual devices."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mdw_jax.errors import UserError
from mdw_jax.io.files import read_json, write_csv, write_json
from mdw_jax.pipeline.run_folder import run_folder
from mdw_jax.reporting.text import markdown_table, scaled, scaled_bytes
from mdw_jax.runtime.progress import progress

COLUMNS = ("step", "grown", "devices", "flops", "sent", "memory")
MOST = 512  # virtual devices


def devices_command(config: ConfigDict, counts: Sequence[int]) -> None:
    """Compile the steps of a config for so many virtual CPU devices, N times the work on N; print a table, write
    `<run.dir>/devices.csv`.

    Args:
        config: the run's config, not resolved.
        counts: numbers of devices.

    Raises:
        UserError: too many devices, or compiling fails.
    """
    if max(counts) > MOST:
        raise UserError(f"--devices takes up to {MOST} virtual devices, not {max(counts)}.")
    directory, rows = run_folder(config), []
    file = write_json(directory / "devices-config.json", config.to_dict())
    with progress("bench --devices", len(counts), "numbers of devices") as advance:
        for count in counts:
            rows += _rows(file, count, directory / "devices-rows.json")
            advance()
    for path in (file, directory / "devices-rows.json"):
        path.unlink(missing_ok=True)
    write_csv(directory / "devices.csv", list(COLUMNS), rows)
    print(markdown_table(table_rows(rows)))
    print("On each device. Operations are XLA's count, of a loop its body once; sent is the size of what collectives give. "
          f"Nothing was run.  {directory / 'devices.csv'}")


def _rows(file: Path, count: int, out: Path) -> list[dict]:
    others = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu",
                   "XLA_FLAGS": " ".join([*others, f"--xla_force_host_platform_device_count={count}"])}
    child = subprocess.run([sys.executable, "-m", "mdw_jax.analysis.scale.device_process", str(file), str(count), str(out)],
                           env=environment, capture_output=True, text=True)
    if child.returncode:
        raise UserError("the steps cannot be compiled for "
                        f"{count} devices ({(child.stderr.strip().splitlines() or ['no message'])[-1]}).")
    return read_json(out, list)


def table_rows(rows: Sequence[dict]) -> list[dict[str, str]]:
    """A row for each step and what of it grows, a column for each number of devices."""
    table: dict[tuple, dict[str, str]] = {}
    for row in rows:
        cells = table.setdefault((row["step"], row["grown"]), {"step": row["step"], "grows": row["grown"]})
        cells[f"{row['devices']} devices"] = (f"{scaled(row['flops'], 1000, ' KMGTP')}FLOP, "
                                              f"{scaled_bytes(row['sent'])} sent, {scaled_bytes(row['memory'])}")
    return list(table.values())
