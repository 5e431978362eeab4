"""The report of one or several runs: one HTML page, made from the files in their directories alone.

A run directory is one that `mdw evaluate` finished: it has config.json, environment.json, scores.csv and report.json,
which says where its sets and experts lie. certificate.csv of `mdw certify` is shown if it exists.
"""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from mdw_jax.config.sections import differences, flat
from mdw_jax.errors import UserError
from mdw_jax.reporting import html
from mdw_jax.reporting.noise_text import estimate_in_words, noise_in_words
from mdw_jax.reporting.report_certificate import certificate
from mdw_jax.reporting.report_charts import distillation_charts, expert_charts
from mdw_jax.reporting.report_images import correspondence_entries, image_changes, pairs, pixel_weights
from mdw_jax.reporting.run_files import PresetResults, Run, open_runs
from mdw_jax.reporting.run_table import counts, footnotes, table
from mdw_jax.reporting.stats import half_interval_of_scores
from mdw_jax.reporting.text import bytes_text, plural, text

_NBSP = "\N{NO-BREAK SPACE}"
_Section = tuple[str, str, str]  # heading, one line that explains it, HTML


def report_command(directories: Sequence[str], out: str | None = None) -> None:
    """Write the report of these run directories to `out` (`<first>/report.html` by default) and print its path."""
    runs = open_runs(directories)
    path = Path(out) if out else runs[0].path / "report.html"
    try:
        size = write_report(runs, path)
    except OSError as error:
        raise UserError(f"cannot write '{path}' ({error.strerror}); choose another --out.") from None
    print(f"report: {path} ({size / 1e6:.1f} MB)")


def write_report(runs: Sequence[Run], path) -> int:
    """Write the report of one or several runs.

    Args:
        runs: the runs; with several, they are shown side by side.
        path: the HTML file.

    Returns:
        Its size in bytes.

    Raises:
        UserError: a file of a run is damaged.
    """
    title = _title(runs[0]) if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.label for run in runs)}"
    top = "".join(_tiles(run, heading=len(runs) > 1) for run in runs)
    return html.write_page(path, title, top, [*_score_sections(runs), *_set_sections(runs), *_training_sections(runs),
                                              *_detail_sections(runs)])


def _score_sections(runs: Sequence[Run]) -> list[_Section]:
    return [
        ("Results", "Recalls on test, in %, of students that are trained on the set alone; r_mean is the mean of the "
         "six, with its standard deviation over all students. 95 %: half the interval of that mean, over sets if there "
         "are several, otherwise over students."
         + "".join(f" {note}" for note in dict.fromkeys(note for run in runs for note in footnotes(run))),
         _results(runs)),
        ("What differs", "Config keys that are not the same in all runs.", _differences(runs)),
    ]


def _set_sections(runs: Sequence[Run]) -> list[_Section]:
    return [
        ("Distilled pairs", "Each learned image above the real training caption whose features are nearest to its "
         "learned text; coresets are real pairs.", _per_preset(runs, pairs)),
        ("How the images changed", "The first images of each set during distillation, starting with the real images; "
         "numbers are outer steps.", _per_preset(runs, image_changes)),
        ("Learned correspondence", "The largest off-diagonal entries of the correspondence P: an image, the text it "
         "has learned to match in addition, and its own text (by their nearest captions). Where the loss fits a softmax "
         "of P, the entries are those matching probabilities.",
         _per_preset(runs, correspondence_entries)),
        ("Where updates were strongest", "Grad-CAM pixel weights of the last refresh over the images, each on its own "
         "scale: bright pixels were changed most (correspondence-enhanced optimization).",
         _per_preset(runs, pixel_weights)),
    ]


def _training_sections(runs: Sequence[Run]) -> list[_Section]:
    return [
        ("Experts", "Validation r_mean by epoch, mean over networks; how the experts divided the pairs; and, where it is "
         "known which pairs are mismatched, how well.", _charts(expert_charts(runs))),
        ("Distillation", "The matching loss: the distance between a student of the set and the experts after the "
         "unroll, relative to the distance the experts moved (2, one for each branch, is an untrained student where "
         "branches count separately); the score on val at each checkpoint; the learned step sizes.",
         _charts(distillation_charts(runs))),
        ("Certificate", "The most that label noise can cost the experts, and what was measured.",
         html.folded([(run.label, certificate(run)) for run in runs])),
    ]


def _detail_sections(runs: Sequence[Run]) -> list[_Section]:
    budgets = [row for run in runs for row in _budget(run, several=len(runs) > 1)]
    candidates = [row for run in runs for row in _candidates(run, several=len(runs) > 1)]
    return [
        ("Candidates", "What the first set of each preset could have ended as, by mean r_mean on val of students of their "
         "own: the start, where nothing is distilled, and every checkpoint, each with P as learned and as its teachers see "
         "the pairs. The best one is the set.",
         html.html_table(candidates, "Candidates") if candidates else ""),
        ("Byte budget", "The size of each set, everything counted: images in 8 bits, texts and the parameters of P in "
         "half precision, step sizes in float32; the last column is the same size in real pairs.",
         html.html_table(budgets, "Byte budget")),
        ("Repeat it", "Everything that these numbers depend on.",
         html.folded([(run.label, _facts(run)) for run in runs]) + _configs(runs)),
    ]


def _title(run: Run) -> str:
    metadata, captions = run.main.metadata, run.summary["captions"]
    noisy = bool(metadata["noise"]["rate"])  # None: natural noise, of which nobody knows
    subject = (f"{plural(metadata['pairs'], 'pair')} from {captions}{' noisy ones' * noisy}" if run.main.has_sets else
               f"experts on {captions}{' noisy' * noisy} pairs")
    return f"{run.summary['data']}: {subject}"


def _tiles(run: Run, heading: bool) -> str:
    """The numbers that a reader wants first."""
    main, half = run.main, half_interval_of_scores(run.main.rows)
    spread = "" if half is None else f", ±{_NBSP}{half:.1f} (95{_NBSP}%)"
    tiles = [(_r_mean(main), f"r_mean of {main.label}{spread}")]
    others = {preset.name: preset for preset in run.presets if preset is not main}
    for name, words in (("random", "of as many random pairs"), ("experts", "of the experts themselves"),
                        ("full", "of experts on all data as it came")):
        if name in others:
            tiles.append((_r_mean(others[name]), words))
    if main.has_sets:
        budget, share = main.byte_budget, main.metadata["pairs"] / run.summary["captions"]
        tiles.append((plural(main.metadata["pairs"], "pair"), f"{bytes_text(budget['total'])}, for {share:.1%} of the "
                      f"{run.summary['captions']:,} training pairs"))
    tiles.append(_noise_tile(main.metadata["noise"]))
    return (f"<h2>{escape(run.label)}</h2>\n" * heading) + html.tiles(tiles) + "\n"


def _noise_tile(noise: dict) -> tuple[str, str]:
    """The share of mismatched pairs: as drawn, as estimated, or that it is not known."""
    if noise["rate"] is not None:
        return noise["label"], f"of the training pairs mismatched ({noise['protocol']})"
    estimate, words = noise.get("estimated"), estimate_in_words(noise.get("estimated"))
    if not words:
        return "natural", "noise of the data, of unknown rate"
    rate, _, interval = words.partition(" ")
    return rate, (f"of the training pairs mismatched as they came, estimated: {interval} "
                  f"({estimate['confidence']:.0%})".replace("%)", f"{_NBSP}%)"))


def _r_mean(preset: PresetResults) -> str:
    return f"{preset.scores.mean(0)[-1]:.1f} %"


def _results(runs: Sequence[Run]) -> str:
    rows = [{**({"run": run.label} if len(runs) > 1 else {}), **row, "of": counts(preset)}
            for run in runs for preset, row in zip(run.presets, table(run), strict=True)]
    columns = dict.fromkeys([*(name for name in ("run", "preset", "r_mean", "95 %") if name in rows[0]), *rows[0]])
    return html.html_table([{name: row[name].replace("+-", "±") for name in columns} for row in rows], "Results")


def _differences(runs: Sequence[Run]) -> str:
    return html.html_table([{"key": key, **{run.label: text(value) for run, value in zip(runs, values)}}
                            for key, *values in differences(*(flat(run.config) for run in runs))], "Config differences")


def _per_preset(runs: Sequence[Run], section: Callable[[PresetResults, bool], str]) -> str:
    """A section for every set of every run, folded; those of the main presets first, and open."""
    places = sorted(((run, preset) for run in runs for preset in run.presets_with_sets),
                    key=lambda place: place[1] is not place[0].main)
    return html.folded([(f"{run.label}: {preset.label}" if len(runs) > 1 else preset.label,
                         section(preset, preset is run.main)) for run, preset in places], opened=len(runs))


def _charts(charts: Sequence[str]) -> str:
    shown = [chart for chart in charts if chart]
    return f'<div class="charts">{"".join(shown)}</div>' if shown else ""


def _budget(run: Run, several: bool) -> list[dict]:
    rows = []
    for preset in run.presets_with_sets:
        budget, (distilled, _) = preset.byte_budget, preset.displayed_set
        rows.append({**({"run": run.label} if several else {}), "preset": preset.label,
                     "stored images": "x".join(map(str, distilled.images.shape[1:])),
                     **{name.replace("_", " "): bytes_text(budget[name])
                        for name in ("images", "texts", "correspondence", "step_sizes", "total")},
                     "pairs": f"{budget['pairs_equivalent']:.1f}"})
    return rows


def _candidates(run: Run, several: bool) -> list[dict]:
    """A row for each candidate of the first sets of a run."""
    rows = []
    for preset in run.presets_with_sets:
        best = preset.chosen_candidate
        rows += [{**({"run": run.label} if several else {}), "preset": preset.label, "outer step": row["step"],
                  "P": row["correspondence"], "tau": "" if row["tau"] is None else f"{row['tau']:g}",
                  "r_mean on val": f"{row['val_r_mean']:.2f}", "step size scale": f"{row['lr_scale']:g}",
                  "": "chosen" if row["val_r_mean"] == best["val_r_mean"] else ""} for row in preset.candidates]
    return rows


def _facts(run: Run) -> str:
    environment, summary = run.environment, run.summary
    restarts = {preset.label: max((row.get("restart", 0) for row in preset.metrics), default=0)
                for preset in run.presets_with_sets}
    return html.facts({
        "directory": run.path,
        "data": f"{summary['data']}, {summary['images']:,} images, {summary['captions']:,} captions, fingerprint "
                f"{summary['fingerprint'][:12]}",
        **({"how the data were read": " ".join(summary["source_notes"])} if summary.get("source_notes") else {}),
        "seed": run.config["run"]["seed"], "select_on": run.config["evaluate"]["select_on"],
        "commit": environment.get("commit"), "python": environment.get("python"),
        "devices": ", ".join(environment.get("devices", [])),
        "packages": ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items()
                              if version),
        **{f"restarts of {label}": count for label, count in restarts.items() if count},
        **{f"noise of {preset.name}": _noise(preset.metadata["noise"]) for preset in run.presets}})


def _noise(noise: dict) -> str:
    return f"{noise_in_words(noise)}, sha256 {noise['sha256'][:12]}"


def _configs(runs: Sequence[Run]) -> str:
    return "\n".join(
        f"<details><summary>Config{f' of {escape(run.label)}' if len(runs) > 1 else ''}</summary>\n"
        + html.facts({key: text(value) for key, value in flat(run.config).items()}) + "\n</details>" for run in runs)
