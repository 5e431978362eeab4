"""Cross-checks of a config: what cannot be run is refused before any data are opened."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from mdw_jax.config.defaults import defaults
from mdw_jax.config.noise import fill_in_noise
from mdw_jax.config.options import (
    CHOICES,
    CORESETS,
    DIVIDING,
    LOG_MEL_READERS,
    PROTOTYPES,
    TEXT_ENCODER_SETTINGS,
    TOWER_SETTINGS,
    TOWERS_WITH_BLOCKS,
)
from mdw_jax.config.plugins import function_of, is_path, unknown_option
from mdw_jax.config.presets import preset_spec, safe_name
from mdw_jax.config.recipes import RECIPES
from mdw_jax.errors import UserError

# Keys of the section `distill` that are of the objective `covariance` alone.
COVARIANCE_SETTINGS = ("covariance_scale", "mean_weight", "network_steps")
# Which numbers make sense: in words, as a test, and of which keys. What only one command reads is tested there.
_RANGES = (
    ("be at least 1", lambda x: x >= 1, (
        "data.size", "text.dim", "text.max_tokens", "model.dim", "model.patches", "model.widths", "model.vit_patch",
        "model.vit_width", "model.vit_depth", "model.vit_heads", "model.pretrain_images", "experts.count",
        "experts.epochs", "experts.teacher_epochs", "experts.batch", "experts.recovery_top_k", "experts.peers",
        "distill.pairs", "distill.sets", "distill.inner_steps", "distill.batch",
        "distill.trajectories", "distill.match_epochs", "distill.ceo_every", "distill.ceo_top_k",
        "distill.checkpoint_every", "distill.network_steps",
        "evaluate.students", "evaluate.steps", "evaluate.every", "evaluate.batch", "plan.devices")),
    ("be at least 0", lambda x: x >= 0, (
        "data.train", "data.val", "data.test", "data.sample_rate", "data.seconds", "data.mels", "data.frames",
        "data.limit", "data.holdout_val", "data.holdout_test", "data.near_duplicates",
        "model.pretrain_epochs", "experts.teacher_count",
        "experts.trajectory_epochs",
        "experts.weight_decay", "experts.warmup", "experts.tolerant_weight", "experts.recovery_weight",
        "experts.recovery_start", "experts.guidance_weight", "distill.lr_images", "distill.lr_texts",
        "distill.lr_correspondence", "distill.lr_inner_lr", "distill.logit_scale", "distill.ceo_beta",
        "distill.image_size", "distill.restarts", "distill.mean_weight", "distill.steps", "distill.prototype_steps",
        "distill.chunk",
        "evaluate.weight_decay", "evaluate.patience", "evaluate.grow", "plan.images", "plan.captions", "plan.text_dim",
        "plan.price")),
    ("exceed 0", lambda x: x > 0, (
        "model.tau", "experts.lr", "experts.lr_with_teachers", "experts.lr_infonce", "experts.guidance_tau",
        "experts.trajectory_lr",
        "distill.covariance_scale", "distill.correspondence_tau", "distill.prototype_lr",
        "distill.inner_lr_image", "distill.inner_lr_text", "evaluate.lr", "evaluate.lr_scales",
        "evaluate.tower_lr_scales")),
    ("lie in [0, 1)", lambda x: 0 <= x < 1, (
        "noise.rate", "filter.drop", "experts.momentum", "experts.ema_decay", "distill.ema_decay", "evaluate.momentum")),
    ("lie in (0, 1)", lambda x: 0 < x < 1, ("distill.restart_factor",)),
    ("lie in (0, 1]", lambda x: 0 < x <= 1, ("experts.clean_q", "experts.tolerant_q", "plan.utilization")),
    ("lie in [0, 1]", lambda x: 0 <= x <= 1, ("data.skew", "data.captions_rate", "data.max_skipped")),
    ("lie in 0..2**32 - 1", lambda x: 0 <= x < 2**32, (
        "run.seed", "data.seed", "data.holdout_seed", "noise.seed", "text.seed")),
)


def resolve(config: ConfigDict) -> ConfigDict:
    """Fill in the expert recipe and start, the noise and the batch of a small set, and check the config.

    Args:
        config: all keys of `base()`; it stays as it is.

    Returns:
        A locked copy.

    Raises:
        UserError: an option that does not exist, a number out of its range, settings that exclude each other, or a
            setting that cannot take effect.
    """
    config = ConfigDict(config.to_dict())
    _check_choices(config)
    fill_in_noise(config)
    config.experts.update(RECIPES[config.experts.recipe])
    if config.experts.init == "auto":
        config.experts.init = "closed_form" if config.experts.closed_form and _has_frozen_features(config) else "random"
    if config.experts.division == "clean" and config.experts.clean_loss == "infonce":
        config.experts.lr = config.experts.lr_infonce
    config.distill.batch = min(config.distill.batch, config.distill.pairs)
    _check_numbers(config)
    for check in (_check_run, _check_presets, _check_data, _check_text, _check_model, _check_noise, _check_filter,
                  _check_experts,
                  _check_distill, _check_objective, _check_evaluate):
        check(config)
    return config.lock()


def refuse_unused(section: str, values: Mapping[str, Any], key: str, noun: str, taken: Iterable[str],
                  candidates: Iterable[str] | None = None) -> None:
    """Refuse settings that the chosen option does not take, rather than drop them.

    Args:
        section: of the config: "data".
        values: the section's settings.
        key: the setting that names the option: "name".
        noun: what the option is, for messages: "reader".
        taken: names of the settings that the option takes.
        candidates: names of the settings to check; None: all of the section. Those at their default of `base()` count
            as not set.

    Raises:
        UserError: a setting differs from its default and is not taken.
    """
    known, taken = defaults()[section], set(taken)
    for name in known if candidates is None else candidates:
        if name not in taken and values[name] != known[name]:
            raise UserError(f"{section}.{name} is set, but the {noun} '{values[key]}' does not take it; leave it out, "
                            f"or choose another {section}.{key}.")


def _check_choices(config: ConfigDict) -> None:
    """Every key of `CHOICES` holds one of its names (a tuple: some of them), or a function that can be imported."""
    for key, choice in CHOICES.items():
        section, leaf = key.split(".")
        value = config[section][leaf]
        for name in value if isinstance(value, (tuple, list)) else [value]:
            if name in choice.names:
                continue
            if not (choice.plugin and is_path(name)):
                raise unknown_option(name, key, choice.noun, choice.names, plugin=choice.plugin)
            function_of(name, key)


def _check_numbers(config: ConfigDict) -> None:
    """Numbers, also those in lists, are finite and in their ranges."""
    for section, keys in config.items():
        for key, value in keys.items():
            for number in value if isinstance(value, (tuple, list)) else [value]:
                _require(not isinstance(number, float) or math.isfinite(number),
                         f"{section}.{key} must be finite, not {number}.")
    for words, holds, names in _RANGES:
        for name in names:
            section, key = name.split(".")
            value = config[section][key]
            for number in value if isinstance(value, (tuple, list)) else [value]:
                _require(holds(number), f"{name} must {words}, not {number}.")


def _check_run(config: ConfigDict) -> None:
    _require(config.run.dir.strip(), "run.dir is empty; set it to the directory that the run writes to.")
    _require(len(config.run.presets) > 0, "run.presets is empty; give at least one, such as mdw.")


def _check_presets(config: ConfigDict) -> None:
    """The presets of a run have names, directories and labels of their own, and coresets that exist."""
    places: dict[str, str] = {}  # the name of a preset's directory: the preset
    labels: dict[str, str] = {}
    for name in config.run.presets:
        spec, place = preset_spec(name), safe_name(name)
        _require(places.get(place) != name, f"run.presets holds '{name}' twice; leave one out.")
        _require(place not in places, f"run.presets holds '{places.get(place)}' and '{name}', whose directories would "
                 f"both be called '{place}'; rename one.")
        _require(spec.label not in labels, f"the presets '{labels.get(spec.label)}' and '{name}' of run.presets have the "
                 f"same label, '{spec.label}'; change that of the one that is yours.")
        places[place] = labels[spec.label] = name
        if spec.coreset is not None and spec.coreset not in CORESETS:
            setting = f"the coreset of the preset '{name}'"
            if not is_path(spec.coreset):
                raise unknown_option(spec.coreset, setting, "coreset", CORESETS)
            function_of(spec.coreset, setting)


def _check_data(config: ConfigDict) -> None:
    data = config.data
    _require(not data.captions or config.text.encoder != "precomputed", "data.captions changes the captions, and "
             "features from a file would not follow; set text.encoder to bow or transformer.")
    _require(data.captions or data.captions_rate == defaults().data.captions_rate, "data.captions_rate is set, but "
             "data.captions is empty, so no caption changes; set data.captions to generic or truncated.")


def _check_text(config: ConfigDict) -> None:
    text = config.text
    _require(not text.train or (text.encoder == "transformer" and not config.distill.mixup),
             "text.train needs text.encoder=transformer, and distill.mixup (RepBlend) fixed text features; change one.")
    refuse_unused("text", text, "encoder", "encoder", TEXT_ENCODER_SETTINGS[text.encoder], _all(TEXT_ENCODER_SETTINGS))


def _check_model(config: ConfigDict) -> None:
    model = config.model
    _require(model.patches and model.widths, "model.patches or model.widths is empty; give one of each for every "
             "stage, such as 4,2,2 and 64,128,128.")
    _require(model.pretrain_epochs or model.pretrain_images == defaults().model.pretrain_images, "model.pretrain_images "
             "is set, but model.pretrain_epochs is 0, so nothing is pretrained; set it too.")
    own = TOWER_SETTINGS.get(model.tower, ())  # a tower from outside the package takes none
    students = [name for name in TOWER_SETTINGS.get(config.evaluate.tower, ()) if name != "weights"]
    refuse_unused("model", model, "tower", "tower", [*own, *students], _all(TOWER_SETTINGS))
    _require(model.feature_dtype == defaults().model.feature_dtype or "projection" in (
        model.mode, config.evaluate.mode if config.evaluate.tower else ""),
             "model.feature_dtype is of features of images, and model.mode=full has none; leave it out.")


def _check_noise(config: ConfigDict) -> None:
    noise, e = config.noise, config.experts
    _require(noise.protocol != "natural" or not noise.file, "noise.protocol natural leaves the pairs as they come, and "
             "noise.file re-pairs them; leave one of them out.")
    _require(noise.protocol != "none" or noise.rate == 0 or noise.file, "noise.protocol none goes with rate 0, not "
             f"{noise.rate}; set noise.rate to 0, or choose image, caption or near_duplicate.")
    _require(noise.protocol != "natural" or e.division != "oracle", "an oracle division needs to know "
             "which pairs are mismatched, and of natural noise nobody knows; choose another experts.recipe.")
    _require(noise.protocol != "natural" or noise.rate or not (e.debias or e.rescale_step), "experts.debias and "
             "experts.rescale_step correct for the noise rate, which natural noise does not tell; set noise.rate to what "
             "you believe (mdw experts with another recipe estimates it).")


def _check_filter(config: ConfigDict) -> None:
    score, e = config.filter.score, config.experts
    _require(score or not config.filter.drop, "filter.drop is set, but filter.score is empty, so nothing is dropped; set "
             "filter.score to what to drop by, such as cosine.")
    _require(not score or not (e.debias or e.rescale_step), "experts.debias and experts.rescale_step correct for random "
             "mismatches, and those that a filter leaves are not random; leave filter.score empty or choose another "
             "experts.recipe.")


def _has_frozen_features(config: ConfigDict) -> bool:
    return config.model.mode == "projection" and not config.text.train


def _check_experts(config: ConfigDict) -> None:
    e = config.experts
    _require(config.model.mode != "projection" or e.augment == "none",
             f"experts.augment ({e.augment}) needs images, which projection mode does not train on; set it to none.")
    _require(e.optimizer == "sgd" or not e.momentum, f"experts.momentum is of SGD, and experts.optimizer is {e.optimizer}; "
             "leave it at 0.")
    _require(e.init == "random" or e.closed_form, "experts.init=closed_form starts networks from the closed form, which "
             "experts.closed_form=False leaves out; set experts.closed_form to True, or experts.init to random.")
    _require(e.init == "random" or _has_frozen_features(config),
             "experts.init=closed_form is a start of heads on frozen features; set model.mode to projection and text.train "
             "to False, or experts.init to random.")
    presets = [preset_spec(name) for name in config.run.presets]
    trained = any(spec.needs_experts and "experts.recipe" not in spec.overrides for spec in presets)
    recovers = e.division in DIVIDING and (e.recovery_weight or e.guidance_weight)
    begins = max(e.warmup, e.recovery_start)
    late = " and ".join(f"experts.{key} ({e[key]})" for key in ("recovery_start", "warmup") if e[key] >= e.epochs)
    _require(not (trained and recovers) or e.teacher_count or e.closed_form or begins < e.epochs,
             f"recovery and guidance begin at epoch {begins} (counted from 0), but experts.epochs is {e.epochs}: they "
             f"would never begin; lower {late} or raise experts.epochs.")


def _check_distill(config: ConfigDict) -> None:
    d, epochs = config.distill, config.experts.trajectory_epochs or config.experts.epochs
    _require(not d.image_size or config.data.name not in LOG_MEL_READERS, "distill.image_size is of square images, and "
             f"data.name={config.data.name} gives log-mels; leave it at 0.")
    _require(d.image_size <= config.data.size, f"distill.image_size ({d.image_size}) exceeds data.size "
             f"({config.data.size}), at which models see the images; lower it, or set it to 0.")
    _require(d.remat == "none" or config.model.tower in TOWERS_WITH_BLOCKS, f"distill.remat={d.remat} is for towers of "
             f"blocks, and model.tower={config.model.tower} has none; set it to none.")
    last = d.max_start_epoch + d.match_epochs - 1
    length = "experts.trajectory_epochs" if config.experts.trajectory_epochs else "experts.epochs"
    _require(d.max_start_epoch >= 1, f"distill.max_start_epoch must be at least 1, not {d.max_start_epoch}.")
    _require(last <= epochs, f"matching up to epoch {last} needs as many expert epochs, but {length} is {epochs}; "
             f"raise {length}, or lower distill.max_start_epoch ({d.max_start_epoch}) or distill.match_epochs "
             f"({d.match_epochs}).")
    _require(d.loss_merge != "merged_data" or (d.gradient == "detached" and d.inner_optimizer == "sgd"),
             "distill.loss_merge merged_data leaves the step sizes' gradients as they are, which is defined for "
             "distill.gradient=detached and distill.inner_optimizer=sgd alone; set these, or loss_merge to merged.")
    _require(d.correspondence != "lowrank" or 1 <= d.rank <= d.pairs,
             f"distill.rank must lie in 1..{d.pairs} (distill.pairs), not {d.rank}.")
    taught = d.correspondence_init == "experts"
    _require(not taught or d.correspondence != "identity", "distill.correspondence_init=experts sets the values of P, and "
             "distill.correspondence=identity has none; set it to full or lowrank, or correspondence_init to identity.")
    _require(not taught or len(d.correspondence_tau) > 0, "distill.correspondence_tau is empty; give at least one "
             "temperature, such as (0.07,).")
    _require(d.init != PROTOTYPES or not config.text.train, "distill.init=prototypes averages text features, and "
             "text.train makes distilled texts tokens; choose another distill.init.")
    _require(config.model.mode == "projection" or not d.mixup, "distill.mixup (RepBlend) blends the features of a "
             "frozen backbone; set model.mode to projection.")


def check_starts(config: ConfigDict) -> None:
    """Check that settings of prototypes and of the teachers of P are used by a run's config or by one of its presets.

    Not by each: a preset with another start leaves those of the others alone.

    Raises:
        UserError: nothing uses them.
    """
    d, specs = config.distill, [preset_spec(name) for name in config.run.presets]
    for key, value, settings in (("init", PROTOTYPES, ("prototype_steps", "prototype_lr")),
                                 ("correspondence_init", "experts", ("correspondence_tau", "correspondence_teacher"))):
        if value not in {d[key], *(spec.overrides.get(f"distill.{key}") for spec in specs)}:
            changed = [name for name in settings if d[name] != defaults().distill[name]]
            _require(not changed, f"distill.{''.join(changed[:1])} is set, but nothing uses it: it belongs to "
                     f"distill.{key}={value}; leave it out, or set that.")


def _check_objective(config: ConfigDict) -> None:
    d = config.distill
    refuse_unused("distill", d, "objective", "objective", COVARIANCE_SETTINGS if d.objective == "covariance" else (),
                  COVARIANCE_SETTINGS)
    without = {"correspondence": "identity", "ceo": False, "mixup": False}
    for name, value in without.items() if d.objective == "covariance" else ():
        _require(d[name] == value, f"distill.objective covariance trains no student, which distill.{name} ({d[name]}) is "
                 f"for; set it to {value}, as the preset covmatch does.")


def _check_evaluate(config: ConfigDict) -> None:
    e = config.evaluate
    _require(e.every <= e.steps, f"evaluate.every ({e.every}) exceeds evaluate.steps ({e.steps}): no student would be "
             "scored; lower it.")
    _require(min(len(e.lr_scales), len(e.tower_lr_scales)) > 0,
             "evaluate.lr_scales or evaluate.tower_lr_scales is empty; give at least one, such as (1.0,).")
    _require(e.tower or not e.weights, "evaluate.weights is set, but evaluate.tower is empty, so students have the "
             "distilled set's own tower; set evaluate.tower or leave evaluate.weights out.")
    refuse_unused("evaluate", e, "tower", "tower", TOWER_SETTINGS.get(e.tower, ()), ["weights"])


def _all(settings: Mapping[str, Iterable[str]]) -> list[str]:
    """The settings of all options, each once."""
    return list(dict.fromkeys(name for names in settings.values() for name in names))


def _require(holds: Any, message: str) -> None:
    if not holds:
        raise UserError(message)
