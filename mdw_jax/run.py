"""A run: the stages in order over the routes of the table, in one folder, and what it prints at the end."""

import csv
import io
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mdw_jax import report
from mdw_jax.config import resolve
from mdw_jax.errors import UserError
from mdw_jax.files import write_atomically, write_json
from mdw_jax.prepare import Prepared, prepare
from mdw_jax.stages import Route, distill_stage, evaluate_stage, experts_stage, open_route

_PACKAGES = ("mdw-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")


def _begin(config: ConfigDict) -> tuple[ConfigDict, Prepared, list[Route]]:
    """Check the config, note it and the environment in the run folder, prepare the data, open the routes."""
    resolved = resolve(config)
    try:
        Path(config.run.dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder '{config.run.dir}' ({error.strerror}); set run.dir elsewhere."
                        ) from None
    prepared = prepare(resolved)
    # Routes resolve for themselves: one recipe filled in on top of another would mix the two.
    routes = [open_route(config, prepared, name) for name in config.run.routes]
    folder = Path(config.run.dir)
    write_json(folder / "config.json", resolved.to_dict())
    write_json(folder / "environment.json", environment())
    return resolved, prepared, routes


def environment() -> dict:
    """Versions, devices and the commit this run was made with (None outside a checkout)."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    try:
        commit = subprocess.run(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
                                capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    return {"python": platform.python_version(), "machine": platform.machine(), "packages": versions,
            "devices": [str(device) for device in jax.devices()], "commit": commit}


def prepare_command(config: ConfigDict) -> None:
    """Data, noise draws and frozen features."""
    config, prepared, routes = _begin(config)
    for split in ("train", "val", "test"):
        data = getattr(prepared.pairs, split)
        print(f"{split:5}  {len(data.images)} images, {len(data.captions)} captions")
    for route in routes:
        print(f"{route.name:8}  noise {route.noise.protocol}, asked {route.noise.rate:.3f}, "
              f"really mismatched {route.noise.true_rate:.4f}, sha256 {route.noise.sha256[:12]}")


def experts_command(config: ConfigDict) -> None:
    """Experts of every route that has any."""
    _, prepared, routes = _begin(config)
    for route in routes:
        if route.name != "random":
            record = experts_stage(route, prepared)
            print(f"{route.name:8}  {record['recipe']}: test r_mean {np.mean(record['test'], 0)[-1]:.2f} at the best "
                  f"val epoch, mean of {record['networks']} networks  ({route.experts})")


def distill_command(config: ConfigDict) -> None:
    """Distilled sets of every route that has any."""
    _, prepared, routes = _begin(config)
    for route in routes:
        for folder in distill_stage(route, prepared):
            print(f"{route.name:8}  {folder}")


def evaluate_command(config: ConfigDict) -> None:
    """Scores of every route: scores.csv, one row a student, and the table."""
    config, prepared, routes = _begin(config)
    rows = [row for route in routes for row in evaluate_stage(route, prepared)]
    folder = Path(config.run.dir)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "scores.csv", text.getvalue().encode())
    table = report.table(rows, routes)
    write_atomically(folder / "table.md", report.markdown(table).encode())
    page = report.page(folder, config, prepared, routes, table, json.loads((folder / "environment.json").read_text()))
    print(report.plain(table))
    print(f"\nscores: {folder / 'scores.csv'}\npage:   {page}")


STAGES = {"prepare": prepare_command, "experts": experts_command, "distill": distill_command,
          "evaluate": evaluate_command, "run": evaluate_command}  # evaluating asks for all that comes before it
