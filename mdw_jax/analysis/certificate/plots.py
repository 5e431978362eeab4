"""The figure of `mdw certify`: bounds and measurements by noise rate, memorization by epoch."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdw_jax.analysis.certificate.case import Case
from mdw_jax.analysis.certificate.rows import excess_bound, label
from mdw_jax.reporting.figures import save_png

LARGEST_BOUND = 3.0  # bounds above it are not drawn: they would press everything else to the axis


def draw_certificate(cases: Sequence[Case], rows: Sequence[dict], path) -> None:
    """Draw a PNG of three panels.

    Args:
        cases: everything measured.
        rows: of `rows.all_rows`.
        path: the file.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    risk, excess, memory = figure.subplots(1, 3)
    for n, recipe in enumerate(dict.fromkeys(row["recipe"] for row in rows)):
        case = next(case for case in cases if case.recipe_name == recipe)
        own = [row for row in rows if row["recipe"] == recipe and row["loss"] == label(case.trained_losses[0])
               and row["source"] in ("known", "given")]
        _draw_risk(risk, case, own, f"C{n}")
        _draw_excess(excess, case, own, f"C{n}")
    _draw_memory(memory, cases)
    risk.axhline(1, color="0.6", linewidth=1)
    risk.set(xlabel="eta", ylabel="loss, guessing = 1", title="Clean risk and its upper bound")
    excess.set(xlabel="eta", ylabel="loss", title="Excess clean risk and Proposition 3")
    memory.axhline(0, color="0.6", linewidth=1)
    memory.set(xlabel="epoch", ylabel="mismatched pairs memorized, %", title="Memorization")
    for axes in (risk, excess, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
    save_png(figure, path)


def _by_eta(rows: Sequence[dict], measure: str) -> list[dict]:
    return sorted((row for row in rows if row["measure"] == measure), key=lambda row: row["eta"])


def _draw_risk(axes: Axes, case: Case, rows: Sequence[dict], color: str) -> None:
    """Losses of several units on one axis: each as a share of the loss of guessing."""
    for measure, style in (("clean_risk", "-o"), ("upper_bound", "--^")):
        if points := _by_eta(rows, measure):
            axes.plot([row["eta"] for row in points],
                      [row["value"] / row["trivial"] if row["trivial"] else math.nan for row in points], style,
                      color=color, markersize=4, label=f"{_name(case)}: {measure.replace('_', ' ')}")


def _draw_excess(axes: Axes, case: Case, rows: Sequence[dict], color: str) -> None:
    points = _by_eta(rows, "excess")
    if not points:
        return
    axes.plot([row["eta"] for row in points], [row["value"] for row in points], "-o", color=color, markersize=4,
              label=f"{_name(case)}: measured")
    grid = np.linspace(0, max(row["eta"] for row in points) or 0.8, 60)
    bounds = [excess_bound(case.trained_losses[0], case, eta) for eta in grid]
    if None not in bounds and max(bounds) < LARGEST_BOUND:
        axes.plot(grid, bounds, "--", color=color, label=f"{_name(case)}: Proposition 3")


def _draw_memory(axes: Axes, cases: Sequence[Case]) -> None:
    for n, case in enumerate(cases):
        if case.memory:
            axes.plot(range(len(case.memory)), [100 * memory.share for memory in case.memory], "-o", color=f"C{n % 10}",
                      markersize=4, label=f"{case.recipe_name}, {case.preset.noise.label}")


def _name(case: Case) -> str:
    return f"{case.recipe_name}, {label(case.trained_losses[0])}"
