"""`mdw runs` and `mdw diff`: what lies in run folders, read off their files alone, in a moment and without jax."""

import contextlib
import csv
import datetime
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mdw_jax.config.presets import DISTILLED, LABELS, WITHOUT_EXPERTS
from mdw_jax.config.sections import config_digest, differences, flat, refuse_sweep
from mdw_jax.errors import UserError
from mdw_jax.io.files import is_run_lock
from mdw_jax.reporting.stats import welch
from mdw_jax.reporting.text import aligned, text

# The latest of these says when a run last did something.
_TOUCHED = (".lock", "config.json", "metrics.csv", "scores.csv", "sweep.csv", "certificate.csv", "fairness.csv")


def runs_command(folders: Sequence[str]) -> None:
    """Print a table of the runs in and below these folders, the latest last. Raises UserError where there are none."""
    found = [folder for name in folders for folder in run_folders(Path(name))]
    if not found:
        raise UserError(f"there are no runs in {' or '.join(map(repr, folders))}; `mdw run` makes one in its "
                        "config.run.dir.")
    when = {folder: _when(folder) for folder in found}
    rows = [{**described(folder), "when": f"{when[folder]:%Y-%m-%d %H:%M}"} for folder in sorted(found, key=when.get)]
    print(aligned(rows))


def diff_command(a: str, b: str) -> None:
    """Print where two runs differ: in their configs and environments, and in the scores of the presets."""
    folders = Path(a), Path(b)
    settings = [_settings(folder) for folder in folders]
    scores = [_scores(folder) if _is_finished(folder) else [] for folder in folders]
    found = differences(*settings)
    print(f"A: {a}\nB: {b}\n")
    print(aligned([{"setting": key, "A": text(x), "B": text(y)} for key, x, y in found]) if found
          else "The configs are the same.")
    for folder, rows in zip(folders, scores, strict=True):
        if not rows:
            print(f"\n'{folder}' has no scores of this config: {state(folder)}.")
    if all(scores):
        print("\n" + aligned(score_differences(*scores)))
        protocols = [", ".join(dict.fromkeys(row["select_on"] for row in rows)) for rows in scores]
        if protocols[0] != protocols[1]:
            print(f"\nA was scored under the protocol {protocols[0]}, B under {protocols[1]}: r_mean does not compare.")


def run_folders(folder: Path) -> Iterator[Path]:
    """The run folders in and below `folder`. What is inside one is its own. Raises UserError if there is no folder."""
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}'; give one that holds runs.")
    for path, below, names in os.walk(folder):
        below.sort()
        if (".lock" in names and is_run_lock(Path(path) / ".lock")) or (
                "config.json" in names and _config(Path(path)) is not None):
            below.clear()
            yield Path(path)


def described(folder: Path) -> dict[str, str]:
    """What `mdw runs` says of a run folder; r_mean: test, mean +- standard deviation over students, of which preset."""
    config = _config(folder)
    row = {"run": str(folder), "state": state(folder), "data": "-", "noise": "-", "presets": "-", "r_mean": "-"}
    if config is not None:
        row |= {"data": config["data"]["name"], "noise": f"{config['noise']['protocol']} {config['noise']['rate']:g}",
                "presets": ",".join(config["run"]["presets"])}
        if _is_finished(folder):
            with contextlib.suppress(UserError):  # damaged, as the state says
                row["r_mean"] = _headline(_scores(folder))
    return row


def state(folder: Path) -> str:
    """finished, running or stopped (and at which stage), never begun; for a sweep how many cells are done, and without
    a run what other commands have done; damaged files."""
    cells = list((folder / "sweep").glob("*.json"))
    failed = sum(path.name.endswith(".failed.json") for path in cells)
    sweep = f"sweep, {len(cells) - failed} cells done" + (f", {failed} failed" if failed else "")
    config = _config(folder)
    if _held(folder):
        return "running, " + (sweep if config is None and (folder / "sweep").is_dir() else _stage(folder, config))
    if config is None:
        if (folder / "config.json").exists():
            return "damaged config.json"
        begun = any((folder / name).is_dir() for name in ("cache", "experts", "distilled"))
        return sweep if cells else _beside(folder) or (f"stopped at {_stage(folder, None)}" if begun else "never begun")
    if not _is_finished(folder):
        return f"stopped at {_stage(folder, config)}"
    try:
        _scores(folder)
    except UserError:
        return "damaged scores.csv"
    return "finished"


def _beside(folder: Path) -> str:
    """What commands have done that leave no config.json: certified, fairness measured, 2 sets exported."""
    exported = len(list(folder.glob("export/*/card.json")))
    done = {"certified": (folder / "certificate.csv").exists(), "fairness measured": (folder / "fairness.csv").exists(),
            f"{exported} set{'s' * (exported > 1)} exported": exported}
    return ", ".join(words for words, holds in done.items() if holds)


def _stage(folder: Path, config: dict | None) -> str:
    """The stage that is not complete, as far as file names tell: which config left them, only their keys would."""
    if config is None:
        return next((stage for stage, name in (("distill", "distilled"), ("experts", "experts"))
                     if (folder / name).is_dir()), "prepare")
    begun = list(folder.glob("experts/*.lock"))
    if not all((path.with_suffix("") / "experts.json").exists() for path in begun):
        return "experts"
    if any(not (path / "card.json").exists() for path in folder.glob("distilled/*/set_*") if path.is_dir()):
        return "distill"
    presets = config["run"]["presets"]
    if not begun and any(name not in WITHOUT_EXPERTS for name in presets):
        return "experts"
    sets = config["distill"]["sets"]
    if any(len(list(folder.glob(f"distilled/{name}-*/set_*/card.json"))) < sets for name in presets
           if name in DISTILLED):
        return "distill"
    return "evaluate"


def _is_finished(folder: Path) -> bool:
    """Whether the scores are those of the config: every command begins with writing that.

    report.json says of which they are. Where it does not (older runs), they must be younger than config.json.
    """
    scores, config = folder / "scores.csv", folder / "config.json"
    if not scores.exists() or not config.exists():
        return False
    try:
        return json.loads((folder / "report.json").read_bytes())["config"] == config_digest(
            json.loads(config.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return scores.stat().st_mtime_ns >= config.stat().st_mtime_ns


def _held(folder: Path) -> bool:
    """Whether a process is at work in the folder: see `files.run_folder_held`."""
    path = folder / ".lock"
    # Parts of a sweep share their lock, so that only one that does not share tells of them; a run's is its alone.
    single = (folder / "config.json").exists() and not (folder / "sweep").is_dir()
    for kind in (fcntl.LOCK_SH,) if single else (fcntl.LOCK_EX, fcntl.LOCK_SH):
        with contextlib.suppress(OSError):  # there is none, or no such locks: NFS has exclusive ones for writers alone
            try:
                file = open(path, "r+")
            except OSError:  # not ours to write
                file = open(path)
            with file:
                try:
                    fcntl.flock(file, kind | fcntl.LOCK_NB)  # let go of at once, on closing
                    return False
                except BlockingIOError:
                    return True
    return False


def _config(folder: Path) -> dict | None:
    """The config of a run; None if there is none, or another program's: all that is read of it here is checked."""
    try:
        found = json.loads((folder / "config.json").read_bytes())
        presets, rate, sets = found["run"]["presets"], found["noise"]["rate"], found["distill"]["sets"]
        ours = (isinstance(presets, list) and isinstance(rate, (int, float)) and isinstance(sets, int)
                and all(isinstance(name, str) for name in (*presets, found["data"]["name"], found["noise"]["protocol"])))
        return found if ours else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _scores(folder: Path) -> list[dict]:
    """The rows of scores.csv. Raises UserError if it is damaged."""
    try:
        with open(folder / "scores.csv", newline="", encoding="utf-8") as file:
            rows = [{**row, "r_mean": float(row["r_mean"])} for row in csv.DictReader(file)]
        if not rows or any(row[name] is None for row in rows for name in ("preset", "set", "select_on")):
            raise ValueError("cells are missing")
        return rows
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"'{folder / 'scores.csv'}' is damaged; give mdw evaluate again.") from None


def _by_preset(rows: Iterable[dict]) -> dict[str, list[dict]]:
    found = {}
    for row in rows:
        found.setdefault(row["preset"], []).append(row)
    return found


def _headline(rows: list[dict]) -> str:
    """mdw's score or, without it, the best of the distilled presets."""
    found = {name: [row["r_mean"] for row in own] for name, own in _by_preset(rows).items() if name in DISTILLED}
    if not found:
        return "-"
    name = "mdw" if "mdw" in found else max(found, key=lambda name: np.mean(found[name]))
    optimistic = " (optimistic)" if any(row["select_on"] == "test" for row in rows if row["preset"] == name) else ""
    return f"{_mean(found[name])} {name}{optimistic}"


def _mean(values: Sequence[float]) -> str:
    """Mean +- standard deviation, as in the table of a run."""
    return f"{np.mean(values):.2f} +- {np.std(values, ddof=1) if len(values) > 1 else 0.0:.2f}"


def _when(folder: Path) -> datetime.datetime:
    paths = [folder / name for name in _TOUCHED if (folder / name).exists()]
    return datetime.datetime.fromtimestamp(max(path.stat().st_mtime for path in paths))


def _settings(folder: Path) -> dict:
    """{dotted key: value} of the config of a run, and of what it was made with. Raises UserError if it is no run."""
    config = _config(folder)
    if config is None:
        if not folder.is_dir():
            raise UserError(f"there is no folder '{folder}'; `mdw runs` lists the runs below one.")
        refuse_sweep(folder)
        said = state(folder) if is_run_lock(folder / ".lock") else "no run"
        raise UserError(f"'{folder}' holds no config of a run ({said}); `mdw runs` lists the runs below a folder.")
    try:
        environment = json.loads((folder / "environment.json").read_bytes())
    except (OSError, ValueError):
        environment = {}
    return flat({**config, "environment": environment})


def score_differences(a: list[dict], b: list[dict]) -> list[dict]:
    """One row a preset: r_mean in both runs and B - A with its 95 % interval, as text.

    a, b: rows of scores.csv. The interval is over distilled sets where both runs have several, the independent unit,
    and else over students, which says nothing of how much another set would differ.
    """
    both = _by_preset(a), _by_preset(b)
    found = []
    for preset in dict.fromkeys((*both[0], *both[1])):
        row = {"preset": LABELS.get(preset, preset),
               **{name: _mean([one["r_mean"] for one in of[preset]]) if preset in of else "-"
                  for name, of in zip("AB", both, strict=True)},
               "B - A": "-", "over": "-"}
        if preset in both[0] and preset in both[1]:
            by_set = [[float(np.mean([one["r_mean"] for one in of[preset] if one["set"] == number]))
                       for number in dict.fromkeys(one["set"] for one in of[preset])] for of in both]
            unit, values = "sets", by_set
            if min(map(len, by_set)) == 1:
                unit = "students" if preset in DISTILLED else "networks"
                values = [[one["r_mean"] for one in of[preset]] for of in both]
            difference, low, high = welch(values[0], values[1])
            row |= {"B - A": f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]",
                    "over": f"{len(values[0])} and {len(values[1])} {unit}"}
        found.append(row)
    return found


