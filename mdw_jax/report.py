"""The end of a run: one table, a few pictures, one page."""

import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import jax.numpy as jnp

from mdw_jax import pictures, sound
from mdw_jax.correspondence import correspondence
from mdw_jax.distilled import load_distilled
from mdw_jax.evaluate import summary
from mdw_jax.page import markdown_table, write_page
from mdw_jax.prepare import Prepared
from mdw_jax.retrieval import METRICS
from mdw_jax.presets import DISTILLED, LABELS, WITHOUT_EXPERTS
from mdw_jax.stages import Preset, set_folder


SOUNDS = 2  # pairs of each distilled set of sounds that are written as WAV files too


def table(rows: list[dict], presets: list[Preset]) -> list[dict]:
    """One row a preset: mean of each metric over its students and sets; the spread of r_mean; the budget in bytes."""
    result = []
    for preset in presets:
        own = [row for row in rows if row["preset"] == preset.name]
        stats = summary([[row[name] for name in METRICS] for row in own])
        optimistic = " (peer protocol: optimistic)" if own[0]["protocol"] == "peer" else ""
        entry = {"preset": LABELS[preset.name] + optimistic, "noise": preset.noise.label}
        if preset.name in DISTILLED:
            card = json.loads((set_folder(preset, 0) / "card.json").read_text())
            entry |= {"pairs": str(preset.config.distill.pairs), "kB": f"{card['byte_budget']['total'] / 1e3:.0f}"}
        else:
            entry |= {"pairs": "all", "kB": "-"}
        entry |= {name: f"{stats[name]:.1f}" for name in METRICS[:-1]}
        entry["r_mean"] = f"{stats['r_mean']:.2f} +- {stats['r_mean_std']:.2f}"
        sets = len({row["set"] for row in own})
        entry["of"] = (f"{sets} sets x {len(own) // sets} students" if preset.name in DISTILLED
                       else f"{len(own)} networks")
        result.append(entry)
    return result


def markdown(rows: list[dict]) -> str:
    """The table as Markdown."""
    return markdown_table(rows)


def plain(rows: list[dict]) -> str:
    """The table for a terminal."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = ["  ".join(f"{name:<{widths[name]}}" for name in rows[0])]
    lines += ["  ".join(f"{row[name]:<{widths[name]}}" for name in row) for row in rows]
    return "\n".join(lines)


def page(folder: Path, config: ConfigDict, prepared: Prepared, presets: list[Preset], rows: list[dict],
         environment: dict) -> Path:
    """Pictures under `<run>/pictures` and one page, `<run>/index.html`. Returns the page's path."""
    shown = folder / "pictures"
    found = []
    experts = {preset.experts: preset for preset in presets if preset.name not in WITHOUT_EXPERTS}
    curves = {}
    for path, preset in experts.items():
        log = _lines(path / "log.jsonl")
        for generation in dict.fromkeys(row["generation"] for row in log):
            own = [row for row in log if row["generation"] == generation]
            epochs = sorted({row["epoch"] for row in own})
            name = f"{preset.config.experts.recipe} ({generation}), noise {preset.noise.label}"
            curves[name] = (epochs, [np.mean([r["val_r_mean"] for r in own if r["epoch"] == e]) for e in epochs])
    if curves:
        pictures.curves(curves, shown / "experts.png", "epoch", "val r_mean, %", "Experts")
        found.append((shown / "experts.png", "Validation r_mean of the experts by epoch, mean over networks"))
    matching = {}
    for preset in (preset for preset in presets if preset.name in DISTILLED):
        distilled, _ = load_distilled(set_folder(preset, 0))
        metrics = _lines(set_folder(preset, 0) / "metrics.jsonl")
        if metrics:
            matching[LABELS[preset.name]] = ([m["step"] for m in metrics], [m["loss"] for m in metrics])
        captions = pictures.nearest_captions(prepared.read(distilled.texts), prepared.texts.train,
                                             prepared.pairs.train.captions)
        grid = shown / f"{preset.name}.png"
        log_mel = prepared.pairs.log_mel
        pictures.image_grid(distilled.images[:30], captions[:30], grid, spectrogram=log_mel is not None)
        if log_mel is not None and sound.can_sound():  # beside the picture: the first pairs, to listen to
            for index, picture in enumerate(distilled.images[:SOUNDS]):
                sound.write_wav(shown / f"{preset.name}-{index}.wav", sound.griffin_lim(picture, log_mel), log_mel.rate)
        found.append((grid, f"{LABELS[preset.name]}: the first {min(30, len(captions))} pairs, each image above the "
                            "real training caption nearest to its text feature"))
        if distilled.correspondence:
            p = correspondence({k: jnp.asarray(v) for k, v in distilled.correspondence.items()},
                               jnp.arange(len(distilled.images)), distilled.alpha)
            pictures.heat_map(np.asarray(p), shown / f"{preset.name}-correspondence.png")
            found.append((shown / f"{preset.name}-correspondence.png",
                          f"{LABELS[preset.name]}: what the correspondence P learned beyond the identity"))
    if matching:
        pictures.curves(matching, shown / "matching.png", "outer step", "matching loss", "Distillation")
        found.append((shown / "matching.png", "Matching loss by outer step (2 is the untrained student)"
                      if config.distill.merge == "separate" else "Matching loss by outer step"))
    facts = {"data": f"{prepared.pairs.name}, fingerprint {prepared.fingerprint[:12]}", "seed": str(config.run.seed),
             "protocol": config.evaluate.protocol, "commit": str(environment["commit"]),
             **{f"noise of {preset.name}": f"{preset.noise.protocol}, {preset.noise.true_rate} mismatched, "
                f"sha256 {preset.noise.sha256[:12]}" for preset in presets},
             "versions": json.dumps(environment["packages"]), "config": json.dumps(config.to_dict(), indent=1)}
    write_page(folder / "index.html", f"{prepared.pairs.name}: {config.distill.pairs} pairs from "
               f"{len(prepared.pairs.train.captions)} noisy ones", rows, found, facts)
    return folder / "index.html"


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
