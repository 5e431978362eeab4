"""The page of one or several runs, made from what lies in their folders alone: neither data nor accelerator.

A run folder is one that `mdw evaluate` finished: config.json, environment.json, scores.csv and report.json, which says
where its sets and experts lie. Beside them, where it is there, certificate.csv of `mdw certify`.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mdw_jax.config.sections import differences, flat
from mdw_jax.errors import UserError
from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.retrieval import METRICS
from mdw_jax.reporting import figures, html, svg
from mdw_jax.reporting.run_files import EDGES, Part, Run, _csv, _image
from mdw_jax.reporting.stats import interval, summary
from mdw_jax.reporting.text import text

PAIRS, FEWER = 24, 12  # pairs shown of the main set of a run, and of each other
CHANGING, MATCHES, WEIGHED = 8, 9, 12  # images in strips over time; entries of P; maps of CEO
MEASURES = {"excess_bound_open": "cost of noise at most", "excess": "cost measured", "clean_risk": "clean risk",
            "upper_bound": "clean risk at most"}  # of certificate.csv, those of a page
_GLUE = "\N{NO-BREAK SPACE}"


# What a run notes down for its page


# A run, read back


# The table


def table(run: Run) -> list[dict]:
    """One row a preset: mean of each metric over its students and sets; spread and interval of r_mean; the budget."""
    result = []
    for part in run.parts:
        own, stats = run.of(part), summary(run.scores[part.name])
        optimistic = " (peer protocol: optimistic)" if own[0]["select_on"] == "test" else ""
        entry = {"preset": part.label + optimistic, "noise": part.said["noise"]["label"]}
        if part.distils:
            entry |= {"pairs": str(part.said["pairs"]), "kB": f"{part.set[1]['byte_budget']['total'] / 1e3:.0f}"}
        else:
            entry |= {"pairs": "all", "kB": "-"}
        entry |= {name: f"{stats[name]:.1f}" for name in METRICS[:-1]}
        entry["r_mean"] = f"{stats['r_mean']:.2f} +- {stats['r_mean_std']:.2f}"
        half = interval(own)
        entry["95 %"] = "-" if half is None else f"+- {half:.2f}"
        sets = len({row["set"] for row in own})
        entry["of"] = (f"{sets} sets x {len(own) // sets} students" if part.distils else f"{len(own)} networks")
        result.append(entry)
    return result


# The page


def report_command(folders: Sequence[str], out: str | None = None) -> None:
    """Make the page of these run folders (`<first>/report.html` unless `out`) and say where it is."""
    runs = open_runs(folders)
    path = Path(out) if out else runs[0].folder / "report.html"
    try:
        size = write_report(runs, path)
    except OSError as error:
        raise UserError(f"cannot write '{path}' ({error.strerror}); choose another --out.") from None
    print(f"page: {path} ({size / 1e6:.1f} MB)")


def open_runs(folders: Sequence[str]) -> list[Run]:
    """Runs with labels that tell them apart: the folders' names or, where two are the same, their paths."""
    paths = [Path(folder).resolve() for folder in folders]
    if twice := [folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1]:
        raise UserError(f"the run '{twice[-1]}' is given twice; give each once.")
    names = [path.name for path in paths]
    return [Run(folder, name if names.count(name) == 1 else str(folder))
            for folder, name in zip(folders, names, strict=True)]


def write_report(runs: Sequence[Run], path) -> int:
    """Write the page of one or several runs to `path`; returns its bytes. Raises UserError for damaged files."""
    title = _title(runs[0]) if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.label for run in runs)}"
    several = len(runs) > 1
    sections = [
        ("Results", "Recalls on test, in %, of students that see nothing but the set; r_mean is the mean of the six, "
         "with its standard deviation over all students. 95 %: half the interval of that mean, over sets where there "
         "are several, else over students.", _results(runs)),
        ("What differs", "Keys of the config that are not the same in all runs.", _differences(runs)),
        ("Distilled pairs", "Each learned image above the real training caption whose features are nearest to its "
         "learned text; coresets are real pairs.", _each(runs, _pairs)),
        ("How the images changed", "The first images of each set as distillation went on, from the real pictures that "
         "it began with; numbers are outer steps.", _each(runs, _changes)),
        ("Learned correspondence", "The strongest entries of the correspondence P off its diagonal: an image, the text "
         "that it learned to go with as well, and the one it came with (by their nearest captions).",
         _each(runs, _matches)),
        ("Where updates were strongest", "Grad-CAM weights of the last refresh over the images, each on its own scale: "
         "bright pixels were changed most (correspondence-enhanced optimization).", _each(runs, _weights)),
        ("Experts", "Validation r_mean by epoch, mean over networks; and how the division into clean and risky pairs "
         "fared against the truth, where that is known.", _charts(_expert_charts(runs))),
        ("Distillation", "The matching loss, how far from the experts a student of the set ends in units of the way "
         "they went (2, one for each branch, is an untrained student where branches count apart); the score on val at "
         "each checkpoint; the learned step sizes.", _charts(_distillation_charts(runs))),
        ("Certificate", "What label noise can cost the experts at most, beside what was measured.",
         html.folded([(run.label, _certificate(run)) for run in runs])),
        ("Byte budget", "What each set costs, everything counted in float32; the last column is the same in image-text "
         "pairs.", html.html_table([row for run in runs for row in _budget(run, several)], "Byte budget")),
        ("Repeat it", "Everything that made these numbers.",
         html.folded([(run.label, _facts(run)) for run in runs]) + _configs(runs)),
    ]
    return html.write_page(path, title, "".join(_tiles(run, several) for run in runs), sections)


def _title(run: Run) -> str:
    said, given = run.main.said, run.about["captions"]
    noisy = said["noise"]["rate"] != 0  # None: natural noise
    what = (f"{said['pairs']} pairs from {given}{' noisy ones' * noisy}" if run.main.distils else
            f"experts on {given}{' noisy' * noisy} pairs")
    return f"{run.about['data']}: {what}"


def _tiles(run: Run, several: bool) -> str:
    """The numbers that a reader wants first."""
    main, half = run.main, interval(run.of(run.main))
    mean = lambda part: float(np.mean(run.scores[part.name], 0)[-1])
    spread = "" if half is None else f", ±{_GLUE}{half:.1f} (95{_GLUE}%)"
    shown = [(f"{mean(main):.1f} %", f"r_mean of {main.label}{spread}")]
    others = {part.name: part for part in run.parts if part is not main}
    if "random" in others:
        shown.append((f"{mean(others['random']):.1f} %", "of as many random pairs"))
    for name, words in (("experts", "of the noisy experts"), ("full", "of experts on clean data")):
        if name in others:
            shown.append((f"{mean(others[name]):.1f} %", words))
    if main.distils:
        budget, share = main.set[1]["byte_budget"], main.said["pairs"] / run.about["captions"]
        shown.append((f"{main.said['pairs']} pairs", f"{_kilo(budget['total'])}, for {share:.1%} of the "
                      f"{run.about['captions']:,} given"))
    noise = main.said["noise"]
    shown.append((noise["label"], "noise as the data come" if noise["rate"] is None else
                  f"of the training pairs mismatched ({noise['protocol']})"))
    return (f"<h2>{escape(run.label)}</h2>\n" * several) + html.tiles(shown) + "\n"


def _results(runs: Sequence[Run]) -> str:
    rows = [{**({"run": run.label} if len(runs) > 1 else {}), **row} for run in runs for row in table(run)]
    columns = dict.fromkeys([*(name for name in ("run", "preset", "r_mean", "95 %") if name in rows[0]), *rows[0]])
    return html.html_table([{name: row[name].replace("+-", "±") for name in columns} for row in rows], "Results")


def _differences(runs: Sequence[Run]) -> str:
    return html.html_table([{"key": key, **{run.label: text(value) for run, value in zip(runs, values)}}
                            for key, *values in differences(*(flat(run.config) for run in runs))], "Config differences")


def _each(runs: Sequence[Run], show) -> str:
    """`show(run, part)` for every distilled preset of every run, folded; the main one of each run first, and open."""
    places = sorted(((run, part) for run in runs for part in run.distilled),
                    key=lambda place: place[1] is not place[0].main)
    return html.folded([(f"{run.label}: {part.label}" if len(runs) > 1 else part.label, show(run, part))
                        for run, part in places], opened=len(runs))


def _beside(images) -> np.ndarray:
    """Images (H, W, 3) in a row, with grey between them."""
    gap = np.full((len(images[0]), max(1, images[0].shape[1] // 32), 3), 128, np.uint8)
    parts = [part for picture in images for part in (picture, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _pairs(run: Run, part: Part) -> str:
    kind = "real" if part.coreset else "distilled"
    count = min(PAIRS if part is run.main else FEWER, len(part.captions))
    grid = html.figures((part.picture(n, f"{kind} image {n}; caption: {part.captions[n]}"), part.captions[n])
                        for n in range(count))
    return grid + f'<p class="soft">The first {count} of {len(part.captions)}.</p>' * (count < len(part.captions))


def _changes(run: Run, part: Part) -> str:
    if part.seen is None:
        return ""
    steps, images = part.seen["steps"].tolist(), part.seen["images"]
    shown = images[:, :CHANGING]
    colours = np.stack([figures.coloured(moment, part.spectrogram) for moment in shown])
    strips = []
    for n in range(colours.shape[1]):
        strip = _beside(colours[:, n])
        words = f"image {n} at outer steps {', '.join(map(str, steps))}; nearest caption at the end: {part.captions[n]}"
        strips.append(f"<li>{_image(strip, words, side=min(strip.shape[1], 74 * len(steps)))}</li>")
    change = np.abs(images.astype(np.float32) - images[0].astype(np.float32)).mean((1, 2, 3, 4)) / 255
    heads = "".join(f"<span>{'start' if step == 0 else step}</span>" for step in steps)
    foot = "".join(f"<span>{'' if step == 0 else f'{moved:.1%}'}</span>" for step, moved in zip(steps, change))
    scored = [row for row in part.metrics if "val_r_mean" in row]
    best = max(scored, key=lambda row: row["val_r_mean"], default=None)
    chosen = "" if best is None else (f" The set handed out is that of step {best['step'] + 1}, with "
                                      f"{best['val_r_mean']:.1f} % the best on val.")
    return (f'<ul class="strips"><li class="moments">{heads}</li>\n' + "\n".join(strips)
            + f'\n<li class="moments">{foot}</li></ul>\n<p class="soft">Below: mean change of a pixel since the start, '
            f"in % of the range from black to white.{chosen}</p>")


def _matches(run: Run, part: Part) -> str:
    distilled, _ = part.set
    if not distilled.correspondence:
        return ""
    p = np.asarray(correspondence({name: jnp.asarray(value) for name, value in distilled.correspondence.items()},
                                  jnp.arange(len(distilled.images)), distilled.alpha))
    off = np.where(np.eye(len(p), dtype=bool), -np.inf, p)
    order = np.argsort(-off, axis=None, kind="stable")
    shown = []
    for i, j in (divmod(int(place), len(p)) for place in order[: len(p) ** 2 - len(p)]):
        if len(shown) == MATCHES or off[i, j] <= 0:
            break
        shown.append(f"<li>{part.picture(i, f'distilled image {i}')}<div><strong>{p[i, j]:+.3f}</strong> "
                     f'<span class="soft">image {i}, text {j}</span><br>{escape(part.captions[j])}<br>'
                     f'<span class="soft">came with ({p[i, i]:+.3f}): {escape(part.captions[i])}</span></div></li>\n')
    change = np.abs(p - np.eye(len(p)))
    heat = html.image(figures.data_uri(figures.difference(p), 400, photo=False),
                      f"Heat map of the change of P from the identity, {len(p)} images by {len(p)} texts", small=True)
    words = (f"All of P beyond the identity, images down, texts across: red is more, blue less, the strongest colour "
             f"{change.max():.3f}, the mean change {change.mean():.4f}.")
    return (f'<ul class="matches">{"".join(shown)}</ul>\n' * bool(shown)
            + f'<figure class="heat">{heat}<figcaption>{words}</figcaption></figure>')


def _weights(run: Run, part: Part) -> str:
    if part.seen is None or "weights" not in part.seen:
        return ""
    images, weights = part.seen["images"][-1][:WEIGHED], part.seen["weights"][:WEIGHED].astype(np.float32)
    colours = figures.coloured(images, part.spectrogram)
    over = figures.heated(colours, weights[:, ::-1] if part.spectrogram else weights)
    return html.figures(
        ((_image(_beside([colours[n], over[n]]), f"image {n} and its weights; caption: "
                 f"{part.captions[n]}", side=192), f"weights {weights[n].min():.2f} to {weights[n].max():.2f}")
         for n in range(len(colours))), "pairs two")


def _charts(found: Sequence[str]) -> str:
    shown = [chart for chart in found if chart]
    return f'<div class="charts">{"".join(shown)}</div>' if shown else ""


def _experts(run: Run) -> list[tuple[str, Part]]:
    """Every folder of experts once: what tells it from the run's others (recipe, presets), and one of its presets."""
    folders: dict[str, list[Part]] = {}
    for part in run.parts:
        if part.experts:
            folders.setdefault(part.said["experts"], []).append(part)
    recipes = [parts[0].said["recipe"] for parts in folders.values()]
    return [(recipe if recipes.count(recipe) == 1 else f"{recipe} of {' and '.join(part.name for part in parts)}",
             parts[0]) for recipe, parts in zip(recipes, folders.values(), strict=True)]


def _expert_charts(runs: Sequence[Run]) -> list[str]:
    curves, precision, recall, histograms = {}, {}, {}, {}
    for run in runs:
        before = f"{run.label}: " if len(runs) > 1 else ""
        for experts, part in _experts(run):
            log, noise = part.experts["log"], part.said["noise"]["label"]
            for generation in dict.fromkeys(row["generation"] for row in log):
                own = [row for row in log if row["generation"] == generation]
                which = "" if generation == "experts" else f" ({generation})"
                name = f"{before}{experts}{which}, noise {noise}"
                curves[name] = _by_epoch(own, "val_r_mean")
                if any("precision" in row for row in own):
                    precision[name], recall[name] = _by_epoch(own, "precision"), _by_epoch(own, "recall")
            counts = part.said["division"]
            if any(sum(values[:-1]) for values in counts.values()):  # all ones: nothing was divided
                histograms[f"{before}{experts}"] = {
                    side: [value / max(sum(values), 1) for value in values] for side, values in counts.items()}
    return [svg.lines(curves, "epoch", "val r_mean, %", "Experts"),
            svg.lines(precision, "epoch", "precision", "Share of the pairs called clean that are"),
            svg.lines(recall, "epoch", "recall", "Share of the clean pairs that are called so"),
            *(svg.bars(groups, EDGES, "probability of being clean", "share of pairs",
                          f"Last division: {name}") for name, groups in histograms.items())]


def _by_epoch(rows: Sequence[dict], key: str) -> tuple[list, list]:
    rows = [row for row in rows if key in row]
    epochs = sorted({row["epoch"] for row in rows})
    return epochs, [float(np.mean([row[key] for row in rows if row["epoch"] == epoch])) for epoch in epochs]


def _distillation_charts(runs: Sequence[Run]) -> list[str]:
    loss, val, sizes = {}, {}, {}
    for run in runs:
        for part in run.distilled:
            rows = part.metrics
            if not rows:
                continue
            name = f"{run.label}: {part.label}" if len(runs) > 1 else part.label
            steps = [row["step"] + 1 for row in rows]
            loss[name] = _thinned(steps, [row["loss"] for row in rows])
            scored = [row for row in rows if "val_r_mean" in row]
            val[name] = [row["step"] + 1 for row in scored], [row["val_r_mean"] for row in scored]
            for branch in ("image", "text"):
                sizes[f"{name}, {branch}"] = _thinned(steps, [row[f"step_{branch}"] for row in rows])
    return [svg.lines(loss, "outer step", "in units of the experts' way", "Matching loss"),
            svg.lines(val, "outer step", "val r_mean, %", "The set so far"),
            svg.lines(sizes, "outer step", "learned", "Step sizes of the student")]


def _thinned(x: list, y: list, most: int = 250) -> tuple[list, list]:
    """At most so many points of a long line: means over equally long stretches."""
    by = -(-len(x) // most)
    stretches = range(0, len(x), by)
    return [float(np.mean(x[k:k + by])) for k in stretches], [float(np.mean(y[k:k + by])) for k in stretches]


def _certificate(run: Run) -> str:
    path, picture = run.folder / "certificate.csv", run.folder / "pictures" / "certificate.png"
    if path.exists():
        main, others = _certified(path)
        shown = ""
        if picture.exists():
            uri = figures.file_uri(picture)
            shown = '<figure class="picture">' + html.image(
                uri, "Bounds and measurements by noise rate, and what was learned by heart by epoch") + "</figure>"
        return (shown + html.html_table(main, "Certificate, for the experts' own loss") + '<p class="soft">In units of '
                "each loss. Clean risk: the loss on truly paired val images; at most: as far as noisy ones can tell.</p>"
                + "<details><summary>Measured by other losses</summary>\n"
                f"{html.html_table(others, 'Certificate, other losses')}</details>" * bool(others))
    rows = []
    for experts, part in _experts(run):
        inputs = part.experts["certificate_inputs"]
        for track, entry in (inputs or {"tracks": {}})["tracks"].items():
            rows.append({"experts": experts, "track": track, "loss": f"{entry['loss']} {entry['q']:g}",
                         "noise": f"{inputs['eta']:.1%}", "cost of noise at most": f"{entry['excess_risk_bound']:.3g}"})
    return html.html_table(rows, "Certificate") + (
        '<p class="soft">Bounds alone, in units of the loss: <code>mdw certify</code> with the config of this run '
        "measures what noise did, and this page, made again, shows it.</p>")


def _certified(path: Path) -> tuple[list[dict], list[dict]]:
    """Of certificate.csv one row for experts, noise rate and loss: of the loss they learned by, and of the others."""
    found, own = {}, {}
    try:
        for row in _csv(path):
            experts = row["preset"], f"{float(row['eta']):.0%} ({row['source']})"
            if row["measure"] in MEASURES:
                own.setdefault(experts, row["loss"])  # their own comes first
                entry = found.setdefault((*experts, row["loss"]), {})
                entry[MEASURES[row["measure"]]] = f"{float(row['value']):.3g}"
                entry |= {"guessing": f"{float(row['trivial']):.3g}"} if row["trivial"] else {}
    except (KeyError, ValueError, TypeError):
        raise UserError(f"'{path}' is damaged; give mdw certify again.") from None
    rows = {key: {**dict(zip(("preset", "noise", "loss"), key, strict=True)),
                  **{name: entry.get(name) for name in (*MEASURES.values(), "guessing")}}
            for key, entry in found.items()}
    first = [row for key, row in rows.items() if own[key[:2]] == key[2]]
    return first, [row for key, row in rows.items() if own[key[:2]] != key[2]]


def _budget(run: Run, several: bool) -> list[dict]:
    rows = []
    for part in run.distilled:
        budget = part.set[1]["byte_budget"]
        rows.append({**({"run": run.label} if several else {}), "preset": part.label,
                     **{name.replace("_", " "): _kilo(budget[name])
                        for name in ("images", "texts", "correspondence", "step_sizes", "total")},
                     "pairs": f"{budget['pairs_equivalent']:.1f}"})
    return rows


def _kilo(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB" if count >= 1000 else f"{count} B"


def _facts(run: Run) -> str:
    environment = run.environment
    restarts = {part.label: max((row.get("restart", 0) for row in part.metrics), default=0) for part in run.distilled}
    return html.facts({
        "folder": run.folder, "data": f"{run.about['data']}, {run.about['images']:,} images, "
        f"{run.about['captions']:,} captions, fingerprint {run.about['fingerprint'][:12]}",
        "seed": run.config["run"]["seed"], "select_on": run.config["evaluate"]["select_on"],
        "commit": environment.get("commit"), "python": environment.get("python"),
        "devices": ", ".join(environment.get("devices", [])),
        "packages": ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items()
                              if version),
        **{f"restarts of {label}": count for label, count in restarts.items() if count},
        **{f"noise of {part.name}": f"{part.said['noise']['protocol']}, {part.said['noise']['label']}, sha256 "
           f"{part.said['noise']['sha256'][:12]}" for part in run.parts}})


def _configs(runs: Sequence[Run]) -> str:
    return "\n".join(
        f"<details><summary>Config{f' of {escape(run.label)}' if len(runs) > 1 else ''}</summary>\n"
        + html.facts({key: text(value) for key, value in flat(run.config).items()}) + "\n</details>" for run in runs)
