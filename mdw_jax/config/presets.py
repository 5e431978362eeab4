"""Presets: published methods, baselines and references, each a few overrides of one config. One is a row of a table.

A preset states everything that defines its method and takes the rest (data, length of the experts' training, outer
steps, evaluation) from the config, so that all presets of a table share it. `mdw` is the config itself. The constants
of published methods are those of their own code (Flickr30K, NFNet-L0); other data needs other learning rates, which
`run.preset_overrides` sets preset by preset. Where published code departs from its own method by mistake, the method is
what stands here, with a comment, and the code in the preset `..._published`.

To add a preset, add one entry to `PRESETS`, with the source of each constant.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mdw_jax.config.plugins import is_path, made_by, unknown_option

KINDS = ("distilled", "coreset", "reference")


@dataclasses.dataclass(frozen=True)
class PresetSpec:
    """What one preset is.

    Attributes:
        overrides: {dotted config key: value}, for every key in which the preset differs from the config.
        label: its name in tables; empty: the preset's own name.
        kind: "distilled" (learns a small set), "coreset" (chooses real pairs) or "reference" (no set: scores of the
            expert networks themselves, or of the closed form).
        needs_experts: whether experts are trained for it.
        coreset: of a coreset, the function that chooses: a name in `options.CORESETS`, or `module:function`.
        closed_form: of a reference, whether it scores the closed form of its pairs rather than experts.
        overrides_by_pairs: {M: overrides that hold if distill.pairs is at least M}.
    """

    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label: str = ""
    kind: str = "distilled"
    needs_experts: bool = True
    coreset: str | None = None
    closed_form: bool = False
    overrides_by_pairs: Mapping[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a preset's kind is one of {', '.join(KINDS)}, not {self.kind!r}")
        if not isinstance(self.label, str) or not self.label.isprintable():
            raise ValueError(f"a preset's label is text on one line, not {self.label!r}")
        if not (self.coreset is None or isinstance(self.coreset, str)):
            raise ValueError(f"a preset's coreset is a name or module:function, not {self.coreset!r}")
        if (self.kind == "coreset") != (self.coreset is not None):
            raise ValueError("a preset names a coreset function if, and only if, its kind is 'coreset'")
        if not isinstance(self.closed_form, bool) or (self.closed_form and self.kind != "reference"):
            raise ValueError("closed_form is False, or, of a preset of kind 'reference', True")
        without = (self.kind == "coreset" or self.closed_form
                   or _is_overrides(self.overrides) and self.overrides.get("distill.objective") == "covariance")
        if not isinstance(self.needs_experts, bool) or not (self.needs_experts or without):
            raise ValueError("needs_experts is True, or, of a preset of kind 'coreset', of a closed form or with "
                             "distill.objective covariance, False")
        if self.closed_form and self.needs_experts:
            raise ValueError("a closed form has no experts: set needs_experts to False")
        if not _is_overrides(self.overrides):
            raise ValueError(f"a preset's overrides are a dict of config keys, not {self.overrides!r}")
        by_pairs = self.overrides_by_pairs
        if not isinstance(by_pairs, Mapping) or not all(type(pairs) is int and _is_overrides(overrides)
                                                        for pairs, overrides in by_pairs.items()):
            raise ValueError("a preset's overrides_by_pairs are a dict of whole numbers, each with a dict of config "
                             f"keys, not {by_pairs!r}")

    @property
    def has_sets(self) -> bool:
        """Whether it ends in small sets of pairs, learned or chosen."""
        return self.kind != "reference"

    def overrides_for(self, pairs: int) -> dict[str, Any]:
        """All overrides at a budget of `pairs`; a larger matching budget wins. Batch and rank are cut to `pairs`."""
        overrides = dict(self.overrides)
        for budget in sorted(self.overrides_by_pairs):
            overrides |= self.overrides_by_pairs[budget] if pairs >= budget else {}
        for key in ("distill.batch", "distill.rank"):
            if key in overrides:
                overrides[key] = min(overrides[key], pairs)
        return overrides


def _is_overrides(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


# Plain SGD with momentum 0.5, one trajectory per outer step, one epoch ahead, step sizes from 0.1 (all four methods).
# Different from their code: pixels stay in [0, 1] (none of them clamps, so their "images" are arrays), and step sizes
# are learned by their logarithm, where 1 is about their 0.01 on the step size itself; theirs can turn negative.
_MTT = {
    "experts.recipe": "infonce",
    "distill.trajectories": 1, "distill.inner_steps": 8, "distill.match_epochs": 1, "distill.max_start_epoch": 2,
    "distill.loss_merge": "separate", "distill.init": "random", "distill.correspondence": "identity",
    "distill.correspondence_init": "identity", "distill.rank": 1,
    "distill.loss": "nce", "distill.optimizer": "sgd", "distill.decay": "none", "distill.lr_inner_lr": 1.0,
    "distill.inner_lr_image": 0.1, "distill.inner_lr_text": 0.1,
    "distill.mixup": False, "distill.ema_decay": 0.0, "distill.ceo": False, "distill.augment": "none",
}
# Their learning rates are per pixel of the normalized image; here pixels are in [0, 1], where 0.073 of it is that step.
_PIXEL = 0.073
_VLD = _MTT | {
    # VLD's student has logit scale 2.66 in the unroll and 14.29 everywhere else: here it is 14.29 throughout. (Its rate of
    # 1000 belongs to the former: at ours pixels move several times as far.)
    "distill.gradient": "exact", "distill.batch": 100, "distill.lr_images": 1000 * _PIXEL, "distill.lr_texts": 1000.0,
}
_TESLA = _VLD | {"distill.gradient": "detached", "distill.batch": 20}
_LORS = _TESLA | {
    # LoRS pairs image and text trajectories by unsorted file lists, so partly of different experts: here of one.
    "distill.correspondence": "lowrank", "distill.loss": "wbce", "distill.lr_images": 100 * _PIXEL,
    "distill.lr_texts": 100.0, "distill.lr_correspondence": 10.0, "distill.rank": 10, "distill.alpha": 3.0,
}
_REPBLEND = _LORS | {"distill.mixup": True}
_REPBLEND_BY_PAIRS = {  # scripts of 99, 199 and 499 pairs: one fewer than published tables say, to pay for P
    199: {"distill.lr_images": 1000 * _PIXEL, "distill.lr_texts": 1000.0, "distill.rank": 5, "distill.alpha": 1.0},
    499: {"distill.lr_images": 1000 * _PIXEL, "distill.lr_texts": 1000.0, "distill.lr_correspondence": 100.0,
          "distill.rank": 20, "distill.alpha": 0.01, "distill.max_start_epoch": 3},
}
_LORS_BY_PAIRS = {199: _REPBLEND_BY_PAIRS[199], 499: _REPBLEND_BY_PAIRS[499] | {"distill.batch": 40}}
# The scripts to the letter: what _MTT changes of them is undone. Rates are per normalized pixel, as the scripts have
# them, and their networks' normalization is the tower's own (theirs is CLIP's whatever the tower: 0.073 for NFNet's
# 0.051). Left out: dropout 0.1 in the heads of experts and unroll, which takes a part of the gradient; LoRS's pairing of
# image and text trajectories by unsorted lists of files; float32 throughout, where model.dtype is another.
_AS_PUBLISHED = {
    "distill.clip_images": False, "distill.inner_lr_form": "linear", "distill.lr_inner_lr": 0.01,
    "distill.pixel_units": "tower", "distill.expert_order": "cycled", "distill.inner_optimizer": "sgd",
    "distill.on_divergence": "keep",  # they leave the loop at the first NaN, and what was evaluated before counts
    # Their data sets return augmented images, also for the start. (Experts are trained on such images where the config
    # says so, as published() does; features of a frozen tower are computed once, from images as they are.)
    "distill.init_augment": "rand_augment",
    # Step sizes as learned, SGD with momentum 0.9 and weight decay 5e-4 (epoch.py of each); of all evaluations val chooses
    # one, or test, with evaluate.select_on=test, as theirs.
    "evaluate.lr_scales": (1.0,), "evaluate.momentum": 0.9, "evaluate.weight_decay": 5e-4, "evaluate.batch": 128,
}
_VLD_PUBLISHED = _VLD | _AS_PUBLISHED | {
    # README's command (--lr_img=1000 --lr_txt=1000 --lr_lr=1e-02), distill.py. Its student in the unroll multiplies
    # cosines by log(1 / 0.07), the parameter, and not by its exponential; it draws each mini-batch anew.
    "distill.lr_images": 1000.0, "distill.logit_scale": 2.6592600369327783, "distill.batches": "fresh",
    "evaluate.schedule": "vld", "evaluate.batch": 64,
}
_LORS_PUBLISHED = _LORS | _AS_PUBLISHED | {  # sh/distill_flickr_lors_100.sh
    "distill.lr_images": 100.0, "distill.loss": "wbce_published", "evaluate.schedule": "lors",
}
_REPBLEND_PUBLISHED = _LORS_PUBLISHED | {  # scripts/distill_flickr_repblend.sh
    "distill.mixup": True, "evaluate.schedule": "repblend",
}
_REPBLEND_PUBLISHED_BY_PAIRS = {pairs: overrides | {"distill.lr_images": 1000.0}
                                for pairs, overrides in _REPBLEND_BY_PAIRS.items()}
_LORS_PUBLISHED_BY_PAIRS = {pairs: overrides | {"distill.lr_images": 1000.0}  # sh/distill_flickr_lors_{200,500}.sh
                            for pairs, overrides in _LORS_BY_PAIRS.items()}
# Of the filter scores, this one finds the most mismatched pairs (128 px Flickr8k, 40 %: 82.6 % of them, the experts of
# this work 82.3, negCLIPLoss 79.6, cosines of InfoNCE experts 79.3), and it trains nothing.
_FILTER = {"filter.score": "closed_form"}
_UNDRAWN = {"noise.rate": 0.0, "noise.file": ""}
# CovMatch (NeurIPS 25), from its paper; nothing but images and texts is learned, and no expert is trained.
_COVMATCH = {
    "distill.objective": "covariance", "distill.covariance_scale": 2.0, "distill.mean_weight": 0.1,
    "distill.network_steps": 50, "distill.lr_images": 1.0 * _PIXEL, "distill.lr_texts": 1.0,
    "distill.optimizer": "sgd", "distill.decay": "none", "distill.init": "random",
    "distill.correspondence": "identity", "distill.correspondence_init": "identity", "distill.rank": 1,
    "distill.loss": "nce",
    "distill.inner_lr_image": 0.1, "distill.inner_lr_text": 0.1,
    "distill.mixup": False, "distill.ema_decay": 0.0, "distill.ceo": False, "distill.augment": "none",
}
_COVMATCH_BY_PAIRS = {199: {"distill.covariance_scale": 1.0}, 499: {"distill.mean_weight": 0.6}}
_START = {"distill.steps": 0, "distill.ceo": False}  # nothing is distilled
_TAUGHT = {"distill.correspondence": "full", "distill.correspondence_init": "experts", "distill.loss": "probability"}
_INFONCE = {"experts.recipe": "infonce"}  # experts trained with InfoNCE on all pairs
_DTCL = {"experts.recipe": "dtcl"}  # the experts of this work

PRESETS: dict[str, PresetSpec] = {
    # Real pairs, chosen at random, by frozen features, or by experts.
    "random": PresetSpec(label="random pairs", kind="coreset", coreset="random", needs_experts=False),
    "herding": PresetSpec(label="herding", kind="coreset", coreset="herding", needs_experts=False),
    "k_center": PresetSpec(label="k-center", kind="coreset", coreset="k_center", needs_experts=False),
    "forgetting": PresetSpec(_INFONCE, "forgetting", kind="coreset", coreset="forgetting"),
    "clip_filter": PresetSpec(_INFONCE, "similarity filter, k-means", kind="coreset", coreset="clip_filter"),
    # Published distillation methods, on their own experts and on those of this work.
    "vld": PresetSpec(_VLD, "VLD"),
    "tesla": PresetSpec(_TESLA, "TESLA"),
    "lors": PresetSpec(_LORS, "LoRS", overrides_by_pairs=_LORS_BY_PAIRS),
    "repblend": PresetSpec(_REPBLEND, "RepBlend", overrides_by_pairs=_REPBLEND_BY_PAIRS),
    # The same, as their scripts have them: with what their code does by mistake, and their evaluation.
    "vld_published": PresetSpec(_VLD_PUBLISHED, "VLD, as published"),
    "lors_published": PresetSpec(_LORS_PUBLISHED, "LoRS, as published", overrides_by_pairs=_LORS_PUBLISHED_BY_PAIRS),
    "repblend_published": PresetSpec(_REPBLEND_PUBLISHED, "RepBlend, as published",
                                     overrides_by_pairs=_REPBLEND_PUBLISHED_BY_PAIRS),
    "vld_dtcl": PresetSpec(_VLD | _DTCL, "VLD on our experts"),
    "tesla_dtcl": PresetSpec(_TESLA | _DTCL, "TESLA on our experts"),
    "lors_dtcl": PresetSpec(_LORS | _DTCL, "LoRS on our experts", overrides_by_pairs=_LORS_BY_PAIRS),
    "repblend_dtcl": PresetSpec(_REPBLEND | _DTCL, "RepBlend on our experts", overrides_by_pairs=_REPBLEND_BY_PAIRS),
    # What a user does first: drop the pairs that score worst, as many as are mismatched, then a published method.
    "filter_random": PresetSpec(_FILTER, "filter, then random pairs", kind="coreset", coreset="random",
                                needs_experts=False),
    "filter_vld": PresetSpec(_VLD | _FILTER, "filter, then VLD"),
    "filter_tesla": PresetSpec(_TESLA | _FILTER, "filter, then TESLA"),
    "filter_lors": PresetSpec(_LORS | _FILTER, "filter, then LoRS", overrides_by_pairs=_LORS_BY_PAIRS),
    "filter_repblend": PresetSpec(_REPBLEND | _FILTER, "filter, then RepBlend",
                                  overrides_by_pairs=_REPBLEND_BY_PAIRS),
    "covmatch": PresetSpec(_COVMATCH, "CovMatch", needs_experts=False, overrides_by_pairs=_COVMATCH_BY_PAIRS),
    # The distillation of this work on InfoNCE experts, without its other parts: the difference to mdw is the experts'.
    "infonce": PresetSpec(_INFONCE | {"distill.correspondence": "identity", "distill.correspondence_init": "identity",
                                      "distill.loss": "nce", "distill.init": "random", "distill.ceo": False},
                          "InfoNCE experts, identity P"),
    "mdw": PresetSpec(label="MDW"),
    # P from teachers, and no outer step: real pairs, and prototypes. What is learned has to beat both.
    "correspond": PresetSpec(_START | {"distill.init": "division"}, "real pairs, P from the experts"),
    "prototypes": PresetSpec(_START | {"distill.init": "prototypes"}, "prototypes, P from the experts"),
    "correspond_infonce": PresetSpec(_INFONCE | _START | {"distill.init": "random"},
                                     "random pairs, P from InfoNCE experts"),
    # Published methods whose P is taken from their own experts.
    "vld_taught": PresetSpec(_VLD | _TAUGHT, "VLD, P from its experts"),
    "repblend_taught": PresetSpec(_REPBLEND | _TAUGHT, "RepBlend, P from its experts",
                                  overrides_by_pairs=_REPBLEND_BY_PAIRS),
    # These distill nothing: they score what training on all pairs, or solving from them, reaches. "Before noise was drawn":
    # on the same pairs without the mismatches that a run makes on purpose. Whatever noise the data have of their own stays,
    # so that no label calls pairs clean that nobody has checked.
    "experts": PresetSpec(label="the experts themselves", kind="reference"),
    "full": PresetSpec(_INFONCE | _UNDRAWN, "InfoNCE experts, before noise was drawn", kind="reference"),
    "closed_form": PresetSpec(label="closed form on the training pairs", kind="reference", needs_experts=False,
                              closed_form=True),
    "closed_form_full": PresetSpec(_UNDRAWN, "closed form, before noise was drawn", kind="reference", needs_experts=False,
                                   closed_form=True),
}
LABELS = {name: spec.label for name, spec in PRESETS.items()}
CORESETS = tuple(name for name, spec in PRESETS.items() if spec.kind == "coreset")
DISTILLED = tuple(name for name, spec in PRESETS.items() if spec.has_sets)  # all that end in small sets
WITHOUT_EXPERTS = tuple(name for name, spec in PRESETS.items() if not spec.needs_experts)


def preset_spec(name: str) -> PresetSpec:
    """The preset called `name`.

    Args:
        name: a key of `PRESETS`, or `module:function` naming a function that takes nothing and returns a `PresetSpec`.

    Raises:
        UserError: there is no such preset, or the function cannot be imported, fails, or returns something else.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not is_path(name):
        raise unknown_option(name, "run.presets", "preset", PRESETS)
    spec = made_by(name, "run.presets", PresetSpec)
    return dataclasses.replace(spec, label=spec.label or name)


def safe_name(name: str) -> str:
    """A name of an option as part of a directory's name: "my_module:method" becomes "my_module.method"."""
    return name.replace(":", ".")
