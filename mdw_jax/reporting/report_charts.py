"""Charts of a report: the training of the experts, and the distillation."""

from collections.abc import Sequence

import numpy as np

from mdw_jax.reporting import svg
from mdw_jax.reporting.run_files import DIVISION_EDGES, PresetResults, Run

MAX_POINTS = 250  # of a line


def distinct_experts(run: Run) -> list[tuple[str, PresetResults]]:
    """Every directory of experts once: a label (the recipe, and presets where recipes repeat), and one of its presets.
    """
    directories: dict[str, list[PresetResults]] = {}
    for preset in run.presets:
        if preset.experts:
            directories.setdefault(preset.metadata["experts"], []).append(preset)
    recipes = [presets[0].metadata["recipe"] for presets in directories.values()]
    return [(recipe if recipes.count(recipe) == 1 else
             f"{recipe} of {' and '.join(preset.name for preset in presets)}", presets[0])
            for recipe, presets in zip(recipes, directories.values(), strict=True)]


def expert_charts(runs: Sequence[Run]) -> list[str]:
    """Validation score, precision and recall of the division by epoch; histograms of the last division."""
    scores, precision, recall, histograms = {}, {}, {}, {}
    for run in runs:
        prefix = f"{run.label}: " if len(runs) > 1 else ""
        for experts, preset in distinct_experts(run):
            log, noise = (preset.experts or {})["log"], preset.metadata["noise"]["label"]
            for generation in dict.fromkeys(row["generation"] for row in log):
                rows = [row for row in log if row["generation"] == generation]
                name = f"{prefix}{experts}{'' if generation == 'experts' else f' ({generation})'}, noise {noise}"
                scores[name] = _by_epoch(rows, "val_r_mean")
                if any("precision" in row for row in rows):
                    precision[name], recall[name] = _by_epoch(rows, "precision"), _by_epoch(rows, "recall")
            counts = preset.metadata["division"]
            if any(sum(values[:-1]) for values in counts.values()):  # all ones: nothing was divided
                histograms[f"{prefix}{experts}"] = {
                    group: [value / max(sum(values), 1) for value in values] for group, values in counts.items()}
    return [svg.lines(scores, "epoch", "val r_mean, %", "Experts"),
            svg.lines(precision, "epoch", "precision", "Share of truly clean pairs among those called clean"),
            svg.lines(recall, "epoch", "recall", "Share of the clean pairs that are called clean"),
            *(svg.bars(groups, DIVISION_EDGES, "probability of being correctly paired", "share of pairs",
                       f"Last division: {name}") for name, groups in histograms.items())]


def _by_epoch(rows: Sequence[dict], key: str) -> tuple[list[int], list[float]]:
    """Epochs, and the mean of `key` over networks in each."""
    rows = [row for row in rows if key in row]
    epochs = sorted({row["epoch"] for row in rows})
    return epochs, [float(np.mean([row[key] for row in rows if row["epoch"] == epoch])) for epoch in epochs]


def distillation_charts(runs: Sequence[Run]) -> list[str]:
    """Matching loss, validation score and learned step sizes by outer step."""
    loss, val, sizes = {}, {}, {}
    for run in runs:
        for preset in run.presets_with_sets:
            rows = preset.metrics
            if not rows:
                continue
            name = f"{run.label}: {preset.label}" if len(runs) > 1 else preset.label
            steps = [row["step"] + 1 for row in rows]
            loss[name] = _thinned(steps, [row["loss"] for row in rows])
            scored = [row for row in rows if "val_r_mean" in row]
            val[name] = [row["step"] + 1 for row in scored], [row["val_r_mean"] for row in scored]
            for branch in ("image", "text"):
                sizes[f"{name}, {branch}"] = _thinned(steps, [row[f"inner_lr_{branch}"] for row in rows])
    return [svg.lines(loss, "outer step", "relative to the experts' movement", "Matching loss"),
            svg.lines(val, "outer step", "val r_mean, %", "The set so far"),
            svg.lines(sizes, "outer step", "learned", "Step sizes of the student")]


def _thinned(x: list, y: list) -> tuple[list[float], list[float]]:
    """A line with at most `MAX_POINTS` points: means over equally long stretches."""
    length = -(-len(x) // MAX_POINTS)
    starts = range(0, len(x), length)
    return [float(np.mean(x[k:k + length])) for k in starts], [float(np.mean(y[k:k + length])) for k in starts]
