"""A preset of a run, opened: its resolved config, its noise draw, and the folders and keys of what it leaves behind."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config.presets import CORESETS, DISTILLED, WITHOUT_EXPERTS, preset_config
from mdw_jax.data import noise as noise_files
from mdw_jax.data.noise import Noise
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest
from mdw_jax.io.records import stored_array
from mdw_jax.pipeline.prepared import Prepared

# How snapshots are stored, and what resolving has put into effect elsewhere: not which experts they are.
_NOT_EXPERTS = ("store_dtype", "recipe", "lr_infonce")
_OF_TEACHERS = ("teacher_count", "teacher_epochs", "lr_with_teachers")
# A set that gets to its end is the same however many restarts were allowed, so one that diverged may be allowed more.
_NOT_SETS = ("sets", "restarts")
_NEUTRAL = (("restart_factor", 0.3),)  # keys younger than sets that are kept: as they were before
# What only scores a finished set. The rest of the evaluation chooses between candidates: it is part of what a set is.
_ONLY_SCORES = ("select_on", "students", "tower", "mode", "weights", "tower_lr_scales")


class Preset(NamedTuple):
    """One preset of a run: its name, its resolved config, its noise draw; where its experts and its sets live."""

    name: str
    config: ConfigDict
    noise: Noise
    experts: Path
    experts_key: str
    sets: Path
    sets_key: str


def open_preset(config: ConfigDict, prepared: Prepared, name: str) -> Preset:
    """Resolve a preset's config and the identity of what it builds on."""
    c = preset_config(config, name)
    noise = noise_of(c, prepared)
    without = _NOT_EXPERTS if c.experts.teacher_count else _NOT_EXPERTS + _OF_TEACHERS
    recipe = {k: v for k, v in c.experts.to_dict().items() if k not in without}
    experts_key = digest(prepared.key, noise.sha256, recipe, c.run.seed, snapshots_kept(c))
    if name in WITHOUT_EXPERTS:
        built_on = digest(prepared.key, noise.sha256, c.run.seed)
    else:
        built_on = experts_key
    if name in CORESETS:
        sets_key = digest(built_on, name, c.distill.pairs)
    else:
        method = {k: v for k, v in c.distill.to_dict().items() if k not in _NOT_SETS and (k, v) not in _NEUTRAL}
        choice = {k: v for k, v in c.evaluate.to_dict().items() if k not in _ONLY_SCORES}
        sets_key = digest(built_on, name, method, choice)
    _check_sizes(c, prepared, name)
    folder = Path(c.run.dir)
    return Preset(name, c, noise, folder / "experts" / f"{c.experts.recipe}-{experts_key[:10]}", experts_key,
                  folder / "distilled" / f"{name}-{sets_key[:10]}", sets_key)


def _check_sizes(c: ConfigDict, prepared: Prepared, name: str) -> None:
    """Raises UserError, before anything is trained, if the data are too few for what the preset asks."""
    train = prepared.pairs.train
    images, captions = len(train.images), len(train.captions)
    if name in DISTILLED and c.distill.pairs > images:
        raise UserError(f"distill.pairs is {c.distill.pairs} but there are only {images} training images; lower it.")
    if name in WITHOUT_EXPERTS:
        return
    asked = {"experts.batch": c.experts.batch}
    asked |= {"experts.recovery_top_k": c.experts.recovery_top_k} if c.experts.recovery_weight else {}
    for key, value in asked.items():
        if value > captions:
            raise UserError(f"{key} is {value} but there are only {captions} training captions; lower it.")


def snapshots_kept(config: ConfigDict) -> int:
    """The last snapshot that distillation will read."""
    return config.distill.max_start_epoch - 1 + config.distill.match_epochs


def division_of(preset: Preset) -> np.ndarray:
    """(K,) the probability of each training pair to be rightly paired, as the preset's experts divided them."""
    return stored_array(preset.experts / "division.npy", (len(preset.noise.image_of),))


def noise_of(config: ConfigDict, prepared: Prepared) -> noise_files.Noise:
    """The noise draw of a config: read from `noise.file`, or drawn once and kept in the run folder as a file.

    Raises UserError if the file in the run folder is of another data set.
    """
    n = config.noise
    if n.file:
        if not Path(n.file).exists():
            raise UserError(f"there is no noise file '{n.file}'; set noise.file to a .npz or .npy file, or to ''.")
        read = noise_files.read_index if n.file.endswith(".npy") else noise_files.load
        return read(n.file, prepared.pairs)
    path = Path(config.run.dir) / "noise" / (
        f"{n.protocol}-{n.rate}-seed{n.seed}-{prepared.fingerprint[:8]}.npz")
    if path.exists():
        return noise_files.load(path, prepared.pairs)
    drawn = noise_files.draw(prepared.pairs, n.protocol, n.rate, n.seed)
    noise_files.save(drawn, path)
    return drawn
