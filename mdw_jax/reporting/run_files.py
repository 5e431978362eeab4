"""A finished run folder, read back."""

import csv
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mdw_jax.config.presets import CORESETS, LABELS
from mdw_jax.config.sections import config_digest, refuse_sweep
from mdw_jax.errors import UserError
from mdw_jax.io import image_history
from mdw_jax.io.distilled_set import DistilledSet, load_distilled, read_captions
from mdw_jax.method.retrieval import METRICS
from mdw_jax.reporting import figures, html

ABOUT, SCORES = "report.json", "scores.csv"


class Part:
    """One preset of a run, with what its folders hold; files are read when they are asked for."""

    def __init__(self, folder: Path, said: dict):
        self.folder, self.said = folder, said
        self.name, self.label = said["name"], LABELS.get(said["name"], said["name"])
        self.distils = bool(said["sets"])
        self.coreset = self.name in CORESETS

    @cached_property
    def set(self) -> tuple[DistilledSet, dict]:
        """The first set and its card."""
        return load_distilled(self.folder / self.said["sets"][0])

    @cached_property
    def captions(self) -> list[str]:
        found = read_captions(self.folder / self.said["sets"][0], self.set[1]["sha256"])
        return found or ["(nearest caption unknown)"] * len(self.set[0].images)

    @cached_property
    def spectrogram(self) -> bool:
        return bool(self.set[1].get("log_mel"))

    @cached_property
    def metrics(self) -> list[dict]:
        return _lines(self.folder / self.said["sets"][0] / "metrics.jsonl")

    @cached_property
    def seen(self) -> dict | None:
        return image_history.load(self.folder / self.said["sets"][0])

    @cached_property
    def experts(self) -> dict | None:
        """The record of the experts, with their log; None where there are none."""
        if "experts" not in self.said:
            return None
        path = self.folder / self.said["experts"]
        return {**_json(path / "experts.json"), "log": _lines(path / "log.jsonl")}

    @cached_property
    def colours(self) -> np.ndarray:
        return figures.coloured(self.set[0].images, self.spectrogram)

    def picture(self, index: int, alternative: str) -> str:
        return _image(self.colours[index], alternative)


class Run:
    """A finished run folder. label: its name on a page of several. Raises UserError for what is no finished run."""

    def __init__(self, folder, label: str = ""):
        self.folder = Path(folder)
        self.label = label or self.folder.name
        if not self.folder.is_dir():
            raise UserError(f"there is no run folder '{folder}'; check the path.")
        if not (self.folder / "config.json").exists():
            refuse_sweep(self.folder)
        missing = [name for name in ("config.json", "environment.json", SCORES, ABOUT)
                   if not (self.folder / name).exists()]
        if "config.json" in missing:
            raise UserError(f"'{folder}' is no run folder (it has no config.json); give the folder of a finished run.")
        if missing:
            raise UserError(f"the run in '{folder}' has no scores for a page yet ({missing[0]} is missing); give its "
                            "mdw run or mdw evaluate again: what is done is not done twice.")
        self.config = _json(self.folder / "config.json")
        self.environment = _json(self.folder / "environment.json")
        self.about = _json(self.folder / ABOUT)
        self.rows = _csv(self.folder / SCORES)
        try:
            self.parts = [Part(self.folder, said) for said in self.about["presets"]]
            self.scores = {part.name: [[float(row[name]) for name in METRICS] for row in self.of(part)]
                           for part in self.parts}
            if not self.parts or not all(self.scores.values()):
                raise ValueError("presets without scores")
            of_this = config_digest(self.config)
            if self.about.get("config", of_this) != of_this:
                raise UserError(f"the scores in '{folder}' are of another config than its config.json; give mdw "
                                "evaluate with the config that you mean: what is done is not done twice.")
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{SCORES} and {ABOUT} in '{folder}' do not fit together or are damaged; give mdw evaluate "
                            "again.") from None
        # What the page leads with: the method, else whatever else is distilled, else anything.
        order = [part for part in self.parts if part.distils and not part.coreset] or self.parts
        self.main = next((part for part in order if part.name == "mdw"), order[0])

    def of(self, part: Part) -> list[dict]:
        return [row for row in self.rows if row["preset"] == part.name]

    @property
    def distilled(self) -> list[Part]:
        """Presets that end in a small set, the main one first."""
        return sorted((part for part in self.parts if part.distils), key=lambda part: part is not self.main)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); give the run's command again.") from None


def _csv(path: Path) -> list[dict]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"'{path}' cannot be read ({error}); give the run's command again.") from None


def _lines(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); give the run's command again.") from None


def _image(picture, alternative: str, side: int = 112) -> str:
    return html.image(figures.data_uri(picture, side), alternative, small=min(picture.shape[:2]) < 96)

EDGES = [k / 10 for k in range(11)]  # of the histogram of clean probabilities
