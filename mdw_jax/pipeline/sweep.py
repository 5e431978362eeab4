"""`mdw sweep`: a grid of configs and presets in one run directory, and one tidy CSV of all its students.

In the run directory, beside what the stages keep there (see `mdw_jax.pipeline`):

    sweep.csv                   one row per student, of every finished cell of the latest grid
    sweep/<key>.json            a finished cell: its rows, its config, its environment
    sweep/<key>.failed.json     a cell that failed, and why; the next sweep tries it again

The key of a cell is a digest of its resolved config, its preset, and the source of functions from outside the package,
without the directory: cells that differ only in settings that their preset overrides (`full` at every noise rate) are
one cell, done once. A finished cell is skipped without loading any data, so files that a config names are trusted not
to change; delete `sweep/` after changing one.
"""

import copy
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mdw_jax.config.overrides import preset_config
from mdw_jax.config.plugin_values import plugin_sources
from mdw_jax.config.plugins import is_path, source_digest
from mdw_jax.config.presets import preset_spec
from mdw_jax.errors import UserError
from mdw_jax.io.checksums import write_listed, write_listed_json
from mdw_jax.io.files import csv_bytes, digest, write_json
from mdw_jax.io.keyed import read_keyed_json
from mdw_jax.io.locks import locked
from mdw_jax.io.scores import METRICS
from mdw_jax.pipeline.announce import announce, announce_source
from mdw_jax.pipeline.evaluate import evaluate_stage
from mdw_jax.pipeline.plugin_checks import check_plugins
from mdw_jax.pipeline.prepared import Prepared, prepare
from mdw_jax.pipeline.preset_run import PresetRun, open_preset
from mdw_jax.pipeline.run_folder import environment, run_folder
from mdw_jax.pipeline.run_notes import noise_estimates
from mdw_jax.reporting.stats import summary
from mdw_jax.runtime import preemption
from mdw_jax.runtime.agreement import Disagreement
from mdw_jax.runtime.processes import agree, broadcast_from_main

_FORMAT = "sweep.1"
_ESTIMATES = ("estimated_rate", "estimated_low", "estimated_high")  # of natural noise, and where noise.estimate asks
_COLUMNS = ("noise.protocol", "noise.rate", "true_rate", "distill.pairs", "set", "student", "select_on", "lr_scale",
            "steps", "at_edge", "val_r_mean", *METRICS, "hard_r_mean", "bytes", *_ESTIMATES, "seconds", "commit",
            "run.seed")
_FAILED = ".failed.json"
_FAIL_TOGETHER = 20.0  # seconds in which all processes find the same mistake


class Cell(NamedTuple):
    """One cell of a grid.

    Attributes:
        number: its place in the grid, from 1.
        preset: name of its preset.
        values: {dotted config key: value} on the axes.
        config: the sweep's config with these values, before the preset's overrides.
        resolved: the resolved config of the preset.
        key: digest of everything that its scores depend on.
    """

    number: int
    preset: str
    values: dict
    config: ConfigDict
    resolved: ConfigDict
    key: str

    def __str__(self):
        return " ".join(f"{name}={_as_text(value)}" for name, value in {"preset": self.preset, **self.values}.items())


def grid(config: ConfigDict, axes: Mapping[str, Sequence]) -> list[Cell]:
    """The cells of the product of all axes, the last axis varying fastest; each is resolved.

    Args:
        config: the config of the sweep, not resolved.
        axes: {dotted config key, or "preset": values}. Without "preset", run.presets are the last axis.

    Raises:
        UserError: a combination is not valid; the message names its cell.
    """
    axes = {**axes} if "preset" in axes else {**axes, "preset": tuple(dict.fromkeys(config.run.presets))}
    points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    cells = []
    for number, values in enumerate(points, 1):
        preset = values.pop("preset")
        changed = copy.deepcopy(config)  # keeps references: one key of the file may follow another
        changed.update_from_flattened_dict({**values, "run.presets": (preset,)})
        cell = Cell(number, preset, values, changed, changed, "")
        try:
            resolved = preset_config(changed, preset)
            check_plugins(resolved, preset_spec(preset))
        except UserError as error:
            raise UserError(f"cell {number} of {len(points)} ({cell}) is not valid: {error}") from None
        cells.append(cell._replace(resolved=resolved, key=_cell_key(resolved, preset)))
    return cells


def _cell_key(resolved: ConfigDict, preset: str) -> str:
    sections = {name: section for name, section in resolved.to_dict().items() if name != "watch"}
    # `preset_overrides` are already applied to the other sections, and those of other presets do not matter here.
    ignored = ("dir", "preset_overrides")
    sections["run"] = {name: value for name, value in sections["run"].items() if name not in ignored}
    coreset = preset_spec(preset).coreset
    sources = plugin_sources(resolved, *(name for name in sections if name != "run"))
    return digest(_FORMAT, preset, sections, *sources, *([source_digest(coreset)] if is_path(coreset) else []))


def sweep_command(config: ConfigDict, axes: Mapping[str, Sequence], shard: tuple[int, int] = (0, 1),
                  dry_run: bool = False) -> None:
    """Do the cells of one shard of a grid that are not done yet, and write `<run.dir>/sweep.csv` after each.

    Args:
        config: the config of the sweep, not resolved.
        axes: as in `grid`.
        shard: (i, n), for the cells whose index modulo n is i.
        dry_run: only list the cells and their states.

    Raises:
        UserError: a cell is not valid; or, at the end, some cells failed with a UserError.
    """
    cells = grid(config, axes)
    own = cells[shard[0]::shard[1]]
    announce(cell.resolved for cell in own)
    if dry_run:
        _list_command(own, len(cells))
        return
    directory, made_with, data = run_folder(config), environment(), _LatestData()
    failed = 0
    for cell in own:
        preemption.raise_if_interrupted()
        record = broadcast_from_main(functools.partial(_finished, cell))
        outcome = "done before"
        if record is None:
            try:
                record = _do_cell(cell, data, made_with)
                agree(_outcome(cell, "done"))
            except UserError as error:
                _failed_everywhere(cell, error)
                failed += 1
                write_json(_path(cell, _FAILED), {"key": cell.key, "cell": str(cell), "message": str(error)})
                print(f"[{cell.number}/{len(cells)}] {cell}: failed: {error}", flush=True)
                continue
            outcome = f"{record['seconds']:.0f} s"
            _collect(directory, cells, axes)
        print(f"[{cell.number}/{len(cells)}] {cell}: {_score(cell, record['rows'])}, {outcome}", flush=True)
    finished = _collect(directory, cells, axes)
    print(f"{finished} of {len(cells)} cells are done: {directory / 'sweep.csv'}")
    if failed:
        raise UserError(f"{failed} of {len(own)} cells failed; see '{directory / 'sweep'}/*{_FAILED}', fix the cause "
                        "and give the same command again.")


def _list_command(cells: list[Cell], count: int) -> None:
    states = ["done" if _finished(cell) else "failed before" if _path(cell, _FAILED).exists() else "to do"
              for cell in cells]
    for cell, state in zip(cells, states, strict=True):
        print(f"[{cell.number}/{count}] {cell}: {state}")
    print(f"{states.count('done')} of {len(cells)} cells are done")


def _path(cell: Cell, suffix: str) -> Path:
    return Path(cell.config.run.dir) / "sweep" / f"{cell.key[:16]}{suffix}"


def _finished(cell: Cell) -> dict | None:
    """The record of a cell; None if there is none or it is damaged: it is cheap to make again from finished stages."""
    return read_keyed_json(_path(cell, ".json"), cell.key)


class _LatestData:
    """The data of the latest cell, for the next one; only these, because data may fill the memory."""

    def __init__(self):
        self._key, self._prepared = None, None

    def prepare(self, resolved: ConfigDict) -> Prepared:
        """The data of a resolved config, prepared anew where its data, text or model differ from the latest."""
        # Of evaluate, only the settings of the students' tower.
        evaluate = {name: resolved.evaluate[name] for name in ("tower", "mode", "weights")}
        key = digest(*(resolved[name].to_dict() for name in ("data", "text", "model")), evaluate, resolved.run.seed)
        if key != self._key:
            self._key, self._prepared = None, None  # frees the memory first
            with locked(Path(resolved.run.dir) / "cache.lock"):  # other shards find the features in the cache
                self._prepared = prepare(resolved)
                announce_source(self._prepared.pairs)
            self._key = key
        return self._prepared


def _do_cell(cell: Cell, data: _LatestData, made_with: dict) -> dict:
    """Do a cell; returns its record, which is written last."""
    start = time.monotonic()
    prepared = data.prepare(cell.resolved)
    run = open_preset(cell.config, prepared, cell.preset)
    with locked(run.sets.path.with_suffix(".lock")):  # cells that differ in evaluation share their sets
        rows = evaluate_stage(run, prepared)
    seconds = round(time.monotonic() - start, 1)
    record = {
        "key": cell.key, "cell": str(cell), "axes": cell.values, "config": cell.resolved.to_dict(),
        "environment": made_with, "seconds": seconds,
        "rows": [{**row, **_set_columns(run), "seconds": seconds, "commit": made_with["commit"]}
                 for row in rows],
    }
    with locked(_path(cell, ".json").with_name(".lock")):  # other shards list their cells in the same SHA256SUMS
        write_listed_json(_path(cell, ".json"), record)
    _path(cell, _FAILED).unlink(missing_ok=True)
    return record


def _failed_everywhere(cell: Cell, error: UserError) -> None:
    """Go on after an error if all processes have one; where others are in the middle of the cell, it ends all of them.

    Raises:
        UserError: not all have one.
    """
    if isinstance(error, Disagreement):
        raise error
    try:
        agree(_outcome(cell, "failed"), within=_FAIL_TOGETHER)
    except (Disagreement, TimeoutError):
        raise error from None


def _outcome(cell: Cell, outcome: str) -> dict[str, dict[str, str]]:
    return {"outcome of a cell": {str(cell): outcome}}


def _set_columns(run: PresetRun) -> dict:
    """Columns about the sets that the students of a preset learned from."""
    noise = run.noise
    unknown = noise.true_rate is None and not noise.rate  # an empty cell: 0 would say that no pair is mismatched
    columns = {"noise.protocol": noise.protocol, "noise.rate": "" if unknown else _as_text(noise.rate),
               "true_rate": noise.true_rate, "run.seed": run.config.run.seed}
    estimate = noise_estimates([run]).get(noise.sha256)
    if estimate:
        columns |= dict(zip(_ESTIMATES, (estimate[name] for name in ("eta", "low", "high")), strict=True))
    return columns | ({"distill.pairs": run.config.distill.pairs} if run.spec.has_sets else {})


def _collect(directory: Path, cells: list[Cell], axes: Mapping) -> int:
    """Write the rows of all finished cells, of all shards, in the order of the grid; returns how many cells.

    The column of an axis holds the requested value, also where the preset overrides it, so that `full` stands beside
    the others at every noise rate; `true_rate` is the rate its pairs really had. Without such an axis the noise is the
    preset's own, and `distill.pairs` is empty for presets without sets.
    """
    columns = list(dict.fromkeys(("preset", *axes, *_COLUMNS)))
    with locked(directory / "sweep" / ".lock"):  # or a shard that read earlier could write later
        finished = [(cell, record) for cell in cells if (record := _finished(cell))]
        write_listed(directory / "sweep.csv", csv_bytes(columns, [
            {**row, **{name: _as_text(value) for name, value in cell.values.items()}}
            for cell, record in finished for row in record["rows"]]))
    return len(finished)


def _score(cell: Cell, rows: list[dict]) -> str:
    """Mean and deviation of r_mean, and over how many sets x students: "r_mean 21.3 +- 0.4 (3 x 5)"."""
    stats = summary([[row[name] for name in METRICS] for row in rows])
    sets = len({row["set"] for row in rows})
    count = f"{sets} x {len(rows) // sets}" if preset_spec(cell.preset).has_sets else f"{len(rows)} networks"
    return f"r_mean {stats['r_mean']:.1f} +- {stats['r_mean_std']:.1f} ({count})"


def _as_text(value) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_as_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)
