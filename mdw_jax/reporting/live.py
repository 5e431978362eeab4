"""The page of a run that goes on: its state, how far each stage is, and its curves so far, from metrics.csv alone.

Imports neither jax nor matplotlib, so that it can be made anew every few seconds beside a run.
"""

import csv
import io
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

from mdw_jax.errors import UserError
from mdw_jax.io.checksums import DamagedError, read_verified_json
from mdw_jax.io.metrics import COLUMNS, FILE, read_metrics
from mdw_jax.reporting import html, svg
from mdw_jax.reporting.run_list import is_in_use, state

MAX_POINTS = 250  # of a line
_STAGE_NAMES = {"experts": "Experts", "distill": "Distillation"}
# Charts of a stage: the metric in metrics.csv, the axis, the title.
_CHARTS = {"experts": (("val_r_mean", "val r_mean, %", "Experts"),),
           "distill": (("loss", "relative to the experts' movement", "Matching loss"),
                       ("val_r_mean", "val r_mean, %", "The set so far"))}


class Curve(NamedTuple):
    """One metric of one directory of a stage: parallel lists, by step."""

    steps: list[int]
    values: list[float]


def live_page(path: Path, script: str = "", note: str = "") -> str:
    """The page of a run directory, finished or not.

    Args:
        path: the run directory.
        script: of a page that is served (`html.page`).
        note: a sentence to show on top, such as why the full report cannot be made.

    Returns:
        HTML.
    """
    curves, damage = _curves_and_damage(path)
    config = _config(path)
    charts = [chart for stage, shown in _CHARTS.items() for chart in _charts_of(stage, shown, curves)]
    since = "since it was begun" if is_in_use(path) else "from its beginning to its last sign of life"
    tiles = html.tiles([(_age(_seconds(path)), since), *_tiles(config, curves)])
    about = f"Data {config['data']['name']}; presets {', '.join(config['run']['presets'])}." if config else ""
    sentences = [sentence for sentence in (_sentence(path), note, damage, about) if sentence]
    top = f'<div class="verdict">{html.paragraphs(sentences)}</div>\n{tiles}'
    drawn = f'<div class="charts">{"".join(charts)}</div>' if charts else "<p>Nothing has three points yet.</p>"
    return html.page(f"{path.resolve().name}: {state(path)}", top, [
        html.Section("Curves so far", "From metrics.csv, which the run appends to; charts begin with the third point.",
                     drawn, folded=False),
        html.Section("Last numbers", "The last row of every metric of the stages.", _last_rows(curves)),
    ], script=script)


def _curves_and_damage(path: Path) -> tuple[dict[tuple[str, str, str], Curve], str]:
    """The curves of a run; and, where metrics.csv is damaged, none and a sentence."""
    try:
        return read_curves(path), ""
    except DamagedError as error:
        return {}, (f"{FILE} is damaged ({error}); its curves are left out. The scores do not depend on it; delete the "
                    f".{FILE}.sha256 beside it to see what it holds.")


def read_curves(path: Path) -> dict[tuple[str, str, str], Curve]:
    """What metrics.csv of a run holds so far; {} where there is none yet. Rows that are being written are left out.

    Returns:
        {(stage, directory, metric): its values}; a stage is "experts" or "distill", and values of several networks of a
        directory are averaged, as in the report.

    Raises:
        DamagedError: the file is not as it was written.
    """
    sums: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    try:
        text = read_metrics(path / FILE).decode(errors="replace")
        for row in csv.reader(io.StringIO(text, newline="")):
            if len(row) != len(COLUMNS):
                continue
            stage, name, step, metric, value = row
            stage = stage.partition("/")[0]
            try:
                sums.setdefault((stage, name, metric), {}).setdefault(int(step), []).append(float(value))
            except ValueError:  # the header, or half a row
                continue
    except (OSError, csv.Error):
        return {}
    return {key: Curve(sorted(steps), [sum(steps[n]) / len(steps[n]) for n in sorted(steps)])
            for key, steps in sums.items() if key[0] in (*_STAGE_NAMES, "teachers", "trajectories")}


def _charts_of(stage: str, shown, curves: Mapping) -> list[str]:
    """The charts of a stage, one line for each of its directories."""
    stages = ("experts", "teachers", "trajectories") if stage == "experts" else (stage,)
    drawn = []
    for metric, axis, title in shown:
        lines = {}
        for (name, directory, measured), curve in curves.items():
            if name in stages and measured == metric:
                label = _label(directory) + ("" if name in ("experts", "distill") else f" ({name})")
                lines[label] = _thinned(curve)
        drawn.append(svg.lines(lines, "epoch" if stage == "experts" else "outer step", axis, title))
    return [chart for chart in drawn if chart]


def _label(directory: str) -> str:
    """ "distilled/mdw-0123456789/set_0" -> "mdw, set 0"; "experts/dtcl-0123456789" -> "dtcl"."""
    parts = directory.split("/")[1:]
    name = parts[0].rpartition("-")[0] or parts[0] if parts else directory
    return name + (f", {parts[1].replace('_', ' ')}" if len(parts) > 1 else "")


def _thinned(curve: Curve) -> Curve:
    """A line with at most `MAX_POINTS` points: every n-th, and the last."""
    stride = -(-len(curve.steps) // MAX_POINTS)
    rows = [*range(0, len(curve.steps) - 1, stride), len(curve.steps) - 1]
    return Curve([curve.steps[n] for n in rows], [curve.values[n] for n in rows])


def _tiles(config: Mapping | None, curves: Mapping) -> list[tuple[str, str]]:
    """How far each directory of a stage is: its last step, of how many the config says."""
    totals: dict[str, int | None] = {"experts": None, "distill": None}
    if config is not None:
        totals = {"experts": config["experts"].get("epochs"), "distill": config["distill"].get("steps")}
    tiles = []
    for stage, metric in (("experts", "val_r_mean"), ("distill", "loss")):
        for (name, directory, measured), curve in curves.items():
            if (name, measured) == (stage, metric):
                done = curve.steps[-1] + (stage == "distill")  # outer steps count from 0, epochs from 1
                total = f" of {totals[stage]}" if totals[stage] and done <= (totals[stage] or 0) else ""
                unit = "outer steps of" if stage == "distill" else "epochs of the experts"
                tiles.append((f"{done}{total}", f"{unit} {_label(directory)}"))
    return tiles


def _last_rows(curves: Mapping) -> str:
    return html.html_table([{"of": f"{_label(directory)} ({stage})", "metric": metric, "step": curve.steps[-1],
                             "value": curve.values[-1]} for (stage, directory, metric), curve in curves.items()],
                           "Last numbers")


def _sentence(path: Path) -> str:
    where = state(path)
    return f"{where[:1].upper()}{where[1:]}."


def _config(path: Path) -> Mapping | None:
    try:
        config = read_verified_json(path / "config.json")
        texts = [config["data"]["name"], *config["run"]["presets"]]
        known = all(isinstance(config[name], dict) for name in ("experts", "distill"))
        return config if known and all(isinstance(text, str) for text in texts) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seconds(path: Path) -> float:
    """From the first file of a run to now or, where it is not going on, to its last sign of life."""
    try:
        times = {file.name: file.stat().st_mtime for file in path.iterdir() if file.is_file()}
    except OSError:  # it is being deleted
        return 0.0
    if not times:
        return 0.0
    begun = times.get("config.json", min(times.values()))
    return max((time.time() if is_in_use(path) else max(times.values())) - begun, 0.0)


def _age(seconds: float) -> str:
    """Seconds for people: "45 s", "12 min", "3 h 20 min"."""
    minutes = int(seconds // 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def refuse_no_run(path: Path) -> None:
    """Raises UserError where a directory is neither a run nor about to become one."""
    if not path.is_dir():
        raise UserError(f"there is no directory '{escape(str(path), quote=False)}'; give that of a run, or begin it first.")
    if state(path) == "never begun":
        raise UserError(f"'{path}' is not a run directory; give one, or begin the run first.")
