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
from mdw_jax.reporting.page_file import keep_other, mark
from mdw_jax.reporting.report_certificate import certificate
from mdw_jax.reporting.report_charts import distillation_charts, expert_charts
from mdw_jax.reporting.report_images import (
    MAIN_BYTES,
    OTHER_BYTES,
    correspondence_entries,
    image_changes,
    pairs,
    pixel_weights,
)
from mdw_jax.reporting.run_files import PresetResults, Run, open_runs
from mdw_jax.reporting.run_table import counts, footnotes, table
from mdw_jax.reporting.stats import half_interval_of_scores
from mdw_jax.reporting.text import bytes_text, plural, text
from mdw_jax.reporting.verdict import verdict_of

_NBSP = "\N{NO-BREAK SPACE}"
_WORDS = {
    "R@k, r_mean": "Recall: the share of queries whose match is among the first k results, in %. IR@k searches images by "
                   "a caption, TR@k captions by an image; r_mean is the mean of the six.",
    "set, student": "A set is a few pairs that are learned (distilled) or chosen from the training data. A student is a "
                    "fresh network that is trained on the set alone: its score is what the set is worth.",
    "experts": "Networks trained on all the training pairs. Distillation learns pairs on which a student moves as they "
               "did.",
    "P": "The correspondence of a set: how strongly image i and text j of it belong together. Identity: each image with "
         "its own text only.",
    "val, test": "Val chooses every setting; test is read once, for the scores.",
    "95 %": "An interval that holds the mean of ever more sets (or students) in 19 of 20 such runs. A difference counts "
            "where its interval leaves out 0. Points are percentage points of r_mean.",
}


def report_command(directories: Sequence[str], out: str | None = None, serve: bool = False,
                   port: int | None = None) -> None:
    """Write the report of these run directories to `out` (`<first>/report.html` by default) and print its path.

    Args:
        directories: run directories.
        out: the HTML file.
        serve: follow one run live, in a browser, and write nothing.
        port: of the page that is served.
    """
    if serve:
        from mdw_jax.reporting.serve import serve_command  # here, because a report does without a server

        serve_command(directories, out, port)
        return
    if port is not None:
        raise UserError("--port is of a page that is served; add --serve.")
    runs = open_runs(directories)
    path = Path(out) if out else runs[0].path / "report.html"
    try:
        size = write_report(runs, path, ours=not out)
    except OSError as error:
        raise UserError(f"cannot write '{path}' ({error.strerror}); choose another --out.") from None
    print(f"report: {path} ({size / 1e6:.1f} MB)")


def write_report(runs: Sequence[Run], path, ours: bool = True) -> int:
    """Write the report of one or several runs.

    Args:
        runs: the runs; with several, they are shown side by side.
        path: the HTML file. A page of other runs, or of presets that these lack, is not overwritten but renamed, which
            is printed.
        ours: whether another file at that path, which is no page, may be renamed too; otherwise it is refused.

    Returns:
        Its size in bytes.

    Raises:
        UserError: a file of a run is damaged, or at `path` is a file that is no page.
    """
    path = Path(path)
    text = report_page(runs)
    if kept := keep_other(path, mark(runs), ours):
        print(f"kept:   {kept} (a page of another config, or of more presets, was at {path.name})")
    return html.write_page(path, text)


def report_page(runs: Sequence[Run], script: str = "") -> str:
    """The report as HTML. script: of a page that is served (`html.page`)."""
    title = _title(runs[0]) if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.label for run in runs)}"
    top = "".join(_top(run, heading=len(runs) > 1) for run in runs)
    sections = [*_score_sections(runs), *_set_sections(runs), *_training_sections(runs), *_detail_sections(runs)]
    return html.page(title, top, sections, mark=mark(runs), script=script)


def _top(run: Run, heading: bool) -> str:
    """The verdict and the numbers that a reader wants first."""
    return (f"<h2>{escape(run.label)}</h2>\n" * heading
            + '<div class="verdict">' + html.paragraphs(verdict_of(run)) + "</div>\n"
            + _tiles(run) + "\n")


def _score_sections(runs: Sequence[Run]) -> list[html.Section]:
    return [
        html.Section("Results", "Recalls on test, in %, of students: networks that are trained on the set alone.",
                     _results(runs), folded=False),
        html.Section("What differs", "Config keys that are not the same in all runs.", _differences(runs), folded=False),
    ]


def _set_sections(runs: Sequence[Run]) -> list[html.Section]:
    return [
        html.Section("Distilled pairs", "Each learned image above the real training caption whose features are nearest to "
                     "its learned text; coresets are real pairs.", _pairs(runs), folded=False),
        html.Section("How the images changed", "The first images of each set during distillation, starting with the real "
                     "images; numbers are outer steps (updates of the set).", _per_preset(runs, image_changes)),
        html.Section("Learned correspondence", "The largest off-diagonal entries of the correspondence P: an image, the "
                     "text it has learned to match in addition, and its own text (by their nearest captions). Where the "
                     "loss fits a softmax of P, the entries are those matching probabilities.",
                     _per_preset(runs, correspondence_entries)),
        html.Section("Where updates were strongest", "Grad-CAM pixel weights of the last refresh over the images, each on "
                     "its own scale: bright pixels were changed most (correspondence-enhanced optimization).",
                     _per_preset(runs, pixel_weights)),
    ]


def _training_sections(runs: Sequence[Run]) -> list[html.Section]:
    return [
        html.Section("Experts", "Validation r_mean by epoch, mean over networks; how the experts divided the pairs; and, "
                     "where it is known which pairs are mismatched, how well.", _charts(expert_charts(runs))),
        html.Section("Distillation", "The matching loss: the distance between a student of the set and the experts after "
                     "the unroll, relative to the distance the experts moved (2, one for each branch, is an untrained "
                     "student where branches count separately); the score on val at each checkpoint; the learned step "
                     "sizes.", _charts(distillation_charts(runs))),
        html.Section("Certificate", "The most that label noise can cost the experts, and what was measured.",
                     html.folded([(run.label, certificate(run)) for run in runs])),
    ]


def _detail_sections(runs: Sequence[Run]) -> list[html.Section]:
    budgets = [row for run in runs for row in _budget(run, several=len(runs) > 1)]
    candidates = [row for run in runs for row in _candidates(run, several=len(runs) > 1)]
    return [
        html.Section("Candidates", "What the first set of each preset could have ended as, by mean r_mean on val of "
                     "students of their own: the start, where nothing is distilled, and every checkpoint, each with P as "
                     "learned and as its teachers see the pairs. The best one is the set.",
                     html.html_table(candidates, "Candidates") if candidates else ""),
        html.Section("Byte budget", "The size of each set, everything counted: images in 8 bits, texts and the parameters "
                     "of P in half precision, step sizes in float32; the last column is the same size in real pairs.",
                     html.html_table(budgets, "Byte budget")),
        html.Section("Repeat it", "Everything that these numbers depend on.",
                     html.folded([(run.label, _facts(run)) for run in runs]) + _configs(runs)),
        html.Section("Words used here", "In the order in which they are met.",
                     html.facts(_WORDS).replace("<dl>", '<dl class="words">')),
    ]


def _title(run: Run) -> str:
    metadata, captions = run.main.metadata, run.summary["captions"]
    noisy = bool(metadata["noise"]["rate"])  # None: natural noise, of which nobody knows
    subject = (f"{plural(metadata['pairs'], 'pair')} from {captions}{' noisy ones' * noisy}" if run.main.has_sets else
               f"experts on {captions}{' noisy' * noisy} pairs")
    return f"{run.summary['data']}: {subject}"


def _tiles(run: Run) -> str:
    """The numbers that a reader wants first."""
    main, half = run.main, half_interval_of_scores(run.main.rows)
    spread = "" if half is None else f", ±{_NBSP}{half:.1f} (95{_NBSP}%)"
    tiles = [(_r_mean(main), f"r_mean of {main.label}{spread}")]
    others = {preset.name: preset for preset in run.presets if preset is not main}
    for name, words in (("random", "of as many random pairs"),
                        ("experts", "of the experts themselves, networks trained on all the pairs"),
                        ("full", "of InfoNCE experts on all pairs, before noise was drawn")):
        if name in others:
            tiles.append((_r_mean(others[name]), words))
    if main.has_sets:
        budget, share = main.byte_budget, main.metadata["pairs"] / run.summary["captions"]
        tiles.append((plural(main.metadata["pairs"], "pair"), f"{bytes_text(budget['total'])}, for {share:.1%} of the "
                      f"{run.summary['captions']:,} training pairs"))
    tiles.append(_noise_tile(main.metadata["noise"]))
    return html.tiles(tiles)


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
    notes = ["IR@k: the share of captions whose image is among the first k found; TR@k: of images, one of whose captions "
             "is. r_mean: the mean of the six, with its standard deviation over students.",
             "95 %: half the interval of r_mean, over sets if there are several, otherwise over students.",
             *dict.fromkeys(note for run in runs for note in footnotes(run))]
    return (html.html_table([{name: row[name].replace("+-", "±") for name in columns} for row in rows], "Results")
            + html.unfolding("Notes on this table", html.paragraphs(notes, "soft")))


def _differences(runs: Sequence[Run]) -> str:
    return html.html_table([{"key": key, **{run.label: text(value) for run, value in zip(runs, values)}}
                            for key, *values in differences(*(flat(run.config) for run in runs))], "Config differences")


def _pairs(runs: Sequence[Run]) -> str:
    """All pairs of every set of every run."""
    main = [place for place in _places(runs) if place[1] is place[0].main]
    others = [place for place in _places(runs) if place not in main]
    shown = html.folded([(_place_label(runs, run, preset), pairs(preset, MAIN_BYTES / len(runs))) for run, preset in main],
                        opened=len(runs))
    more = [html.unfolding(_place_label(runs, run, preset), pairs(preset, OTHER_BYTES / len(others)))
            for run, preset in others]
    return shown + html.unfolding(f"Pairs of {plural(len(more), 'other set')}", "\n".join(more))


def _per_preset(runs: Sequence[Run], section: Callable[[PresetResults], str]) -> str:
    """A section for every set of every run, folded; those of the main presets first, and open."""
    return html.folded([(_place_label(runs, run, preset), section(preset)) for run, preset in _places(runs)],
                       opened=len(runs))


def _places(runs: Sequence[Run]) -> list[tuple[Run, PresetResults]]:
    """Every preset with sets of every run, the main ones first."""
    return sorted(((run, preset) for run in runs for preset in run.presets_with_sets),
                  key=lambda place: place[1] is not place[0].main)


def _place_label(runs: Sequence[Run], run: Run, preset: PresetResults) -> str:
    return f"{run.label}: {preset.label}" if len(runs) > 1 else preset.label


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
    return "\n".join(html.unfolding(f"Config{f' of {run.label}' if len(runs) > 1 else ''}",
                                    html.facts({key: text(value) for key, value in flat(run.config).items()}))
                     for run in runs)
