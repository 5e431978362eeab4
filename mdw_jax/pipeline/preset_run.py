"""One preset of a run: its resolved config, its noise draw, and where its experts and its sets lie."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config import base, resolve
from mdw_jax.config.noise import UNDRAWN
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.plugin_values import plugin_sources
from mdw_jax.config.plugins import is_path, source_digest
from mdw_jax.config.presets import PresetSpec, preset_spec, safe_name
from mdw_jax.config.validation import check_starts
from mdw_jax.data import noise as noise_files
from mdw_jax.data.noise import Noise
from mdw_jax.data.pairs import Pairs
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest
from mdw_jax.io.records import stored_array
from mdw_jax.pipeline.plugin_checks import check_augmentations, check_plugins
from mdw_jax.pipeline.prepared import Prepared

# Settings that do not change the experts: how snapshots are stored, and what is already resolved into other keys.
_NOT_EXPERTS = ("store_dtype", "recipe", "lr_infonce")
# A set that comes to its end is the same however many restarts were allowed, so one that diverged may be allowed more.
# Chunks and what is computed again change rounding alone, as the number of devices does.
_NOT_SETS = ("sets", "restarts", "chunk", "remat")
# Settings of the experts that the network of covariance matching is trained with.
ONLINE_SETTINGS = ("batch", "lr_infonce", "momentum", "weight_decay")
# Settings that only score a finished set. The others choose between candidates, so a set depends on them.
_ONLY_SCORES = ("select_on", "students", "hard_targets", "tower", "mode", "weights", "tower_lr_scales")


class StageFolder(NamedTuple):
    """A directory that a stage fills, and the digest of everything that its contents depend on."""

    path: Path
    key: str


# Scores of a filter: the recipe of the experts, trained on all pairs, that score; None: it needs no experts.
SCORER_RECIPES = {"cosine": "infonce", "dtcl_cosine": "dtcl", "neg_clip_loss": "infonce", "closed_form": None}


class Filter(NamedTuple):
    """The filter of a preset (`pipeline/filter.py`).

    Attributes:
        folder: where the rows that it keeps lie.
        scorer: the preset whose experts score the pairs; None: no experts do.
    """

    folder: StageFolder
    scorer: "PresetRun | None"


class PresetRun(NamedTuple):
    """One preset of a run.

    Attributes:
        name: as in `run.presets`: a built-in preset, or `module:function`.
        spec: what kind of preset it is.
        config: the run's config with the preset's overrides, resolved.
        noise: which image each training caption is paired with, also of pairs that its filter drops.
        experts: where its experts lie; presets with the same experts share them.
        sets: where its sets lie.
        filter: the filter of its pairs; None: it sees all of them.
    """

    name: str
    spec: PresetSpec
    config: ConfigDict
    noise: Noise
    experts: StageFolder
    sets: StageFolder
    filter: Filter | None = None


def resolve_run(config: ConfigDict) -> ConfigDict:
    """The resolved config of a run.

    Raises:
        UserError: the config, or that of one of its presets, is not valid, or a function that it names does not do what
            is expected of it.
    """
    resolved = resolve(config)
    check_starts(config)
    for name in config.run.presets:
        # From the unresolved config: a preset may name another recipe, which must not be mixed with the config's own.
        c = preset_config(config, name)
        check_plugins(c, preset_spec(name))
        _scorer_config(config, c)
    return resolved


def open_preset(config: ConfigDict, prepared: Prepared, name: str) -> PresetRun:
    """Resolve a preset's config, get its noise draw, and find out where its experts and sets belong.

    Args:
        config: the run's config, not resolved.
        prepared: the data and the model of the run.
        name: a preset's name, or `module:function`.

    Raises:
        UserError: the preset's config is not valid, or the data are too few for it.
    """
    spec, c = preset_spec(name), preset_config(config, name)
    check_augmentations(c, prepared.pairs.train.images.shape[1:])
    _require_square_images(c, prepared.pairs.train.images.shape[1:])
    check_enough_data(c, prepared.pairs, spec)
    noise = noise_of(c, prepared)
    filtering = _filter(config, c, prepared, noise) if c.filter.score else None
    return _located(name, spec, c, prepared, noise, filtering)


def planned_preset(config: ConfigDict, name: str) -> PresetRun:
    """A preset before any data are read. Its keys are no real ones, but those of two presets are equal where theirs are.

    Args:
        config: the run's config, not resolved.
        name: a preset's name, or `module:function`.

    Raises:
        UserError: the preset's config is not valid.
    """
    spec, c = preset_spec(name), preset_config(config, name)
    drawn = c.noise.file or (c.noise.rate and c.noise.protocol not in UNDRAWN)
    noise: Any = _Unread(digest(c.noise.to_dict()) if drawn else "as they come")
    data: Any = _Unread("data")
    filtering = _filter(config, c, data, noise) if c.filter.score else None
    return _located(name, spec, c, data, noise, filtering)


class _Unread(NamedTuple):
    """In place of a noise draw, or of data, that nobody has read: what it is known by."""

    sha256: str

    @property
    def key(self) -> str:
        return self.sha256


def _located(name: str, spec: PresetSpec, c: ConfigDict, prepared: Prepared, noise: Noise, filtering: Filter | None
             ) -> PresetRun:
    """The preset with the places of its experts and sets."""
    experts_key = _experts_key(c, prepared, noise, filtering)
    sets_key = _sets_key(c, prepared, noise, name, spec, experts_key, filtering)
    directory = Path(c.run.dir)
    return PresetRun(
        name, spec, c, noise,
        StageFolder(directory / "experts" / f"{safe_name(c.experts.recipe)}-{experts_key[:10]}", experts_key),
        StageFolder(directory / "distilled" / f"{safe_name(name)}-{sets_key[:10]}", sets_key), filtering)


def _filter(config: ConfigDict, c: ConfigDict, prepared: Prepared, noise: Noise) -> Filter:
    """The filter of a preset, with the experts that score for it."""
    scorer, scorer_config = None, _scorer_config(config, c)
    if scorer_config is not None:
        name = f"{c.filter.score} filter"
        scorer = _located(name, PresetSpec(label=name, kind="reference"), scorer_config, prepared, noise, None)
    key = digest(prepared.key, noise.sha256, c.filter.to_dict(), c.run.seed, *([scorer.experts.key] if scorer else []))
    folder = StageFolder(Path(c.run.dir) / "filter" / f"{c.filter.score}-{key[:10]}", key)
    return Filter(folder, scorer)


def _scorer_config(config: ConfigDict, c: ConfigDict) -> ConfigDict | None:
    """The resolved config of the experts that score for a preset's filter: the run's, in another recipe.

    Args:
        config: the run's config, not resolved.
        c: that of the preset.

    Returns:
        None where the preset has no filter, or one without experts.

    Raises:
        UserError: the run's config in that recipe is not valid.
    """
    recipe = SCORER_RECIPES.get(c.filter.score)
    if recipe is None:
        return None
    changed = config.copy_and_resolve_references().unlock()
    changed.update({"noise": c.noise.to_dict(), "filter": base().filter.to_dict()})
    changed.experts.recipe = recipe
    return resolve(changed)


def _filter_key(filtering: Filter | None) -> list[str]:
    """The part of a key that a filter adds; none without one."""
    return [filtering.folder.key] if filtering else []


def _experts_key(c: ConfigDict, prepared: Prepared, noise: Noise, filtering: Filter | None) -> str:
    """Digest of everything that the experts of a config depend on."""
    ignored = list(_NOT_EXPERTS)
    if not c.experts.teacher_count:
        ignored += ["teacher_count", "teacher_epochs"]
    if not c.experts.trajectory_epochs:
        ignored += ["trajectory_epochs", "trajectory_lr"]
    if not (c.experts.teacher_count or c.experts.closed_form):
        ignored.append("lr_with_teachers")
    if c.experts.init == "random":  # the keys of before there was a choice
        ignored.append("init")
    if c.experts.recovery_search == "auto" or not c.experts.recovery_weight:  # the keys of before there was a choice
        ignored.append("recovery_search")
    recipe = {key: value for key, value in c.experts.to_dict().items() if key not in ignored}
    return digest(prepared.key, noise.sha256, recipe, c.run.seed, last_snapshot(c), *plugin_sources(c, "experts"),
                  *_filter_key(filtering))


def _sets_key(c: ConfigDict, prepared: Prepared, noise: Noise, name: str, spec: PresetSpec, experts_key: str,
              filtering: Filter | None) -> str:
    """Digest of everything that the sets of a preset depend on."""
    pairs_key = digest(prepared.key, noise.sha256, c.run.seed, *_filter_key(filtering))
    start = experts_key if spec.needs_experts else pairs_key
    if spec.kind == "coreset":
        sources = [source_digest(spec.coreset)] if is_path(spec.coreset) else []
        size = [c.distill.image_size] if c.distill.image_size else []
        return digest(start, name, spec.coreset, c.distill.pairs, *size, *sources)
    method = {key: value for key, value in c.distill.to_dict().items() if key not in _NOT_SETS}
    if c.distill.objective == "covariance":
        method |= {f"experts.{key}": c.experts[key] for key in ONLINE_SETTINGS}
    choice = {key: value for key, value in c.evaluate.to_dict().items() if key not in _ONLY_SCORES}
    # The source of a preset does not count: all that it returns is part of the config.
    return digest(start, name, method, choice, *plugin_sources(c, "distill"))


def _require_square_images(c: ConfigDict, shape: tuple[int, ...]) -> None:
    """Raises UserError where `distill.image_size` is set and images are not square, or not of `data.size`."""
    if c.distill.image_size and (len(shape) != 3 or shape[:2] != (c.data.size, c.data.size)):
        raise UserError(f"distill.image_size is of square images of data.size ({c.data.size}), and those of this data "
                        f"set are of shape {shape}; leave it at 0.")


def check_enough_data(c: ConfigDict, pairs: Pairs, spec: PresetSpec) -> None:
    """Check, before anything is computed, that there are data enough for a preset.

    Args:
        c: its resolved config.
        pairs: the data.
        spec: the preset.

    Raises:
        UserError: there are not.
    """
    train = pairs.train
    images, captions = len(train.images), len(train.captions)
    if spec.has_sets and c.distill.pairs > images:
        raise UserError(f"distill.pairs is {c.distill.pairs} but there are only {images} training images; lower it.")
    if not spec.needs_experts:
        return
    minimum = {"experts.batch": c.experts.batch}
    if c.experts.recovery_weight:
        minimum["experts.recovery_top_k"] = c.experts.recovery_top_k
    for key, value in minimum.items():
        if value > captions:
            raise UserError(f"{key} is {value} but there are only {captions} training captions; lower it.")


def last_snapshot(config: ConfigDict) -> int:
    """The last epoch whose expert snapshot distillation reads."""
    return config.distill.max_start_epoch - 1 + config.distill.match_epochs


def read_division(run: PresetRun) -> np.ndarray:
    """(K,) the probability that each training pair is clean, as the preset's experts divided them."""
    return stored_array(run.experts.path / "division.npy", (len(run.noise.image_of),))


def noise_of(config: ConfigDict, prepared: Prepared) -> Noise:
    """The noise draw of a config: read from `noise.file`, or drawn once and kept in the run directory.

    Raises:
        UserError: there is no such file, or it belongs to another data set.
    """
    settings = config.noise
    if settings.file:
        if not Path(settings.file).exists():
            raise UserError(f"there is no noise file '{settings.file}'; set noise.file to a .npz or .npy file, or to "
                            "''.")
        read = noise_files.read_index if settings.file.endswith(".npy") else noise_files.load
        return read(settings.file, prepared.pairs)
    path = Path(config.run.dir) / "noise" / (
        f"{settings.protocol}-{settings.rate}-seed{settings.seed}-{prepared.fingerprint[:8]}.npz")
    if path.exists():
        return noise_files.load(path, prepared.pairs)
    noise = noise_files.draw(prepared.pairs, settings.protocol, settings.rate, settings.seed)
    noise_files.save(noise, path)
    return noise
