"""What a run writes for its report: report.json, and WAV files of sets of spectrograms."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mdw_jax.config.presets import safe_name
from mdw_jax.config.sections import config_digest
from mdw_jax.config.stored import CONFIG
from mdw_jax.io.checksums import write_listed_json
from mdw_jax.io.distilled_set import load_for_display
from mdw_jax.io.files import read_json
from mdw_jax.io.records import complete
from mdw_jax.pipeline.inputs import source_notes
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun, read_division
from mdw_jax.pipeline.sets import set_folder
from mdw_jax.reporting import audio
from mdw_jax.reporting.run_files import DIVISION_EDGES, SUMMARY

AUDIO_PAIRS = 2  # pairs of each set of spectrograms that are written as WAV files too


def write_run_summary(directory: Path, prepared: Prepared, runs: Sequence[PresetRun],
                      earlier: Sequence[dict] = ()) -> None:
    """Write report.json: which config the scores belong to, where sets and experts lie, and facts about the data.

    Args:
        directory: the run directory, with the config that the scores belong to.
        prepared: its data.
        runs: its presets.
        earlier: entries of presets that an earlier command scored.
    """
    train, estimates = prepared.pairs.train, noise_estimates(runs)
    write_listed_json(directory / SUMMARY, {
        "config": config_digest(read_json(directory / CONFIG)), "data": prepared.pairs.name,
        "fingerprint": prepared.fingerprint, "key": prepared.key,
        "images": len(train.images), "captions": len(train.captions), "skipped": dict(prepared.pairs.skipped),
        "source_notes": source_notes(prepared.pairs),
        "splits": {name: {"images": len(split.images), "captions": len(split.captions)}
                   for name, split in (("val", prepared.pairs.val), ("test", prepared.pairs.test))},
        "presets": [*(_preset_summary(directory, run, estimates) for run in runs), *earlier]})


def noise_estimates(runs: Sequence[PresetRun]) -> dict[str, dict]:
    """The estimated noise rates of a run's pairs, as far as there are any yet.

    Returns:
        {sha256 of a noise draw: fields of `mdw_jax.method.noise_rate.Rate`}. An estimate is of the pairs, so presets
        without experts have that of the experts that saw the same ones: those of `mdw`, or the first.
    """
    estimates: dict[str, dict] = {}
    for run in sorted(runs, key=lambda run: run.name != "mdw"):
        trained = [run.filter.scorer if run.filter else run] if run.spec.needs_experts or run.filter else []
        for experts in filter(None, trained):
            record = complete(experts.experts.path / "experts.json", experts.experts.key, "rate")
            if record and record["rate"]["estimated"]:
                estimates.setdefault(run.noise.sha256, record["rate"]["estimated"])
    return estimates


def noise_summary(run: PresetRun, estimates: Mapping[str, dict]) -> dict:
    """What report.json says of a preset's noise; `rate` is None, and `assumed` set or not, where it is natural."""
    noise = run.noise
    return {"label": noise.label, "protocol": noise.protocol, "rate": noise.true_rate, "sha256": noise.sha256,
            "estimated": estimates.get(noise.sha256),
            "assumed": noise.rate if noise.true_rate is None and noise.rate else None}


def _preset_summary(directory: Path, run: PresetRun, estimates: Mapping[str, dict]) -> dict:
    sets = range(run.config.distill.sets if run.spec.has_sets else 0)
    summary = {
        "name": run.name, "label": run.spec.label, "kind": run.spec.kind, "pairs": run.config.distill.pairs,
        "sets": [set_folder(run, index).relative_to(directory).as_posix() for index in sets],
        "noise": noise_summary(run, estimates)}
    if run.spec.needs_experts:
        summary |= {"experts": run.experts.path.relative_to(directory).as_posix(),
                    "recipe": run.config.experts.recipe, "division": _division_histograms(run)}
    return summary


def _division_histograms(run: PresetRun) -> dict[str, list[int]]:
    """How many pairs have which clean probability, apart for clean and mismatched pairs where these are known."""
    probability, mismatched = read_division(run), run.noise.mismatched
    if mismatched is None:
        groups = {"all pairs": np.ones(len(probability), bool)}
    else:
        groups = {"correctly paired": ~mismatched, "mismatched": mismatched}
    return {name: np.histogram(probability[rows], DIVISION_EDGES)[0].tolist() for name, rows in groups.items()}


def write_audio_files(directory: Path, prepared: Prepared, runs: Sequence[PresetRun]) -> None:
    """Write the first pairs of every set of spectrograms as `figures/<preset>-<n>.wav`; without librosa do nothing."""
    log_mel = prepared.pairs.log_mel
    if log_mel is None or not audio.can_synthesize():
        return
    for run in runs:
        if run.spec.has_sets:
            distilled, _ = load_for_display(set_folder(run, 0))
            for index, image in enumerate(distilled.images[:AUDIO_PAIRS]):
                path = directory / "figures" / f"{safe_name(run.name)}-{index}.wav"
                audio.write_wav(path, audio.griffin_lim(image, log_mel), log_mel.sample_rate)
