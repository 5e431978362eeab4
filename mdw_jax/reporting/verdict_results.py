"""What the verdict on a run is made from: the scores of its presets, and the few facts that change what they mean."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mdw_jax.config.presets import PRESETS
from mdw_jax.io.scores import RANKS
from mdw_jax.reporting.run_files import PresetResults, Run


class Row(NamedTuple):
    """One preset of a run.

    Attributes:
        name: of the preset.
        label: its name in tables.
        kind: "distilled", "coreset" or "reference".
        scores: r_mean on test in %, for each set those of its students; of a reference, one group of networks.
        size: bytes of a set; None for a reference.
        at_edge: what was best at the end of its range: "steps", "lr_scale".
        on_test: whether students were selected on test, so that the scores are optimistic.
        learned: whether outer steps were taken; False for real pairs, prototypes and references.
        needs_experts: whether experts are trained for it; None where that is not known.
        on_val: mean r_mean on val, in %; None where it is not known.
    """

    name: str
    label: str
    kind: str
    scores: tuple[tuple[float, ...], ...]
    size: float | None = None
    at_edge: frozenset[str] = frozenset()
    on_test: bool = False
    learned: bool = False
    needs_experts: bool | None = True
    on_val: float | None = None

    @property
    def students(self) -> list[float]:
        """The scores of all students of all sets."""
        return [score for scores in self.scores for score in scores]

    @property
    def mean(self) -> float:
        """Mean r_mean over all students, as in the table."""
        return sum(self.students) / len(self.students)


class Results(NamedTuple):
    """The results of a run that its verdict reads.

    Attributes:
        main: the row that the verdict is about.
        others: all other rows.
        pairs: in one set of the main row.
        captions: training pairs.
        noise: of the main row, as in report.json.
        candidates: of the main row's first set (`Candidate` of the pipeline, as dicts); () where there are none.
        val_images, test_images, test_captions: sizes of these splits; None where the run does not say.
        image_side: pixels per side of stored square images; None for others.
        held_out: whether val or test were held out of the same pairs as train.
        untried: what may help where the experts end below the closed form (`without_closed_form`).
    """

    main: Row
    others: tuple[Row, ...]
    pairs: int
    captions: int
    noise: Mapping
    candidates: tuple[Mapping, ...] = ()
    val_images: int | None = None
    test_images: int | None = None
    test_captions: int | None = None
    image_side: int | None = None
    held_out: bool = False
    untried: tuple[str, ...] = ()


def results_of(run: Run) -> Results:
    """The results of a finished run. Raises UserError where a file of it is damaged."""
    main, splits = run.main, run.summary.get("splits", {})
    side = None
    if main.has_sets:
        shape = main.displayed_set[0].images.shape[1:]
        side = int(shape[0]) if len(shape) == 3 and shape[0] == shape[1] else None
    return Results(
        _row(main), tuple(_row(preset) for preset in run.presets if preset is not main), main.metadata["pairs"],
        run.summary["captions"], main.metadata["noise"], tuple(main.candidates) if main.has_sets else (),
        splits.get("val", {}).get("images"), splits.get("test", {}).get("images"),
        splits.get("test", {}).get("captions"), side,
        any(_setting(run.config, "data", f"holdout_{split}") for split in ("val", "test")), without_closed_form(run.config))


def without_closed_form(config: Mapping) -> tuple[str, ...]:
    """Settings by which a closed form is used for more, and are not set; each in words.

    Args:
        config: a resolved config, as nested dicts; of an earlier version sections or keys may be missing.
    """
    found = []
    if _setting(config, "experts", "init") == "random" and _setting(config, "model", "mode") == "projection" and (
            not _setting(config, "text", "train")):
        both = "" if _setting(config, "experts", "closed_form") else "experts.closed_form=true "  # without, it is refused
        found.append(f"{both}experts.init=closed_form starts the experts from it")
    if _setting(config, "distill", "correspondence_teacher") in ("experts", "matched"):
        found.append("distill.correspondence_teacher=closed_form has P from it")
    return tuple(found)


def _setting(config: Mapping, section: str, key: str):
    settings = config.get(section)
    return settings.get(key) if isinstance(settings, dict) else None


def _row(preset: PresetResults) -> Row:
    by_set: dict[int, list[float]] = {}
    for row in preset.rows:
        by_set.setdefault(row["set"], []).append(row["r_mean"])
    spec = PRESETS.get(preset.name)
    return Row(
        preset.name, preset.label, preset.kind, tuple(map(tuple, by_set.values())),
        preset.byte_budget["total"] if preset.has_sets else None,
        frozenset(name for row in preset.rows for name in (row.get("at_edge") or "").split()),
        any(row["select_on"] == "test" for row in preset.rows),
        preset.kind == "distilled" and not (spec and spec.overrides.get("distill.steps") == 0),
        spec.needs_experts if spec else "experts" in preset.metadata, _mean_on_val(preset.rows))


def _mean_on_val(rows: Sequence[Mapping]) -> float | None:
    values = [row.get("val_r_mean") for row in rows]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def guessing(images: int, captions: int) -> float:
    """r_mean of a random order, in %.

    Args:
        images: candidates for a caption, one of which is right.
        captions: candidates for an image; captions / images of them are right (rounded, at least one).
    """
    right = max(round(captions / images), 1)
    image_recalls = [min(k / images, 1) for k in RANKS]
    text_recalls = [1 - math.comb(captions - right, k) / math.comb(captions, k) if captions >= k else 1 for k in RANKS]
    return 100 * (sum(image_recalls) + sum(text_recalls)) / (2 * len(RANKS))
