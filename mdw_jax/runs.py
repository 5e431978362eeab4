"""`mdw runs` and `mdw diff`: what lies in run folders, read off their files alone, in a moment and without jax."""

import csv
import datetime
import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.presets import DISTILLED, LABELS, WITHOUT_EXPERTS

_TOUCHED = (".lock", "config.json", "metrics.csv", "scores.csv", "sweep.csv")  # the latest of them says when
_NO_DIFFERENCE = ("run.dir",)  # every run has its own


def runs_command(folders: Sequence[str]) -> None:
    """Print a table of the runs in and below these folders, the latest last. Raises UserError where there are none."""
    found = [folder for name in folders for folder in run_folders(Path(name))]
    if not found:
        raise UserError(f"there are no runs in {' or '.join(map(repr, folders))}; `mdw run` makes one in its "
                        "config.run.dir.")
    when = {folder: _when(folder) for folder in found}
    rows = [{**described(folder), "when": f"{when[folder]:%Y-%m-%d %H:%M}"} for folder in sorted(found, key=when.get)]
    print(_aligned(rows))


def diff_command(a: str, b: str) -> None:
    """Print where two runs differ: in their configs and environments, and in the scores of the presets."""
    folders = Path(a), Path(b)
    settings = [_settings(folder) for folder in folders]
    found = differences(*settings)
    print(f"A: {a}\nB: {b}\n")
    print(_aligned([{"setting": key, "A": _text(x), "B": _text(y)} for key, x, y in found]) if found
          else "The configs are the same.")
    scores = [_scores(folder) if _is_finished(folder) else [] for folder in folders]
    for folder, rows in zip(folders, scores, strict=True):
        if not rows:
            print(f"\n'{folder}' has no scores of this config: {state(folder)}.")
    if all(scores):
        print("\n" + _aligned(score_differences(*scores)))
        protocols = [", ".join(dict.fromkeys(row["protocol"] for row in rows)) for rows in scores]
        if protocols[0] != protocols[1]:
            print(f"\nA was scored under the protocol {protocols[0]}, B under {protocols[1]}: r_mean does not compare.")


def run_folders(folder: Path) -> Iterator[Path]:
    """The run folders in and below `folder`. What is inside one is its own. Raises UserError if there is no folder."""
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}'; give one that holds runs.")
    for path, below, names in os.walk(folder):
        below.sort()
        if ".lock" in names or ("config.json" in names and _config(Path(path)) is not None):
            below.clear()
            yield Path(path)


def described(folder: Path) -> dict[str, str]:
    """What `mdw runs` says of a run folder; r_mean: test, mean +- standard deviation over students, of which preset."""
    config = _config(folder)
    row = {"run": str(folder), "state": state(folder), "data": "-", "noise": "-", "presets": "-", "r_mean": "-"}
    if config is not None:
        noise = config.get("noise", {})
        row |= {"data": str(config.get("data", {}).get("name", "-")),
                "noise": f"{noise.get('protocol', '-')} {noise.get('rate', 0):g}",
                "presets": ",".join(config["run"].get("presets", ()))}
        if _is_finished(folder):
            row["r_mean"] = _headline(_scores(folder))
    return row


def state(folder: Path) -> str:
    """finished, running or stopped (and at which stage), never begun; for a sweep how many cells are done."""
    cells = list((folder / "sweep").glob("*.json"))
    failed = sum(path.name.endswith(".failed.json") for path in cells)
    sweep = f"sweep, {len(cells) - failed} cells done" + (f", {failed} failed" if failed else "")
    config = _config(folder)
    if _held(folder):
        return "running, " + (sweep if config is None and (folder / "sweep").is_dir() else _stage(folder, config))
    if config is None:
        if (folder / "config.json").exists():
            return "damaged config.json"
        return sweep if cells else "stopped at prepare" if any((folder / "cache").glob("*")) else "never begun"
    return "finished" if _is_finished(folder) else f"stopped at {_stage(folder, config)}"


def _stage(folder: Path, config: dict | None) -> str:
    """The stage that is not complete, as far as file names tell: which config left them, only their keys would."""
    if config is None:
        return "prepare"
    begun = list(folder.glob("experts/*.lock"))
    if not all((path.with_suffix("") / "experts.json").exists() for path in begun):
        return "experts"
    if any(not (path / "card.json").exists() for path in folder.glob("distilled/*/set_*") if path.is_dir()):
        return "distill"
    presets = config["run"].get("presets", ())
    if not begun and any(name not in WITHOUT_EXPERTS for name in presets):
        return "experts"
    sets = config.get("distill", {}).get("sets", 1)
    if any(len(list(folder.glob(f"distilled/{name}-*/set_*/card.json"))) < sets for name in presets
           if name in DISTILLED):
        return "distill"
    return "evaluate"


def _is_finished(folder: Path) -> bool:
    """Whether the scores are younger than the config: every command begins with writing that."""
    scores, config = folder / "scores.csv", folder / "config.json"
    return scores.exists() and config.exists() and scores.stat().st_mtime_ns >= config.stat().st_mtime_ns


def _held(folder: Path) -> bool:
    """Whether a process is at work in the folder: see `files.run_folder_held`."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of at once, on closing
    except BlockingIOError:
        return True
    except OSError:  # there is none, or no locks on this file system
        pass
    return False


def _config(folder: Path) -> dict | None:
    """The config of a run; None if there is none, or another program's."""
    try:
        found = json.loads((folder / "config.json").read_bytes())
        return found if isinstance(found["run"], dict) and isinstance(found["distill"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _scores(folder: Path) -> list[dict]:
    with open(folder / "scores.csv", newline="", encoding="utf-8") as file:
        return [{**row, "r_mean": float(row["r_mean"])} for row in csv.DictReader(file)]


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
    optimistic = " (optimistic)" if any(row["protocol"] == "peer" for row in rows if row["preset"] == name) else ""
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
        if (folder / "sweep").is_dir():
            raise UserError(f"'{folder}' holds a sweep, whose cells have a config each; compare them with mdw table "
                            f"{folder / 'sweep.csv'}.")
        said = state(folder) if (folder / ".lock").exists() else "no run"
        raise UserError(f"'{folder}' holds no config of a run ({said}); `mdw runs` lists the runs below a folder.")
    try:
        environment = json.loads((folder / "environment.json").read_bytes())
    except (OSError, ValueError):
        environment = {}
    return {key: value for key, value in _flat({**config, "environment": environment}) if key not in _NO_DIFFERENCE}


def _flat(tree: dict, prefix: str = "") -> Iterator[tuple]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(a: dict, b: dict) -> list[tuple]:
    """(key, value in a, value in b) where they differ, in the order of the keys; None: it has no such key."""
    return [(key, a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


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


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """mean(b) - mean(a) and its 95 % interval, the variances not taken for equal (Welch 1947); nan from one value."""
    from scipy.special import stdtrit  # here, because `mdw runs` does without it

    difference = float(np.mean(b) - np.mean(a))
    if min(len(a), len(b)) < 2:
        return difference, math.nan, math.nan
    parts = [np.var(values, ddof=1) / len(values) for values in (a, b)]
    variance = sum(parts)
    if variance == 0:
        return difference, difference, difference
    freedom = variance**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    half = float(stdtrit(freedom, 0.975) * math.sqrt(variance))
    return difference, difference - half, difference + half


def _text(value) -> str:
    if value is None or value == "":
        return "-" if value is None else '""'
    return ",".join(map(_text, value)) if isinstance(value, list) else str(value)


def _aligned(rows: list[dict[str, str]]) -> str:
    """Columns for a terminal."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = [dict(zip(rows[0], rows[0], strict=True)), *rows]
    return "\n".join("  ".join(f"{line[name]:<{width}}" for name, width in widths.items()).rstrip() for line in lines)
