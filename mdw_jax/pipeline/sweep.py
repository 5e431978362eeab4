"""`mdw sweep`: a grid of configurations and presets in one run folder, and one tidy CSV of all its students.

In the run folder, beside what the stages keep there (mdw_jax/stages):

    sweep.csv                   one row a student, of every finished cell of the grid that ran last
    sweep/<key>.json            a finished cell: its rows, its config, what it was made with
    sweep/<key>.failed.json     a cell that failed, and why; the next sweep tries it again

A cell's key is a digest of its resolved config and its preset, without the folder: cells that differ only in what their
preset overrules (`full` at every noise rate) are one, and done once. A finished cell is skipped without loading any
data, so files that a config names are trusted to stay what they were; delete `sweep/` after changing one.
"""

import copy
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mdw_jax.config.presets import DISTILLED, preset_config
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest, locked, write_csv, write_json
from mdw_jax.method.retrieval import METRICS
from mdw_jax.pipeline.distill import set_folder
from mdw_jax.pipeline.evaluate import evaluate_stage
from mdw_jax.pipeline.prepared import Prepared, prepare
from mdw_jax.pipeline.preset_run import Preset, open_preset
from mdw_jax.pipeline.run_folder import environment, run_folder
from mdw_jax.reporting.stats import summary
from mdw_jax.runtime import preemption
from mdw_jax.runtime.processes import broadcast_from_main

_FORMAT = "sweep.1"
_COLUMNS = ("noise.protocol", "noise.rate", "true_rate", "distill.pairs", "set", "student", "select_on", "lr_scale",
            "steps", "val_r_mean", *METRICS, "bytes", "seconds", "commit", "run.seed")


class Cell(NamedTuple):
    """One cell of a grid. values: {dotted key: value} on the axes; config: with them, not yet the preset's."""

    number: int  # from 1, in the order of the grid
    preset: str
    values: dict
    config: ConfigDict
    resolved: ConfigDict
    key: str

    def __str__(self):
        return " ".join(f"{name}={_text(value)}" for name, value in {"preset": self.preset, **self.values}.items())


def grid(config: ConfigDict, axes: Mapping[str, Sequence]) -> list[Cell]:
    """The product of the axes, the last one varying fastest; every cell resolved.

    axes: {dotted key of the config, or "preset": values}; without "preset", run.presets are the last axis.
    Raises UserError, naming the cell, for a combination that cannot be.
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
        except UserError as error:
            raise UserError(f"cell {number} of {len(points)} ({cell}) cannot be: {error}") from None
        cells.append(cell._replace(resolved=resolved, key=_key(resolved, preset)))
    return cells


def _key(resolved: ConfigDict, preset: str) -> str:
    sections = {name: section for name, section in resolved.to_dict().items() if name != "watch"}
    # `tuned` has had its effect on the other sections, and what it says of other presets is none of this cell's.
    sections["run"] = {name: value for name, value in sections["run"].items() if name not in ("dir", "preset_overrides")}
    return digest(_FORMAT, preset, sections)


def sweep(config: ConfigDict, axes: Mapping[str, Sequence], part: tuple[int, int] = (0, 1), dry: bool = False) -> None:
    """Do what is not done yet of the cells of this part, writing `<run.dir>/sweep.csv` after each.

    axes: as in `grid`. part: (i, n), the cells whose index mod n is i. dry: only say what is done and what is not.
    A cell that fails with a UserError is noted and passed over; raises UserError at the end if any did.
    """
    cells = grid(config, axes)
    mine = cells[part[0]::part[1]]
    if dry:
        _list(mine, len(cells))
        return
    folder = run_folder(config)
    made_with = environment()
    prepared_for = _keep_last()
    failed = 0
    for cell in mine:
        preemption.raise_if_interrupted()
        record, before = broadcast_from_main(lambda cell=cell: _finished(cell)), "done before"
        if record is None:
            try:
                record = _work(cell, prepared_for, made_with)
            except UserError as error:
                failed += 1
                write_json(_path(cell, ".failed.json"), {"key": cell.key, "cell": str(cell), "message": str(error)})
                print(f"[{cell.number}/{len(cells)}] {cell}: failed: {error}", flush=True)
                continue
            before = f"{record['seconds']:.0f} s"
            _collect(folder, cells, axes)
        print(f"[{cell.number}/{len(cells)}] {cell}: {_said(cell, record['rows'])}, {before}", flush=True)
    finished = _collect(folder, cells, axes)
    print(f"{finished} of {len(cells)} cells are done: {folder / 'sweep.csv'}")
    if failed:
        raise UserError(f"{failed} of {len(mine)} cells failed; see '{folder / 'sweep'}/*.failed.json', mend the cause "
                        "and give the same command again.")


def _list(cells: list[Cell], count: int):
    states = ["done" if _finished(cell) else "failed before" if _path(cell, ".failed.json").exists() else "to do"
              for cell in cells]
    for cell, state in zip(cells, states, strict=True):
        print(f"[{cell.number}/{count}] {cell}: {state}")
    print(f"{states.count('done')} of {len(cells)} cells are done")


def _path(cell: Cell, suffix: str) -> Path:
    return Path(cell.config.run.dir) / "sweep" / f"{cell.key[:16]}{suffix}"


def _finished(cell: Cell) -> dict | None:
    """The record of a cell; None if there is none or it is damaged (making it again is cheap: the stages are done)."""
    try:
        record = json.loads(_path(cell, ".json").read_text())
        return record if record["key"] == cell.key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _keep_last():
    """A `prepare` that remembers the last thing it prepared, and nothing else: data may fill the memory."""
    held = {}

    def prepared_for(resolved: ConfigDict) -> Prepared:
        # Of evaluate, only what says which tower the students have.
        evaluate = {name: resolved.evaluate[name] for name in ("tower", "mode", "weights")}
        key = digest(*(resolved[name].to_dict() for name in ("data", "text", "model")), evaluate, resolved.run.seed)
        if key not in held:
            held.clear()
            with locked(Path(resolved.run.dir) / "cache.lock"):  # other parts find the features in the cache
                held[key] = prepare(resolved)
        return held[key]

    return prepared_for


def _work(cell: Cell, prepared_for, made_with: dict) -> dict:
    """Do a cell; returns its record, which is written last."""
    start = time.monotonic()
    prepared = prepared_for(cell.resolved)
    preset = open_preset(cell.config, prepared, cell.preset)
    with locked(preset.sets.with_suffix(".lock")):  # cells that differ in evaluation want the same sets
        rows = evaluate_stage(preset, prepared)
    seconds = round(time.monotonic() - start, 1)
    record = {
        "key": cell.key, "cell": str(cell), "axes": cell.values, "config": cell.resolved.to_dict(),
        "environment": made_with, "seconds": seconds,
        "rows": [{**row, **_facts(preset, row["set"]), "seconds": seconds, "commit": made_with["commit"]}
                 for row in rows],
    }
    write_json(_path(cell, ".json"), record)
    _path(cell, ".failed.json").unlink(missing_ok=True)
    return record


def _facts(preset: Preset, index: int) -> dict:
    """What a row says of the set its student learned from; bytes: what that set costs, everything counted."""
    facts = {"noise.protocol": preset.noise.protocol, "noise.rate": _text(preset.noise.rate),
             "true_rate": preset.noise.true_rate, "run.seed": preset.config.run.seed}
    if preset.name in DISTILLED:
        card = json.loads((set_folder(preset, index) / "card.json").read_text())
        facts |= {"distill.pairs": preset.config.distill.pairs, "bytes": card["byte_budget"]["total"]}
    return facts


def _collect(folder: Path, cells: list[Cell], axes: Mapping) -> int:
    """Write the rows of all finished cells, whoever did them, in the order of the grid; returns how many cells.

    An axis's column holds the value asked for, also where the preset overrules it, so that `full` stands beside the
    others at every noise rate; `true_rate` is what its pairs really had. Without such an axis the noise is the
    preset's own, and `distill.pairs` is empty where nothing is distilled.
    """
    columns = list(dict.fromkeys(("preset", *axes, *_COLUMNS)))
    with locked(folder / "sweep" / ".lock"):  # or a part that read earlier could write later
        finished = [(cell, record) for cell in cells if (record := _finished(cell))]
        write_csv(folder / "sweep.csv", columns, [
            {**row, **{name: _text(value) for name, value in cell.values.items()}}
            for cell, record in finished for row in record["rows"]])
    return len(finished)


def _said(cell: Cell, rows: list[dict]) -> str:
    """r_mean and its deviation over rows, and how many there are: 'r_mean 21.3 +- 0.4 (3 x 5)', sets x students."""
    stats = summary([[row[name] for name in METRICS] for row in rows])
    sets = len({row["set"] for row in rows})
    of = f"{sets} x {len(rows) // sets}" if cell.preset in DISTILLED else f"{len(rows)} networks"
    return f"r_mean {stats['r_mean']:.1f} +- {stats['r_mean_std']:.1f} ({of})"


def _text(value) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)
