"""The table of a run: one row per preset."""

from mdw_jax.io.scores import METRICS
from mdw_jax.reporting.run_files import PresetResults, Run
from mdw_jax.reporting.stats import half_interval_of_scores, summary


def table(run: Run) -> list[dict[str, str]]:
    """The rows of a run's table.

    Returns:
        For each preset: the mean of each metric over its students and sets, standard deviation and half the 95 %
        interval of r_mean, and the size of its sets.
    """
    return [_row(preset) for preset in run.presets]


def _row(preset: PresetResults) -> dict[str, str]:
    stats = summary(preset.scores)
    optimistic = " (selected on test: optimistic)" if preset.rows[0]["select_on"] == "test" else ""
    row = {"preset": preset.label + optimistic, "noise": preset.metadata["noise"]["label"]}
    if preset.has_sets:
        row |= {"pairs": str(preset.metadata["pairs"]), "kB": f"{preset.set[1]['byte_budget']['total'] / 1e3:.0f}"}
    else:
        row |= {"pairs": "all", "kB": "-"}
    row |= {name: f"{stats[name]:.1f}" for name in METRICS[:-1]}
    row["r_mean"] = f"{stats['r_mean']:.2f} +- {stats['r_mean_std']:.2f}"
    half = half_interval_of_scores(preset.rows)
    row["95 %"] = "-" if half is None else f"+- {half:.2f}"
    sets, count = len({row["set"] for row in preset.rows}), len(preset.rows)
    row["of"] = f"{sets} sets x {count // sets} students" if preset.has_sets else f"{count} networks"
    return row
