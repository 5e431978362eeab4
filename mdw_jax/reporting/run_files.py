"""A finished run directory, read back. Imports neither jax nor matplotlib."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mdw_jax.config.sections import config_digest, refuse_sweep
from mdw_jax.errors import UserError
from mdw_jax.io import image_history
from mdw_jax.io.distilled_set import DistilledSet, load_distilled, read_captions
from mdw_jax.io.files import read_json, read_json_lines
from mdw_jax.io.locate import wrong_level
from mdw_jax.io.scores import METRICS, SCORES, read_scores
from mdw_jax.reporting.preset_info import spec_by_name

SUMMARY = "report.json"  # which config the scores belong to, and where the sets and experts of a run lie
DIVISION_EDGES = [k / 10 for k in range(11)]  # of the histogram of clean probabilities in it


class PresetResults:
    """The results of one preset of a run; files are read when an attribute is first used.

    Attributes:
        run_directory: the run directory.
        metadata: what report.json says of the preset.
        name: its name in the config.
        label: its name in tables.
        kind: "distilled", "coreset" or "reference" (see `mdw_jax.config.presets.PresetSpec`).
        rows: its rows of scores.csv, one per student.
    """

    def __init__(self, run_directory: Path, metadata: dict, rows: list[dict]):
        self.run_directory, self.metadata, self.rows = run_directory, metadata, rows
        self.name: str = metadata["name"]
        self.label: str = metadata.get("label") or spec_by_name(self.name).label
        self.kind: str = metadata.get("kind") or spec_by_name(self.name).kind
        self.has_sets = bool(metadata["sets"])

    @property
    def scores(self) -> np.ndarray:
        """(students, 7) test scores in the order of `METRICS`, in %."""
        return np.array([[row[name] for name in METRICS] for row in self.rows])

    @property
    def set_directories(self) -> list[Path]:
        """The directories of its distilled sets."""
        return [self.run_directory / place for place in self.metadata["sets"]]

    @cached_property
    def set(self) -> tuple[DistilledSet, dict]:
        """The first distilled set and its card."""
        return load_distilled(self.set_directories[0])

    @cached_property
    def captions(self) -> list[str]:
        """For each text of the first set, the nearest real caption."""
        captions = read_captions(self.set_directories[0], self.set[1]["sha256"])
        return captions or ["(nearest caption unknown)"] * len(self.set[0].images)

    @cached_property
    def is_spectrogram(self) -> bool:
        """Whether the images of its sets are log-mel spectrograms."""
        return bool(self.set[1].get("log_mel"))

    @cached_property
    def metrics(self) -> list[dict]:
        """The metrics of each outer step of the first set."""
        return _lines(self.set_directories[0] / "metrics.jsonl")

    @cached_property
    def image_history(self) -> dict[str, np.ndarray] | None:
        """How the first images of the first set changed (`mdw_jax.io.image_history`); None for coresets."""
        return image_history.load(self.set_directories[0])

    @cached_property
    def experts(self) -> dict | None:
        """The record of its experts, with their log; None if it has none."""
        if "experts" not in self.metadata:
            return None
        directory = self.run_directory / self.metadata["experts"]
        return {**_json(directory / "experts.json"), "log": _lines(directory / "log.jsonl")}


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
    """

    def __init__(self, path, label: str = ""):
        """Read the small files of the run. Raises UserError where `path` is not a finished run directory."""
        self.path = Path(path)
        self.label = label or self.path.name
        _check_directory(self.path)
        self.config: dict = _json(self.path / "config.json")
        self.environment: dict = _json(self.path / "environment.json")
        self.summary: dict = _json(self.path / SUMMARY)
        self.presets = self._read_presets()
        order = [preset for preset in self.presets if preset.has_sets and preset.kind != "coreset"] or self.presets
        self.main = next((preset for preset in order if preset.name == "mdw"), order[0])

    def _read_presets(self) -> list[PresetResults]:
        try:
            rows = read_scores(self.path / SCORES, numbers=METRICS)
            presets = [PresetResults(self.path, metadata, [row for row in rows if row["preset"] == metadata["name"]])
                       for metadata in self.summary["presets"]]
            if not presets or not all(preset.rows for preset in presets):
                raise ValueError("presets without scores")
            digest = config_digest(self.config)
        except OSError as error:
            raise UserError(f"'{self.path / SCORES}' cannot be read ({error}); run the command again.") from None
        except (KeyError, TypeError, ValueError):
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
    names = ("config.json", "environment.json", SCORES, SUMMARY)
    missing = [name for name in names if not (path / name).exists()]
    if not missing:
        return
    if not path.exists():
        raise UserError(f"there is no run directory '{path}'; check the path.")
    if "config.json" in missing:
        refuse_sweep(path)
        raise UserError(wrong_level(path, "run") or f"'{path}' is not a run directory (it has no config.json); give "
                        "the directory of a finished run.")
    raise UserError(f"the run in '{path}' is not finished ({missing[0]} is missing); run its mdw run or mdw evaluate "
                    "again: finished stages are not repeated.")


def _json(path: Path) -> dict:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); run its command again.") from None


def _lines(path: Path) -> list[dict]:
    try:
        return read_json_lines(path)
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); run its command again.") from None
