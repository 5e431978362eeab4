"""`mdw runs` and `mdw diff`: the state and the scores of runs, read from their files in a moment and without jax."""

import contextlib
import datetime
import glob
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mdw_jax.config.presets import safe_name
from mdw_jax.config.sections import config_digest, differences, flat, refuse_sweep
from mdw_jax.errors import UserError
from mdw_jax.io.checksums import DamagedError, read_verified, read_verified_json
from mdw_jax.io.locate import refuse_unusable_path
from mdw_jax.io.locks import is_locked
from mdw_jax.io.run_lock import is_run_lock
from mdw_jax.io.scores import SCORES, OlderVersionError, read_scores
from mdw_jax.reporting.noise_text import estimate_in_words
from mdw_jax.reporting.preset_info import preset_info, read_summary
from mdw_jax.reporting.stats import mean_text, welch
from mdw_jax.reporting.text import aligned, plural, printable, text

# The latest of these files says when a run last did something.
_TOUCHED = (".lock", "config.json", "metrics.csv", SCORES, "sweep.csv", "certificate.csv", "fairness.csv")


def runs_command(directories: Sequence[str]) -> None:
    """Print a table of the runs in and below these directories, the latest last."""
    paths = [path for name in directories for path in run_directories(Path(name))]
    if not paths:
        raise UserError(f"there are no runs in {' or '.join(map(repr, directories))}; `mdw run` makes one in its "
                        "config.run.dir.")
    times = {path: _last_touched(path) for path in paths}
    print(aligned([{**_described_or_unreadable(path), "when": f"{times[path]:%Y-%m-%d %H:%M}"}
                   for path in sorted(paths, key=lambda path: times[path])]))


def diff_command(a: str, b: str) -> None:
    """Print where two runs differ: in their configs and environments, and in the scores of their presets."""
    paths = Path(a), Path(b)
    settings = [_settings(path) for path in paths]
    scores = [_scores(path) if _is_finished(path) else [] for path in paths]
    changed = differences(*settings)
    print(f"A: {a}\nB: {b}\n")
    print(aligned([{"setting": key, "A": text(x), "B": text(y)} for key, x, y in changed]) if changed
          else "The configs are the same.")
    for path, rows in zip(paths, scores, strict=True):
        if not rows:
            print(f"\n'{path}' has no scores of this config: {state(path)}.")
    if all(scores):
        summaries = [read_summary(path) for path in paths]
        presets = [entry for summary in summaries if isinstance(summary.get("presets"), list)
                   for entry in summary["presets"]]
        print("\n" + aligned(score_differences(scores[0], scores[1], {"presets": presets})))
        selected = [", ".join(dict.fromkeys(row["select_on"] for row in rows)) for rows in scores]
        if selected[0] != selected[1]:
            print()
            print(printable(f"A was selected on {selected[0]}, B on {selected[1]}: their r_mean cannot be compared."))


def run_directories(path: Path) -> Iterator[Path]:
    """Yield the run directories in and below a directory; what is inside one belongs to it.

    Raises:
        UserError: there is no such directory.
    """
    refuse_unusable_path(path)
    if not path.is_dir():
        raise UserError(f"there is no directory '{path}'; give one that holds runs.")
    for place, below, names in os.walk(path):
        below.sort()
        if (".lock" in names and is_run_lock(Path(place) / ".lock")) or (
                "config.json" in names and _config(Path(place)) is not None):
            below.clear()
            yield Path(place)


def _described_or_unreadable(path: Path) -> dict[str, str]:
    """The row of a run; one whose files cannot be read must not hide the others."""
    try:
        return described(path)
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "damaged files"
        return {"run": str(path), "state": f"unreadable ({reason})",
                **dict.fromkeys(("data", "noise", "presets", "r_mean"), "-")}


def described(path: Path) -> dict[str, str]:
    """The row of `mdw runs` for a run directory; r_mean: on test, mean +- standard deviation, and of which preset."""
    config = _config(path)
    row = {"run": str(path), "state": state(path), "data": "-", "noise": "-", "presets": "-", "r_mean": "-"}
    if config is not None:
        row |= {"data": config["data"]["name"], "noise": _noise(path, config["noise"]),
                "presets": ",".join(config["run"]["presets"])}
        if _is_finished(path):
            with contextlib.suppress(UserError):  # damaged, as the state says
                row["r_mean"] = _headline(_scores(path), read_summary(path))
    return row


def _noise(path: Path, settings: Mapping) -> str:
    """The noise of a run: "image 0.4", "file index.npy", "natural", "natural, 38.9% [38.1%, 39.6%]" once estimated."""
    if settings.get("file") and isinstance(settings["file"], str):
        return f"file {Path(settings['file']).name}"
    if settings["protocol"] != "natural":
        return f"{settings['protocol']} {settings['rate']:g}"
    words = ""
    with contextlib.suppress(KeyError, TypeError, ValueError):  # damaged, or of an earlier version
        entries = read_summary(path)["presets"] if _is_finished(path) else []
        found = [entry["noise"] for entry in entries if entry["noise"]["protocol"] == "natural"]
        words = next(filter(None, (estimate_in_words(noise.get("estimated")) for noise in found)), "")
    assumed = f" ({settings['rate']:.1%} assumed)" if settings["rate"] else ""
    return "natural" + (f", {words}" if words else "") + assumed


def state(path: Path) -> str:
    """Where a run stands: finished, running or stopped (and at which stage), never begun, or damaged.

    For a sweep: how many cells are done. Without a run: what other commands have done.
    """
    cells = list((path / "sweep").glob("*.json"))
    failed = sum(cell.name.endswith(".failed.json") for cell in cells)
    sweep = f"sweep, {len(cells) - failed} cells done" + (f", {failed} failed" if failed else "")
    config = _config(path)
    if is_in_use(path):
        return "running, " + (sweep if config is None and (path / "sweep").is_dir() else _stage(path, config))
    if config is None:
        if (path / "config.json").exists():
            return "damaged config.json"
        begun = any((path / name).is_dir() for name in ("cache", "experts", "distilled"))
        return sweep if cells else (_other_commands(path) or
                                    (f"stopped at {_stage(path, None)}" if begun else "never begun"))
    if not _is_finished(path):
        return f"stopped at {_stage(path, config)}"
    try:
        read_scores(path / SCORES, numbers=("r_mean",))
    except OlderVersionError:
        return "of an older version"
    except (OSError, ValueError):
        return f"damaged {SCORES}"
    return "finished"


def _other_commands(path: Path) -> str:
    """What commands without a config.json have done: "certified, fairness measured, 2 sets exported"."""
    done = [words if _is_as_written(path / name) else f"damaged {name}" for name, words in
            (("certificate.csv", "certified"), ("fairness.csv", "fairness measured")) if (path / name).exists()]
    exported = len(list(path.glob("export/*/card.json")))
    return ", ".join([*done, *[f"{plural(exported, 'set')} exported"] * (exported > 0)])


def _is_as_written(path: Path) -> bool:
    try:
        read_verified(path)
    except (OSError, DamagedError):
        return False
    return True


def _stage(path: Path, config: dict | None) -> str:
    """The first stage that is not complete, as far as file names tell; only keys would tell which config left them."""
    if config is None:
        return next((stage for stage, name in (("distill", "distilled"), ("experts", "experts"))
                     if (path / name).is_dir()), "prepare")
    begun = list(path.glob("experts/*.lock"))
    if not all((lock.with_suffix("") / "experts.json").exists() for lock in begun):
        return "experts"
    if any(not (place / "card.json").exists() for place in path.glob("distilled/*/set_*") if place.is_dir()):
        return "distill"
    summary = read_summary(path)
    presets = {name: preset_info(name, summary) for name in config["run"]["presets"]}
    if not begun and any(preset.needs_experts for preset in presets.values()):
        return "experts"
    finished = {name: len(list(path.glob(f"distilled/{glob.escape(safe_name(name))}-*/set_*/card.json")))
                for name in presets}
    if any(finished[name] < config["distill"]["sets"] for name, preset in presets.items()
           if preset.kind in ("distilled", "coreset") or (preset.kind is None and finished[name])):
        return "distill"
    if any(preset.kind is None and not finished[name] for name, preset in presets.items()):
        # Of a preset from outside this package only its code tells whether it has experts and sets.
        return "distill or later" if begun else "experts or later"
    return "evaluate"


def _is_finished(path: Path) -> bool:
    """Whether the scores are those of the config, which every command writes first.

    report.json says which config they belong to. Where it does not, they must be younger than config.json.
    """
    scores, config = path / SCORES, path / "config.json"
    if not scores.exists() or not config.exists():
        return False
    try:
        return read_verified_json(path / "report.json")["config"] == config_digest(read_verified_json(config))
    except (OSError, ValueError, KeyError):
        return scores.stat().st_mtime_ns >= config.stat().st_mtime_ns


def is_in_use(path: Path) -> bool:
    """Whether a process works in the directory (`mdw_jax.io.locks.hold_run_directory`)."""
    is_sweep = not (path / "config.json").exists() or (path / "sweep").is_dir()
    return is_locked(path / ".lock", shared_locks_exist=is_sweep)


def _config(path: Path) -> dict | None:
    """The config of a run; None if there is none, or another program's: everything that is read here is checked."""
    try:
        config = read_verified_json(path / "config.json")
        presets, rate, sets = config["run"]["presets"], config["noise"]["rate"], config["distill"]["sets"]
        names = (*presets, config["data"]["name"], config["noise"]["protocol"])
        is_run = (isinstance(presets, list) and isinstance(rate, (int, float)) and abs(rate) <= 1
                  and isinstance(sets, int) and all(isinstance(name, str) for name in names))
        return config if is_run else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _scores(path: Path) -> list[dict]:
    """The rows of scores.csv. Raises UserError if it is damaged."""
    try:
        return read_scores(path / SCORES, numbers=("r_mean",))
    except OlderVersionError as error:
        raise UserError(f"the run in '{path}' {error}.") from None
    except (OSError, ValueError):
        raise UserError(f"'{path / SCORES}' is damaged; run mdw evaluate again.") from None


def _by_preset(rows: Iterable[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["preset"], []).append(row)
    return groups


def _headline(rows: list[dict], summary: Mapping) -> str:
    """The score of mdw or, without it, the best among presets with sets. summary: report.json."""
    r_means = {name: [row["r_mean"] for row in own] for name, own in _by_preset(rows).items()
               if preset_info(name, summary).has_sets(own)}
    if not r_means:
        return "-"
    name = "mdw" if "mdw" in r_means else max(r_means, key=lambda name: np.mean(r_means[name]))
    optimistic = " (optimistic)" if any(row["select_on"] == "test" for row in rows if row["preset"] == name) else ""
    return f"{mean_text(r_means[name])} {name}{optimistic}"


def _last_touched(path: Path) -> datetime.datetime:
    files = [path / name for name in _TOUCHED if (path / name).exists()] or [path]
    return datetime.datetime.fromtimestamp(max(file.stat().st_mtime for file in files))


def _settings(path: Path) -> dict:
    """{dotted key: value} of the config and the environment of a run. Raises UserError if it is not one."""
    refuse_unusable_path(path)
    config = _config(path)
    if config is None:
        if not path.is_dir():
            raise UserError(f"there is no directory '{path}'; `mdw runs` lists the runs below one.")
        if (path / "config.json").exists() and is_run_lock(path / ".lock"):
            raise UserError(f"'{path / 'config.json'}' is damaged; give the command that made the run again.")
        refuse_sweep(path)
        reason = state(path) if is_run_lock(path / ".lock") else "no run"
        raise UserError(f"'{path}' holds no config of a run ({reason}); `mdw runs` lists the runs below a directory.")
    try:
        environment = read_verified_json(path / "environment.json")
    except DamagedError as error:
        raise UserError(f"'{path / 'environment.json'}' is damaged ({error}); run mdw evaluate again.") from None
    except (OSError, ValueError):
        environment = {}
    return flat({**config, "environment": environment})


def score_differences(a: list[dict], b: list[dict], summary: Mapping | None = None) -> list[dict[str, str]]:
    """Compare the scores of two runs.

    Args:
        a: rows of the first scores.csv.
        b: rows of the second.
        summary: what report.json says of their presets, for the labels of those from outside this package.

    Returns:
        One row per preset, as text: r_mean in both runs, and B - A with its 95 % interval. The interval is over
        distilled sets, the independent unit, where both runs have several, and otherwise over students, which does not
        say how much another set would differ; "-" where a run has a single student.
    """
    groups = _by_preset(a), _by_preset(b)
    return [_score_difference(preset, [group.get(preset, []) for group in groups], summary)
            for preset in dict.fromkeys((*groups[0], *groups[1]))]


def _score_difference(preset: str, both: list[list[dict]], summary: Mapping | None) -> dict[str, str]:
    """The row of one preset; both: its rows of scores.csv in the two runs."""
    info = preset_info(preset, summary)
    students = [[row["r_mean"] for row in rows] for rows in both]
    texts = [mean_text(values) if values else "-" for values in students]
    result = {"preset": info.label, "A": texts[0], "B": texts[1], "B - A": "-", "over": "-"}
    if all(both):
        by_set = [[float(np.mean([row["r_mean"] for row in rows if row["set"] == number]))
                   for number in dict.fromkeys(row["set"] for row in rows)] for rows in both]
        noun, values = "set", by_set
        if min(map(len, by_set)) == 1:
            noun, values = "student" if info.has_sets([*both[0], *both[1]]) else "network", students
        difference, low, high = welch(values[0], values[1])
        interval = "-" if math.isnan(low) else f"{low:+.2f}, {high:+.2f}"
        result |= {"B - A": f"{difference:+.2f} [{interval}]", "over": _two_counts(len(values[0]), len(values[1]), noun)}
    return result


def _two_counts(a: int, b: int, noun: str) -> str:
    """ "3 and 5 sets", "1 and 1 set", "1 set and 3 sets"."""
    first = f"{a}" if (a == 1) == (b == 1) else plural(a, noun)
    return f"{first} and {plural(b, noun)}"
