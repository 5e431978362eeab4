"""Cross-checks of a config: what cannot be run is refused before any data are opened."""

import math

from ml_collections import ConfigDict, config_dict

from mdw_jax.config.options import AUGMENTS, DATA, DEGRADATIONS, TOWERS, WRITERS
from mdw_jax.config.plugins import is_path
from mdw_jax.config.recipes import RECIPES
from mdw_jax.errors import UserError

# Which numbers make sense: in words, as a test, and of which keys. What only one command reads is tested there.
_RANGES = (
    ("be at least 1", lambda x: x >= 1, (
        "data.size", "text.dim", "text.max_tokens", "model.dim", "model.patches", "model.widths", "model.vit_patch",
        "model.vit_width", "model.vit_depth", "model.vit_heads", "model.pretrain_images", "experts.count",
        "experts.epochs", "experts.teacher_epochs", "experts.batch", "experts.recovery_top_k", "experts.peers",
        "distill.pairs", "distill.sets", "distill.steps", "distill.inner_steps", "distill.batch",
        "distill.trajectories", "distill.match_epochs", "distill.ceo_every", "distill.ceo_top_k",
        "distill.checkpoint_every", "evaluate.students", "evaluate.steps", "evaluate.every", "evaluate.batch")),
    ("be at least 0", lambda x: x >= 0, (
        "data.train", "data.val", "data.test", "data.sample_rate", "data.seconds", "data.mels", "data.frames", "data.limit",
        "data.holdout_val", "data.holdout_test", "model.pretrain_epochs", "experts.teacher_count", "experts.weight_decay",
        "experts.warmup", "experts.tolerant_weight", "experts.recovery_weight", "experts.recovery_start",
        "experts.guidance_weight", "distill.lr_images", "distill.lr_texts", "distill.lr_correspondence",
        "distill.lr_inner_lr", "distill.ceo_beta", "evaluate.weight_decay")),
    ("exceed 0", lambda x: x > 0, (
        "model.tau", "experts.lr", "experts.lr_with_teachers", "experts.lr_infonce", "experts.guidance_tau",
        "distill.inner_lr_image", "distill.inner_lr_text", "evaluate.lr", "evaluate.lr_scales", "evaluate.tower_lr_scales")),
    ("lie in [0, 1)", lambda x: 0 <= x < 1, (
        "noise.rate", "experts.momentum", "experts.ema_decay", "distill.ema_decay", "evaluate.momentum")),
    ("lie in (0, 1]", lambda x: 0 < x <= 1, ("experts.clean_q", "experts.tolerant_q", "plan.utilization")),
    ("lie in [0, 1]", lambda x: 0 <= x <= 1, ("data.skew", "data.captions_rate")),
    ("lie in 0..2**32 - 1", lambda x: 0 <= x < 2**32, (
        "run.seed", "data.seed", "data.holdout_seed", "noise.seed", "text.seed")),
)


def resolve(config: ConfigDict) -> ConfigDict:
    """A locked copy with the expert recipe filled in and cross-checked.

    Raises UserError for an unknown recipe or an impossible combination.
    """
    config = config_dict.ConfigDict(config.to_dict())
    recipe = config.experts.recipe
    if recipe not in RECIPES:
        raise UserError(f"there is no expert recipe '{recipe}'; choose one of {', '.join(RECIPES)}.")
    config.experts.update(RECIPES[recipe])
    d, e = config.distill, config.experts
    if e.division == "clean" and e.clean_loss == "infonce":
        e.lr = e.lr_infonce
    _check_numbers(config)
    _require(config.run.dir.strip(), "run.dir is empty; set it to the folder that the run shall write to.")
    _require(d.batch <= d.pairs, f"distill.batch ({d.batch}) exceeds distill.pairs ({d.pairs}); lower the batch.")
    _require(d.max_start_epoch >= 1 and d.max_start_epoch + d.match_epochs - 1 <= e.epochs,
             f"matching up to epoch {d.max_start_epoch + d.match_epochs - 1} needs as many expert epochs, "
             f"but experts.epochs is {e.epochs}; raise it or lower distill.max_start_epoch.")
    choices = {
        "experts.division": (e.division, ("gmm", "oracle", "tolerant", "clean", "both")),
        "distill.init": (d.init, ("random", "division")),
        "distill.optimizer": (d.optimizer, ("adam", "sgd")),
        "evaluate.select_on": (config.evaluate.select_on, ("val", "test")),
        "data.name": (config.data.name, DATA),
        "model.tower": (config.model.tower, TOWERS),
        "evaluate.tower": (config.evaluate.tower, ("", *TOWERS)),
        "evaluate.mode": (config.evaluate.mode, ("projection", "full")),
        "model.mode": (config.model.mode, ("projection", "full")),
        "model.dtype": (config.model.dtype, ("float32", "bfloat16")),
        "distill.decay": (d.decay, ("cosine", "none")),
        "distill.gradient": (d.gradient, ("exact", "detached")),
        "distill.loss_merge": (d.loss_merge, ("separate", "merged")),
        "distill.loss": (d.loss, ("probability", "wbce", "bce", "nce", "cwcl", "kl", "mse")),
        "distill.correspondence": (d.correspondence, ("identity", "full", "lowrank")),
        "experts.clean_loss": (e.clean_loss, ("infonce", "gce", "mae", "rince", "ccl_tan", "acl")),
        "experts.tolerant_loss": (e.tolerant_loss, ("infonce", "gce", "mae", "rince", "ccl_tan", "acl")),
        "experts.store_dtype": (e.store_dtype, ("float32", "bfloat16")),
        "noise.protocol": (config.noise.protocol, ("image", "caption", "similar", "none", "natural")),
        "data.captions": (config.data.captions, ("", *DEGRADATIONS)),
        "text.pooling": (config.text.pooling, ("mean", "cls", "native")),
        "text.encoder": (config.text.encoder, ("bow", "precomputed", "transformer")),
        "experts.augment": (e.augment, AUGMENTS),
        "distill.augment": (d.augment, AUGMENTS),
    }
    for name, (value, allowed) in choices.items():
        own = name in ("data.name", "model.tower", "evaluate.tower") and is_path(value)
        said = ", ".join(choice or "''" for choice in allowed)
        _require(own or value in allowed, f"{name} must be one of {said}, not '{value}'.")
    for name in config.watch.writers:
        _require(name in WRITERS, f"watch.writers must be some of {', '.join(WRITERS)}, not '{name}'.")
    _require(d.correspondence != "lowrank" or 1 <= d.rank <= d.pairs,
             f"distill.rank must lie in 1..{d.pairs} (distill.pairs), not {d.rank}.")
    _require(config.noise.protocol != "none" or config.noise.rate == 0 or config.noise.file, "noise.protocol none goes "
             f"with rate 0, not {config.noise.rate}; set noise.rate to 0, or choose image, caption or similar.")
    _require(config.noise.protocol != "natural" or e.division != "oracle", "an oracle division needs to know which "
             "pairs are mismatched, and of natural noise nobody knows; choose another experts.recipe.")
    _require(d.restarts >= 0 and 0 < d.restart_factor < 1, f"distill.restarts ({d.restarts}) must be at least 0 and "
             f"distill.restart_factor ({d.restart_factor}) lie between 0 and 1.")
    _require(len(config.run.presets) > 0, "run.presets is empty; give at least one, such as mdw.")
    _require(config.evaluate.every <= config.evaluate.steps, f"evaluate.every ({config.evaluate.every}) exceeds "
             f"evaluate.steps ({config.evaluate.steps}): no student would be scored; lower it.")
    _require(not config.data.captions or config.text.encoder != "precomputed", "data.captions changes what captions say, "
             "and features from a file would not follow; set text.encoder to bow or transformer.")
    _require(not config.text.train or (config.text.encoder == "transformer" and not d.mixup),
             "text.train needs text.encoder=transformer, and distill.mixup (RepBlend) fixed text features; change one.")
    _require(config.model.mode == "projection" or not d.mixup, "distill.mixup (RepBlend) blends the features of a frozen "
             "backbone; set model.mode to projection.")
    _require(min(len(config.evaluate.lr_scales), len(config.evaluate.tower_lr_scales)) > 0,
             "evaluate.lr_scales or evaluate.tower_lr_scales is empty; give at least one, such as (1.0,).")
    _require(config.model.mode != "projection" or e.augment == "none",
             f"experts.augment ({e.augment}) needs images, which projection mode does not train on; set it to none.")
    return config.lock()


def _check_numbers(config: ConfigDict):
    """Raises UserError for a number out of its range, and for any, also in a list, that is NaN or infinite."""
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
    _require(config.model.patches and config.model.widths, "model.patches or model.widths is empty; give one of each "
             "for every stage, such as 4,2,2 and 64,128,128.")


def _require(holds: bool, message: str):
    if not holds:
        raise UserError(message)
