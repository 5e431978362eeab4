"""A finished run directory, read back. Imports neither jax nor matplotlib."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mdw_jax.config.sections import config_digest, refuse_sweep
from mdw_jax.errors import UserError
from mdw_jax.io import image_history
from mdw_jax.io.checksums import DamagedError, read_verified, read_verified_json
from mdw_jax.io.contained import all_inside, inside
from mdw_jax.io.distilled_set import (
    NEAREST,
    DistilledSet,
    byte_budget,
    load_distilled,
    load_for_display,
    read_captions,
)
from mdw_jax.io.files import MAX_JSON_BYTES, parse_json_lines
from mdw_jax.io.locate import refuse_unusable_path, wrong_level
from mdw_jax.io.scores import METRICS, SCORES, OlderVersionError, read_scores
from mdw_jax.reporting import run_schema
from mdw_jax.reporting.preset_info import SUMMARY, preset_info
from mdw_jax.reporting.run_schema import DIVISION_EDGES
from mdw_jax.reporting.text import plural

_LOG = logging.getLogger(__name__)
_NEEDED = ("preset", "set", "student", "select_on")
_COUNTS = ("set", "student", "steps", "bytes")  # columns of scores.csv that hold whole numbers
_ROUNDING = 1e-4  # of float32, by which a mean of recalls may be above 100 %
_TEXTS = ("preset", "select_on", "at_edge")
__all__ = ["DIVISION_EDGES", "SUMMARY", "PresetResults", "Run", "open_run", "open_runs"]


class PresetResults:
    """The results of one preset of a run; files are read when an attribute is first used.

    Attributes:
        run_directory: the run directory.
        metadata: what report.json says of the preset.
        name: its name in the config.
        label: its name in tables.
        kind: "distilled", "coreset" or "reference" (see `mdw_jax.config.presets.PresetSpec`).
        has_sets: whether it ends in a small set.
        rows: its rows of scores.csv, one per student (of references, per network): preset and select_on as text, set,
            student and steps as int, all other columns as float; None where a cell is empty.
    """

    def __init__(self, run_directory: Path, metadata: dict, rows: list[dict]):
        self.run_directory, self.metadata, self.rows = run_directory, metadata, rows
        self.name: str = metadata["name"]
        self.has_sets = bool(metadata["sets"])
        info = preset_info(self.name)
        self.label: str = metadata.get("label") or info.label
        self.kind: str = metadata.get("kind") or info.kind or ("distilled" if self.has_sets else "reference")

    @property
    def scores(self) -> np.ndarray:
        """(students, 7) test scores in the order of `METRICS`, in %."""
        return np.array([[row[name] for name in METRICS] for row in self.rows])

    def __repr__(self) -> str:
        sets = f"{plural(len(self.metadata['sets']), 'set')}, " * self.has_sets
        scored = plural(len(self.rows), "student" if self.has_sets else "network")
        return f"PresetResults('{self.name}': {sets}{scored}, test r_mean {self.scores[:, -1].mean():.2f})"

    @property
    def set_directories(self) -> list[Path]:
        """The directories of its distilled sets. Raises UserError where one, or a file of one, lies outside the run."""
        return [all_inside(self.run_directory, place) for place in self.metadata["sets"]]

    @property
    def trajectory_directories(self) -> list[Path]:
        """The directories of its experts' trajectories, one for each network; [] for a preset without experts."""
        if "experts" not in self.metadata:
            return []
        directory = all_inside(self.run_directory, self.metadata["experts"])
        networks = _json(directory / "experts.json", run_schema.EXPERTS_SCHEMA)["networks"]
        return [all_inside(self.run_directory, directory.relative_to(self.run_directory) / f"net_{n:02d}")
                for n in range(networks)]

    @cached_property
    def set(self) -> tuple[DistilledSet, dict]:
        """The first distilled set and its card; not of a loss from outside the package, see `load_distilled`."""
        return load_distilled(self.set_directories[0])

    @cached_property
    def displayed_set(self) -> tuple[DistilledSet, dict]:
        """The first distilled set and its card, to be shown: with any loss, and no student may be trained on it."""
        distilled, card = load_for_display(self.set_directories[0])
        try:
            run_schema.check(card, run_schema.CARD_SCHEMA)
        except ValueError as error:
            raise UserError(f"the card of the distilled set in '{self.set_directories[0]}' is damaged ({error}); run "
                            "mdw evaluate again.") from None
        return distilled, card

    @property
    def candidates(self) -> list[dict]:
        """The candidates of the first set that val chose from; [] where its card has no record of them."""
        return self.displayed_set[1].get("candidates", [])

    @property
    def chosen_candidate(self) -> dict | None:
        """The one with the best score on val, which the set is."""
        return max(self.candidates, key=lambda row: row["val_r_mean"], default=None)

    @cached_property
    def byte_budget(self) -> dict[str, float]:
        """The size of the first set. It is counted here: cards of earlier versions count other precisions."""
        return byte_budget(self.displayed_set[0])

    @cached_property
    def captions(self) -> list[str]:
        """For each text of the first set, the nearest real caption."""
        distilled, card = self.displayed_set
        try:
            captions, count = read_captions(self.set_directories[0], card["sha256"]), len(distilled.images)
        except DamagedError as error:
            raise UserError(f"'{self.set_directories[0] / NEAREST}' is damaged ({error}); delete it, and mdw evaluate "
                            "makes it again.") from None
        known = (isinstance(captions, list) and len(captions) == count
                 and all(isinstance(caption, str) for caption in captions))
        return captions if captions and known else ["(nearest caption unknown)"] * count

    @cached_property
    def is_spectrogram(self) -> bool:
        """Whether the images of its sets are log-mel spectrograms."""
        return bool(self.displayed_set[1].get("log_mel"))

    @cached_property
    def metrics(self) -> list[dict]:
        """The metrics of each outer step of the first set."""
        return _lines(self.set_directories[0] / "metrics.jsonl", run_schema.METRICS_SCHEMA)

    @cached_property
    def image_history(self) -> dict[str, np.ndarray] | None:
        """How the first images of the first set changed (`mdw_jax.io.image_history`); None for coresets."""
        return image_history.load(self.set_directories[0])

    @cached_property
    def experts(self) -> dict | None:
        """The record of its experts, with their log; None if it has none."""
        if "experts" not in self.metadata:
            return None
        directory = all_inside(self.run_directory, self.metadata["experts"])
        return {**_json(directory / "experts.json", run_schema.EXPERTS_SCHEMA),
                "log": _lines(directory / "log.jsonl", run_schema.LOG_SCHEMA)}


class Run:
    """A finished run directory.

    Attributes:
        path: the directory.
        label: its name where several runs are shown.
        config: the config, as nested dicts.
        environment: versions, devices and the commit it was made with.
        summary: report.json.
        presets: the results of each preset.
        main: the preset that a report leads with: mdw, otherwise a distilled preset, otherwise the first one.

    `run["mdw"]` is the results of one preset, `"mdw" in run` says whether there is one, and a loop goes over the names.
    """

    def __init__(self, path, label: str = ""):
        """Read the small files of the run. Raises UserError where `path` is not a finished run directory."""
        self.path = Path(path)
        self.label = label or self.path.name
        _check_directory(self.path)
        self.config: dict = _json(self.path / "config.json")
        self.environment: dict = _json(self.path / "environment.json", run_schema.ENVIRONMENT_SCHEMA)
        self.summary: dict = _json(self.path / SUMMARY)
        self.presets = self._read_presets()
        order = [preset for preset in self.presets if preset.has_sets and preset.kind != "coreset"] or self.presets
        self.main = next((preset for preset in order if preset.name == "mdw"), order[0])

    def _read_presets(self) -> list[PresetResults]:
        try:
            rows = [_typed(row) for row in read_scores(self.path / SCORES, _NEEDED, METRICS)]
            run_schema.check(self.summary, run_schema.SUMMARY_SCHEMA)
            run_schema.check(self.config, run_schema.CONFIG_SCHEMA)
            presets = [PresetResults(self.path, metadata, [row for row in rows if row["preset"] == metadata["name"]])
                       for metadata in self.summary["presets"]]
            if not presets or not all(preset.rows for preset in presets):
                raise ValueError("presets without scores")
            digest = config_digest(self.config)
        except OSError as error:
            raise UserError(f"'{self.path / SCORES}' cannot be read ({error}); run the command again.") from None
        except OlderVersionError as error:
            raise UserError(f"the run in '{self.path}' {error}.") from None
        except DamagedError as error:
            raise UserError(f"'{self.path / SCORES}' is damaged ({error}); run mdw evaluate again.") from None
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UserError(f"{SCORES} and {SUMMARY} in '{self.path}' do not fit together or are damaged; run mdw "
                            "evaluate again.") from None
        if self.summary.get("config", digest) != digest:
            raise UserError(f"the scores in '{self.path}' are of another config than its config.json; run mdw evaluate "
                            "with the config that you mean: finished stages are not repeated.")
        return presets

    @property
    def presets_with_sets(self) -> list[PresetResults]:
        """Presets that end in a small set, the main one first."""
        return sorted((preset for preset in self.presets if preset.has_sets),
                      key=lambda preset: preset is not self.main)

    def __getitem__(self, name: str) -> PresetResults:
        """The results of the preset of this name."""
        for preset in self.presets:
            if preset.name == name:
                return preset
        raise UserError(f"the run '{self.path}' has no preset {name!r}; it has {', '.join(self)}.")

    def __contains__(self, name) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the presets."""
        return (preset.name for preset in self.presets)

    def __repr__(self) -> str:
        scores = ", ".join(f"{preset.name} {preset.scores[:, -1].mean():.2f}" for preset in self.presets)
        return f"Run('{self.path}': test r_mean {scores})"


def open_run(path) -> Run:
    """Open a finished run directory.

    Args:
        path: the run.dir of a run that `mdw run` or `mdw evaluate` finished.

    Raises:
        UserError: it is not a finished run directory; for a path one level too high or too low, the message names the
            right one.
    """
    return Run(path)


def open_runs(paths: Sequence) -> list[Run]:
    """Open several runs, with labels that tell them apart: their names, or their paths where two names are equal."""
    resolved = [Path(path).resolve() for path in paths]
    repeated = [path for path, place in zip(paths, resolved, strict=True) if resolved.count(place) > 1]
    if repeated:
        raise UserError(f"the run '{repeated[-1]}' is given twice; give each once.")
    names = [place.name for place in resolved]
    return [Run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names, strict=True)]


def _check_directory(path: Path) -> None:
    """Raises UserError for a path that is not a finished run directory."""
    refuse_unusable_path(path)
    names = ("config.json", "environment.json", SCORES, SUMMARY)
    missing = [name for name in names if not (path / name).exists()]
    if not missing:
        for name in (*names, "metrics.csv", "certificate.csv"):
            inside(path, name)
        return
    if not path.exists():
        raise UserError(f"there is no run directory '{path}'; check the path.")
    if "config.json" in missing:
        refuse_sweep(path)
        raise UserError(wrong_level(path, "run") or f"'{path}' is not a run directory (it has no config.json); give "
                        "the directory of a finished run.")
    raise UserError(f"the run in '{path}' is not finished ({missing[0]} is missing); run its mdw run or mdw evaluate "
                    "again: finished stages are not repeated.")


def _typed(row: dict) -> dict:
    """A row of scores.csv with its numbers as numbers. Raises ValueError for cells that are none, and impossible scores."""
    if not all(0 <= row[name] <= 100 + _ROUNDING for name in METRICS):
        raise ValueError("a score is not between 0 and 100 %")
    return {name: cell if name in _TEXTS or isinstance(cell, float) else None if cell == "" else
            int(cell) if name in _COUNTS else float(cell) for name, cell in row.items()}


def _json(path: Path, schema: run_schema.Schema | None = None) -> dict:
    return _checked(path, read_verified_json, schema)


def _lines(path: Path, schema: run_schema.Schema) -> list[dict]:
    """The rows of curves; [] where their file was deleted, which costs a report the curves alone, and is said."""
    if not path.exists():
        _LOG.warning("'%s' is missing: its curves are left out.", path)
        return []
    return _checked(path, lambda file: parse_json_lines(read_verified(file, MAX_JSON_BYTES)), schema)


def _checked(path: Path, read: Callable, schema: run_schema.Schema | None):
    """What `read` makes of a file. Raises UserError where it cannot be read or has not this schema."""
    try:
        value = read(path)
    except DamagedError as error:
        remedy = ("and the report leaves its curves out" if path.suffix == ".jsonl" else
                  "and give the command that wrote it again")
        raise UserError(f"'{path}' is damaged ({error}); delete it, {remedy}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); run its command again.") from None
    try:
        if schema is not None:
            run_schema.check(value, schema)
    except ValueError as error:
        raise UserError(f"'{path}' is damaged ({error}); run its command again.") from None
    return value
