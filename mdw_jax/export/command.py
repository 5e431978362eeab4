"""`mdw export`: every set of a run as files that other programs read: `<run.dir>/export/<preset>-<set>`."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config import resolve
from mdw_jax.config.presets import preset_spec, safe_name
from mdw_jax.errors import UserError
from mdw_jax.export.captions import text_layout
from mdw_jax.export.export_set import check_settings, export_set
from mdw_jax.export.formats import NearestCaptions
from mdw_jax.export.training import Training, make_training, protocol_of
from mdw_jax.io.distilled_set import DistilledSet, load_distilled
from mdw_jax.models.embedding import nearest
from mdw_jax.pipeline.announce import announce_noise, announce_source
from mdw_jax.pipeline.distill import distill_stage
from mdw_jax.pipeline.evaluate import stored_scores, student_seed
from mdw_jax.pipeline.prepared import Prepared, prepare
from mdw_jax.pipeline.preset_run import PresetRun, open_preset
from mdw_jax.pipeline.run_folder import run_folder
from mdw_jax.pipeline.run_notes import noise_estimates, noise_summary


def export_command(config: ConfigDict) -> None:
    """Distill what is missing, and write every set of the run's presets in all `export.formats`, with its card.

    Args:
        config: the run's config, not resolved.

    Raises:
        UserError: before anything is computed, where `check_settings` does or if no preset ends in a set.
    """
    resolved = resolve(config)
    settings = resolved.export
    check_settings(settings.formats, settings.license)
    if settings.neighbors < 1:
        raise UserError(f"export.neighbors must be at least 1, not {settings.neighbors}.")
    names = [name for name in config.run.presets if preset_spec(name).has_sets]
    if not names:
        raise UserError(f"none of run.presets ({', '.join(config.run.presets)}) ends in a set of pairs; add one, such "
                        "as mdw.")
    announce_noise(config, names)
    directory = run_folder(config) / "export"
    prepared = prepare(resolved)
    announce_source(prepared.pairs)
    captions = len(prepared.pairs.train.captions)
    if settings.neighbors > captions:
        raise UserError(f"export.neighbors is {settings.neighbors} but there are only {captions} training captions; "
                        "lower it.")
    presets = [open_preset(config, prepared, name) for name in names]
    sets = [distill_stage(preset, prepared) for preset in presets]  # all, because some estimate the noise of others
    estimates = noise_estimates(presets)
    for preset, directories in zip(presets, sets, strict=True):
        for index, stored in enumerate(directories):
            distilled, card = load_distilled(stored, preset.config.distill.loss)
            noise = {**card["noise"], **noise_summary(preset, estimates)}
            path = directory / f"{safe_name(preset.name)}-{index}"
            training = training_of(preset, prepared, distilled, stored, index)
            export_set(path, distilled, nearest_captions_of(distilled.texts, prepared, settings.neighbors),
                       {**card, "data": prepared.pairs.name, "noise": noise}, formats=settings.formats,
                       license=settings.license, real=preset.spec.kind == "coreset", training=training)
            print(f"{preset.name:8}  {path}{_warning(training)}")


def _warning(training: Training | None) -> str:
    """What a user must know of an export that is not all that it could be."""
    if training is None:
        return ("\n          without train.py: the image tower or the text encoder of this run cannot be written into "
                "files")
    if training.record["expected"] is None:
        return ("\n          without a score to expect, and with a guessed number of steps: no student of this set was "
                "evaluated; run mdw evaluate, and export again")
    return ""


def training_of(preset: PresetRun, prepared: Prepared, distilled: DistilledSet, stored: Path, index: int
                ) -> Training | None:
    """How students of a set of a run were trained; None where that cannot be written into files.

    Args:
        preset: its preset.
        prepared: the data and the model of the run.
        distilled: the set.
        stored: its directory in the run.
        index: its number.

    Raises:
        UserError: `export.with_test` is set, and the test split would be handed on as images.
    """
    config, scores = preset.config, stored_scores(stored)
    if prepared.text_tower is not None or prepared.model.tower.layout is None or len(distilled.seen_shape) != 3:
        return None
    return make_training(distilled, prepared.model, protocol_of(config.evaluate, scores), scores,
                         text=text_layout(config.text, prepared.texts.train.shape[1]), seed=student_seed(preset, index),
                         test=prepared.test, captions=prepared.pairs.test.captions, fit=config.data.get("fit", "squash"),
                         with_test=config.export.with_test)


def nearest_captions_of(texts, prepared: Prepared, count: int) -> NearestCaptions:
    """The training captions whose frozen features have the largest cosine with each distilled text.

    Args:
        texts: (M, d) features or (M, L, h) embedded tokens.
        prepared: the data.
        count: captions per text.
    """
    features, real = np.asarray(prepared.text_features_of(texts), np.float32), prepared.texts.train
    rows = nearest(features, real, count)
    near = np.asarray(real, np.float32)[rows]
    lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(near, axis=2)
    cosines = np.einsum("md,mkd->mk", features, near) / np.maximum(lengths, 1e-12)
    return NearestCaptions([[prepared.pairs.train.captions[k] for k in row] for row in rows], cosines)
