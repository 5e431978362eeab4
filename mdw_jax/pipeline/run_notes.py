"""What a run writes down for its page: report.json, and WAV files of sets of sounds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config.presets import DISTILLED, WITHOUT_EXPERTS
from mdw_jax.config.sections import config_digest
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.io.files import write_json
from mdw_jax.pipeline.distill import set_folder
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import Preset, division_of
from mdw_jax.reporting import audio
from mdw_jax.reporting.run_files import ABOUT, EDGES

SOUNDS = 2  # pairs of each distilled set of sounds that are written as WAV files too


def note(folder: Path, config: ConfigDict, prepared: Prepared, presets: Sequence[Preset]) -> None:
    """Write report.json: of which config the scores are, where the sets and experts of this run lie, and what only the
    data can tell. config: the run's own, resolved."""
    write_json(folder / ABOUT, {
        "config": config_digest(config.to_dict()), "data": prepared.pairs.name, "fingerprint": prepared.fingerprint,
        "images": len(prepared.pairs.train.images), "captions": len(prepared.pairs.train.captions),
        "presets": [_about(folder, preset) for preset in presets]})


def _about(folder: Path, preset: Preset) -> dict:
    said = {"name": preset.name, "pairs": preset.config.distill.pairs,
            "sets": [set_folder(preset, index).relative_to(folder).as_posix()
                     for index in range(preset.config.distill.sets if preset.name in DISTILLED else 0)],
            "noise": {"label": preset.noise.label, "protocol": preset.noise.protocol, "rate": preset.noise.true_rate,
                      "sha256": preset.noise.sha256}}
    if preset.name not in WITHOUT_EXPERTS:
        clean, wrong = division_of(preset), preset.noise.mismatched
        sides = {"all pairs": np.ones(len(clean), bool)} if wrong is None else {
            "rightly paired": ~wrong, "mismatched": wrong}
        said |= {"experts": preset.experts.relative_to(folder).as_posix(), "recipe": preset.config.experts.recipe,
                 "division": {side: np.histogram(clean[of], EDGES)[0].tolist() for side, of in sides.items()}}
    return said


def write_sounds(folder: Path, prepared: Prepared, presets: Sequence[Preset]) -> None:
    """Of sets of sounds the first pairs as `<run>/pictures/<preset>-<n>.wav`, to listen to; needs librosa."""
    log_mel = prepared.pairs.log_mel
    if log_mel is None or not audio.can_sound():
        return
    for preset in presets:
        if preset.name in DISTILLED:
            distilled, _ = load_distilled(set_folder(preset, 0))
            for index, picture in enumerate(distilled.images[:SOUNDS]):
                audio.write_wav(folder / "pictures" / f"{preset.name}-{index}.wav", audio.griffin_lim(picture, log_mel),
                                log_mel.sample_rate)
