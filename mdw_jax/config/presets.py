"""Presets: published methods, baselines and references, each a few overrides of one config. One is a row of a table.

A preset says everything that makes it what it is and takes the rest (data, experts' length, outer steps, evaluation)
from the config, so that all presets of a table get the same. `mdw` is the config itself. The peers' constants are those
of their own code (Flickr30K, NFNet-L0); other data wants other learning rates, which `run.preset_overrides` sets preset by preset.
Where a peer's code departs from its own method by mistake, the method is what stands here, with a comment.
"""

from ml_collections import ConfigDict

from mdw_jax.config import base, resolve
from mdw_jax.errors import UserError

# Plain SGD with momentum 0.5, one trajectory an outer step, one epoch ahead, step sizes from 0.1 (all four peers).
# Not the peers': pixels stay in [0, 1] (nobody clamps, so their images are none), and step sizes are learned by their
# logarithm, where 1 is about their 0.01 on the step size itself; theirs can turn negative.
_MTT = {
    "experts.recipe": "infonce",
    "distill.trajectories": 1, "distill.inner_steps": 8, "distill.match_epochs": 1, "distill.max_start_epoch": 2,
    "distill.loss_merge": "separate", "distill.init": "random", "distill.correspondence": "identity", "distill.loss": "nce",
    "distill.optimizer": "sgd", "distill.decay": "none", "distill.lr_inner_lr": 1.0,
    "distill.inner_lr_image": 0.1, "distill.inner_lr_text": 0.1,
    "distill.mixup": False, "distill.ema_decay": 0.0, "distill.ceo": False, "distill.augment": "none",
}
# Learning rates are per pixel of the normalized image; ours are in [0, 1], where 0.073 of one is the same step.
_PIXEL = 0.073
_VLD = _MTT | {
    # VLD's student has logit scale 2.66 in the unroll and 14.29 everywhere else: here it is 14.29 throughout.
    "distill.gradient": "exact", "distill.batch": 100, "distill.lr_images": 1000 * _PIXEL, "distill.lr_texts": 1000.0,
}
_TESLA = _VLD | {"distill.gradient": "detached", "distill.batch": 20}
_LORS = _TESLA | {
    # LoRS pairs image and text trajectories by unsorted file lists, so partly of different experts: here of one.
    "distill.correspondence": "lowrank", "distill.loss": "wbce", "distill.lr_images": 100 * _PIXEL,
    "distill.lr_texts": 100.0, "distill.lr_correspondence": 10.0, "distill.rank": 10, "distill.alpha": 3.0,
}
_LORS_AT = {  # constants by budget: the largest M that is not above the one asked
    200: {"distill.lr_images": 1000 * _PIXEL, "distill.lr_texts": 1000.0, "distill.rank": 5, "distill.alpha": 1.0},
    500: {"distill.lr_images": 1000 * _PIXEL, "distill.lr_texts": 1000.0, "distill.lr_correspondence": 100.0,
          "distill.rank": 20, "distill.alpha": 0.01, "distill.batch": 40, "distill.max_start_epoch": 3},
}

PEERS = {"vld": _VLD, "tesla": _TESLA, "lors": _LORS, "repblend": _LORS | {"distill.mixup": True}}
_BY_BUDGET = {"lors": _LORS_AT, "repblend": {m: {k: v for k, v in at.items() if k != "distill.batch"}
                                             for m, at in _LORS_AT.items()}}
_ON_INFONCE = {"experts.recipe": "infonce"}
PRESETS: dict[str, dict] = {
    "random": {}, "herding": {}, "k_center": {},  # chosen by nothing, or by frozen features
    "forgetting": _ON_INFONCE, "clip_filter": _ON_INFONCE,  # chosen by experts
    **PEERS,
    **{f"{name}_dtcl": {**preset, "experts.recipe": "dtcl"} for name, preset in PEERS.items()},  # on our experts
    # Our distillation on the peers' experts, with nothing else of ours: what is left is the experts' doing.
    "infonce": {"experts.recipe": "infonce", "distill.correspondence": "identity", "distill.loss": "nce",
                "distill.init": "random", "distill.ceo": False},
    "mdw": {},
    # These two distil nothing: they score what training on all pairs reaches.
    "experts": {},
    "full": {"noise.rate": 0.0, "noise.file": "", "experts.recipe": "infonce"},
}
CORESETS = ("random", "herding", "k_center", "forgetting", "clip_filter")  # real pairs, chosen
WITHOUT_EXPERTS = ("random", "herding", "k_center")
DISTILLED = tuple(name for name in PRESETS if name not in ("experts", "full"))  # all that end in a small set
_NAMES = {"vld": "VLD", "tesla": "TESLA", "lors": "LoRS", "repblend": "RepBlend"}
LABELS = {
    "random": "random pairs", "herding": "herding", "k_center": "k-center", "forgetting": "forgetting",
    "clip_filter": "similarity filter, k-means", **_NAMES,
    **{f"{name}_dtcl": f"{label} on our experts" for name, label in _NAMES.items()},
    "infonce": "InfoNCE experts, identity P", "mdw": "MDW",
    "experts": "the noisy experts themselves (ceiling)", "full": "full clean data",
}


def preset_config(config: ConfigDict, preset: str) -> ConfigDict:
    """The resolved config of one preset: the config, what the preset says, then what `run.preset_overrides` says of it.

    Raises UserError for an unknown preset, or a `run.preset_overrides` entry that is not `preset:key=value` or
    `preset@budget:key=value`, which holds from that budget up.
    """
    if preset not in PRESETS:
        raise UserError(f"there is no preset '{preset}'; set run.presets to some of {', '.join(PRESETS)}.")
    changed = config.copy_and_resolve_references().unlock()
    pairs = config.distill.pairs
    said = dict(PRESETS[preset])
    for budget, constants in _BY_BUDGET.get(preset.removesuffix("_dtcl"), {}).items():
        said |= constants if pairs >= budget else {}
    if "distill.batch" in said:
        said["distill.batch"] = min(said["distill.batch"], pairs)
        said["distill.rank"] = min(said.get("distill.rank", 1), pairs)
    changed.update_from_flattened_dict(said)
    for entry in config.run.preset_overrides:
        name, budget, key, value = _tuned(entry)
        if name == preset and pairs >= budget:
            changed.update_from_flattened_dict({key: value})
    return resolve(changed)


def _tuned(entry: str):
    """`preset@budget:section.key=value` -> (preset, budget or 0, "section.key", value of the key's type)."""
    name, _, setting = entry.partition(":")
    name, at, budget = name.partition("@")
    key, _, text = setting.partition("=")
    section, _, leaf = key.partition(".")
    try:
        default = base()[section][leaf]
        value = {"true": True, "false": False}[text] if isinstance(default, bool) else type(default)(text)
        least = int(budget) if at else 0
        if name not in PRESETS or isinstance(default, tuple):
            raise KeyError(name)
    except (KeyError, ValueError, AttributeError):
        raise UserError(f"run.preset_overrides holds '{entry}'; write preset:section.key=value, such as "
                        "lors:distill.lr_images=0.03, or lors@200:... for what holds from 200 pairs up.") from None
    return name, least, key, value
