"""The table of a run: one row per preset."""

from mdw_jax.io.scores import METRICS
from mdw_jax.reporting.noise_text import natural_noise
from mdw_jax.reporting.run_files import PresetResults, Run
from mdw_jax.reporting.stats import half_interval_of_scores, mean_text, summary
from mdw_jax.reporting.text import AT_EDGE, AT_EDGE_MEANS, plural

HARD_TARGETS = "r_mean, hard targets"  # heading of the column `hard_r_mean`
_HARD_TARGETS_MEAN = (f"{HARD_TARGETS}: of students of the same images and texts that learn from neither P nor the "
                      "learned step sizes, with InfoNCE; chosen in the same way.")
UNDRAWN_PRESETS = ("full", "closed_form_full")
BEFORE_NOISE = ("Before noise was drawn: on the same training pairs, without the mismatches that this run made on purpose; "
                "the other rows have them.")


def table(run: Run) -> list[dict[str, str]]:
    """The rows of a run's table.

    Returns:
        For each preset: the mean of each metric over its students and sets, standard deviation and half the 95 %
        interval of r_mean, the size of its sets, and `of`, which has the same words for any number, so that tables of
        different runs can be compared by text (`counts` is for people).
    """
    return [_row(preset) for preset in run.presets]


def _row(preset: PresetResults) -> dict[str, str]:
    stats = summary(preset.scores)
    optimistic = " (selected on test: optimistic)" if preset.rows[0]["select_on"] == "test" else ""
    row = {"preset": preset.label + optimistic, "noise": preset.metadata["noise"]["label"]}
    if preset.has_sets:
        row |= {"pairs": str(preset.metadata["pairs"]), "kB": f"{preset.byte_budget['total'] / 1e3:.1f}"}
    else:
        row |= {"pairs": "all", "kB": "-"}
    row |= {name: f"{stats[name]:.1f}" for name in METRICS[:-1]}
    row["r_mean"] = f"{stats['r_mean']:.2f}" + (f" +- {stats['r_mean_std']:.2f}" if len(preset.rows) > 1 else "")
    if any(row.get("at_edge") for row in preset.rows):
        row["r_mean"] += f" {AT_EDGE}"
    half = half_interval_of_scores(preset.rows)
    row["95 %"] = "-" if half is None else f"+- {half:.2f}"
    if "hard_r_mean" in preset.rows[0]:
        row[HARD_TARGETS] = _mean_of_hard_targets(preset)
    sets, count = len({row["set"] for row in preset.rows}), len(preset.rows)
    row["of"] = f"{sets} sets x {count // sets} students" if preset.has_sets else f"{count} networks"
    return row


def footnotes(run: Run) -> list[str]:
    """A sentence on each mark and column of the table that needs one, and on natural noise."""
    rows = [row for preset in run.presets for row in preset.rows]
    notes = {AT_EDGE_MEANS: any(row.get("at_edge") for row in rows),
             _HARD_TARGETS_MEAN: any("hard_r_mean" in row for row in rows)}
    notes[BEFORE_NOISE] = any(preset.name in UNDRAWN_PRESETS for preset in run.presets) and any(
        preset.metadata["noise"]["rate"] for preset in run.presets)
    unchanged = [preset.label for preset in run.presets_with_sets
                 if preset.metrics and preset.chosen_candidate and preset.chosen_candidate["step"] == 0]
    if unchanged:
        notes[f"{', '.join(unchanged)}: val chose the start of the first set over all that was distilled from it."] = True
    noises = [preset.metadata["noise"] for preset in run.presets]
    natural = dict.fromkeys(natural_noise(noise) for noise in noises if noise["rate"] is None)
    return [*natural, *(note for note, holds in notes.items() if holds)]


def _mean_of_hard_targets(preset: PresetResults) -> str:
    values = [row["hard_r_mean"] for row in preset.rows if row["hard_r_mean"] is not None]
    return mean_text(values) if values else "-"


def counts(preset: PresetResults) -> str:
    """What a preset's scores are computed over: "1 set x 5 students", "4 networks"."""
    if not preset.has_sets:
        return plural(len(preset.rows), "network")
    sets = len({row["set"] for row in preset.rows})
    return f"{plural(sets, 'set')} x {plural(len(preset.rows) // sets, 'student')}"
