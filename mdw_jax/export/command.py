"""`mdw export`: every distilled set of a run as files that others read: `<run.dir>/export/<preset>-<set>`."""

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config import resolve
from mdw_jax.config.presets import CORESETS, DISTILLED
from mdw_jax.errors import UserError
from mdw_jax.export.formats import Near, check, export_set
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.models.embedding import nearest
from mdw_jax.pipeline.distill import distill_stage
from mdw_jax.pipeline.prepared import Prepared, prepare
from mdw_jax.pipeline.preset_run import open_preset
from mdw_jax.pipeline.run_folder import run_folder


def export_command(config: ConfigDict) -> None:
    """Distil what is missing, and write every set of the config's presets in all `export.formats`, with its card.

    Raises UserError before anything is computed where `export.check` does, or if no preset ends in a set.
    """
    resolved = resolve(config)
    settings = resolved.export
    check(settings.formats, settings.license)
    if settings.neighbors < 1:
        raise UserError(f"export.neighbors must be at least 1, not {settings.neighbors}.")
    names = [name for name in config.run.presets if name in DISTILLED]
    if not names:
        raise UserError(f"none of run.presets ({', '.join(config.run.presets)}) ends in a set of pairs; add one, such "
                        "as mdw.")
    folder = run_folder(config) / "export"
    prepared = prepare(resolved)
    if settings.neighbors > (there := len(prepared.pairs.train.captions)):
        raise UserError(f"export.neighbors is {settings.neighbors} but there are only {there} training captions; "
                        "lower it.")
    for preset in (open_preset(config, prepared, name) for name in names):
        for index, stored in enumerate(distill_stage(preset, prepared)):
            distilled, card = load_distilled(stored)
            to = folder / f"{preset.name}-{index}"
            export_set(to, distilled, _near(distilled.texts, prepared, settings.neighbors),
                       {**card, "data": prepared.pairs.name}, formats=settings.formats, license=settings.license,
                       real=preset.name in CORESETS)
            print(f"{preset.name:8}  {to}")


def _near(texts, prepared: Prepared, count: int) -> Near:
    """The `count` training captions whose frozen features have the largest cosine with each distilled text."""
    read, real = np.asarray(prepared.read(texts), np.float32), prepared.texts.train
    found = nearest(read, real, count)
    close = np.asarray(real, np.float32)[found]
    lengths = np.linalg.norm(read, axis=1)[:, None] * np.linalg.norm(close, axis=2)
    cosines = np.einsum("md,mkd->mk", read, close) / np.maximum(lengths, 1e-12)
    return Near([[prepared.pairs.train.captions[k] for k in row] for row in found], cosines)
