"""What a run writes for its report: report.json, and WAV files of sets of spectrograms."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config.presets import safe_name
from mdw_jax.config.sections import config_digest
from mdw_jax.io.distilled_set import load_for_display
from mdw_jax.io.files import write_json
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun, read_division
from mdw_jax.pipeline.sets import set_folder
from mdw_jax.reporting import audio
from mdw_jax.reporting.run_files import DIVISION_EDGES, SUMMARY

AUDIO_PAIRS = 2  # pairs of each set of spectrograms that are written as WAV files too


def write_run_summary(directory: Path, config: ConfigDict, prepared: Prepared, runs: Sequence[PresetRun]) -> None:
    """Write report.json: which config the scores belong to, where sets and experts lie, and facts about the data.

    Args:
        directory: the run directory.
        config: the run's config, resolved.
        prepared: its data.
        runs: its presets.
    """
    train = prepared.pairs.train
    write_json(directory / SUMMARY, {
        "config": config_digest(config.to_dict()), "data": prepared.pairs.name, "fingerprint": prepared.fingerprint,
        "images": len(train.images), "captions": len(train.captions),
        "presets": [_preset_summary(directory, run) for run in runs]})


def _preset_summary(directory: Path, run: PresetRun) -> dict:
    sets = range(run.config.distill.sets if run.spec.has_sets else 0)
    summary = {
        "name": run.name, "label": run.spec.label, "kind": run.spec.kind, "pairs": run.config.distill.pairs,
        "sets": [set_folder(run, index).relative_to(directory).as_posix() for index in sets],
        "noise": {"label": run.noise.label, "protocol": run.noise.protocol, "rate": run.noise.true_rate,
                  "sha256": run.noise.sha256}}
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
