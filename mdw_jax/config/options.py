"""Every option that a config key can name. No jax here: the functions stand in tables of other modules.

Each tuple of names stands here once. `tests/config/test_options.py` checks that it agrees with the table of functions
that its comment cites. `CHOICES` says which tuple belongs to which config key. To add an option, add its name here and
its function to the table.
"""

from typing import NamedTuple

from mdw_jax.config.presets import PRESETS
from mdw_jax.config.recipes import RECIPES

# ---- data ------------------------------------------------------------------------------------------------------------

# data/registry.py: READERS
READERS = ("scenes", "karpathy", "folder", "hf", "tfds", "webdataset", "tones", "audio", "esc50")
FITS = ("crop", "squash")  # data/decoding.py: decode
ON_ERROR = ("stop", "skip")  # what to do about images and captions that cannot be used
GENERATED_READERS = ("scenes", "tones")  # their data are drawn on the spot, and theirs alone are mismatched by default
LOG_MEL_READERS = ("tones", "audio", "esc50")  # their images are log-mels, of one channel
CAPTION_DEGRADATIONS = ("generic", "truncated")  # data/structured_noise.py: DEGRADATIONS
NOISE_PROTOCOLS = ("none", "image", "caption", "near_duplicate", "natural")  # data/noise.py: PROTOCOLS
IMAGE_AUGMENTATIONS = ("flip", "crop_flip", "rand_augment")
AUDIO_AUGMENTATIONS = ("shift", "mask", "shift_mask")  # of log-mels
AUGMENTATIONS = ("none", *IMAGE_AUGMENTATIONS, *AUDIO_AUGMENTATIONS)  # data/augment.py: AUGMENTATIONS

# ---- models ----------------------------------------------------------------------------------------------------------

PRETRAINED = (  # models/image/pretrained.py: SPECS
    "nfnet_l0", "nf_resnet50", "nf_regnet_b1", "resnet18", "resnet50", "vit_tiny_patch16_224", "vit_small_patch16_224",
    "vit_small_patch32_224", "vit_base_patch16_224", "vit_base_patch32_224", "clip_vit_base_patch32",
    "clip_vit_base_patch16", "clip_vit_large_patch14")
TOWERS = ("convnet", "vit", "mobilenet", *PRETRAINED)  # models/build.py: TOWERS
TOWER_SETTINGS = {  # keys of the section `model` that are of single towers
    "convnet": ("patches", "widths", "pretrain_epochs", "pretrain_images"),
    "vit": ("vit_patch", "vit_width", "vit_depth", "vit_heads"),
    **dict.fromkeys(("mobilenet", *PRETRAINED), ("weights",)),
}
REMATS = ("none", "blocks")  # models/image/blocks.py
TOWERS_WITH_BLOCKS = ("vit", "mobilenet", *PRETRAINED)
MODES = ("projection", "full")  # models/dual_encoder.py
DTYPES = ("float32", "bfloat16")
FEATURE_DTYPES = ("float32", "float16")  # of frozen features, on the disk and in memory
TEXT_ENCODERS = ("bow", "precomputed", "transformer")  # models/text/features.py: TEXT_ENCODERS
TEXT_ENCODER_SETTINGS = {  # keys of the section `text` that are of single encoders
    "bow": ("dim", "seed"),
    "precomputed": ("path",),
    "transformer": ("path", "train", "pooling", "max_tokens"),
}
POOLINGS = ("mean", "cls", "native")  # models/text/encoder.py

# ---- method ----------------------------------------------------------------------------------------------------------

DIVISIONS = ("gmm", "oracle", "tolerant", "clean", "both")  # method/division.py, method/expert_step.py
DIVIDING = ("gmm", "oracle")  # those that tell clean from risky pairs; the others treat all pairs alike
EXPERT_LOSSES = ("infonce", "gce", "mae", "rince", "ccl_tan", "acl")  # method/losses.py: EXPERT_LOSSES
# method/losses.py: DISTILLATION_LOSSES
DISTILLATION_LOSSES = ("probability", "wbce", "wbce_published", "bce", "nce", "cwcl", "kl", "mse")
OBJECTIVES = ("trajectories", "covariance")  # pipeline/outer_step.py: OBJECTIVES, of distillation
STUDENT_OPTIMIZERS = ("sgd", "momentum", "adam")  # method/matching.py: STUDENT_OPTIMIZERS
GRADIENTS = ("exact", "detached")  # method/matching.py: unroll
LOSS_MERGES = ("separate", "merged", "merged_data")  # method/matching.py: matching_loss
BATCHES = ("rounds", "fresh")  # method/matching.py: minibatches
INNER_LR_FORMS = ("log", "linear")  # method/distill.py: init_state
PIXEL_UNITS = ("unit", "tower")  # method/distill.py: pixel_std
ON_DIVERGENCE = ("stop", "keep")  # pipeline/distill_loop.py: may_end
EXPERT_ORDERS = ("drawn", "cycled")  # method/distill.py: schedule
CORRESPONDENCES = ("identity", "full", "lowrank")  # method/correspondence.py
CORRESPONDENCE_INITS = ("experts", "identity")  # pipeline/distill_loop.py
CORRESPONDENCE_TEACHERS = ("experts", "matched", "closed_form", "both")  # pipeline/correspondence.py
INITS = ("random", "division", "division_top", "k_means", "herding", "facility_location")  # method/selection.py: INITS
PROTOTYPES = "prototypes"  # pipeline/prototypes.py
SET_OPTIMIZERS = ("adam", "sgd")  # method/distill.py: SET_OPTIMIZERS, of the distilled set
DECAYS = ("cosine", "none")  # method/distill.py: DECAYS
SEARCHES = ("auto", "exact", "ann", "sample")  # method/caption_search.py: SEARCHES, beside auto
EXPERT_INITS = ("random", "closed_form", "auto")  # method/generation.py: init_state
EXPERT_OPTIMIZERS = ("sgd", "adam")  # method/expert_step.py: EXPERT_OPTIMIZERS
# pipeline/preset_run.py: SCORER_RECIPES
FILTER_SCORES = ("cosine", "dtcl_cosine", "neg_clip_loss", "closed_form")
CORESETS = ("random", "herding", "k_center", "forgetting", "clip_filter")  # method/coresets.py: CORESETS
SELECT_ON = ("val", "test")  # method/students.py
SCHEDULES = ("constant", "lors", "repblend", "vld")  # method/student_schedule.py: PUBLISHED, beside constant

# ---- output ----------------------------------------------------------------------------------------------------------

WRITERS = ("tensorboard", "wandb")  # io/metrics.py: WRITERS, beside metrics.csv
EXPORT_FORMATS = ("safetensors", "folder", "parquet", "webdataset")  # export/formats.py: FORMATS
# analysis/cost/devices.py: DEVICES
DEVICES = ("here", "a100", "h100", "h200", "tpu_v4", "tpu_v5e", "tpu_v5p", "tpu_v6e", "cpu")


class Choice(NamedTuple):
    """What one config key can name.

    Attributes:
        names: the options of this package; "" stands for none.
        noun: what they are, for messages.
        plugin: whether `module:function` is an option too.
    """

    names: tuple[str, ...]
    noun: str
    plugin: bool = False


CHOICES: dict[str, Choice] = {
    "run.presets": Choice(tuple(PRESETS), "preset", plugin=True),
    "data.name": Choice(READERS, "data reader", plugin=True),
    "data.fit": Choice(FITS, "way to make images square"),
    "data.on_error": Choice(("", *ON_ERROR), "way to treat what cannot be used"),
    "data.captions": Choice(("", *CAPTION_DEGRADATIONS), "way to degrade captions"),
    "noise.protocol": Choice(("", *NOISE_PROTOCOLS), "noise protocol"),
    "filter.score": Choice(("", *FILTER_SCORES), "filter score"),
    "text.encoder": Choice(TEXT_ENCODERS, "text encoder"),
    "text.pooling": Choice(POOLINGS, "pooling"),
    "text.dtype": Choice(FEATURE_DTYPES, "dtype of features"),
    "model.tower": Choice(TOWERS, "image tower", plugin=True),
    "model.mode": Choice(MODES, "mode"),
    "model.dtype": Choice(DTYPES, "dtype"),
    "model.feature_dtype": Choice(FEATURE_DTYPES, "dtype of features"),
    "experts.recipe": Choice(tuple(RECIPES), "expert recipe"),
    "experts.augment": Choice(AUGMENTATIONS, "augmentation", plugin=True),
    "experts.init": Choice(EXPERT_INITS, "start of the experts"),
    "experts.optimizer": Choice(EXPERT_OPTIMIZERS, "optimizer of the experts"),
    "experts.decay": Choice(DECAYS, "learning rate decay"),
    "experts.division": Choice(DIVISIONS, "division"),
    "experts.clean_loss": Choice(EXPERT_LOSSES, "expert loss", plugin=True),
    "experts.tolerant_loss": Choice(EXPERT_LOSSES, "expert loss", plugin=True),
    "experts.recovery_search": Choice(SEARCHES, "way to search captions"),
    "experts.store_dtype": Choice(DTYPES, "dtype"),
    "distill.objective": Choice(OBJECTIVES, "objective of distillation"),
    "distill.remat": Choice(REMATS, "part of the tower to compute again"),
    "distill.gradient": Choice(GRADIENTS, "gradient"),
    "distill.inner_optimizer": Choice(STUDENT_OPTIMIZERS, "student optimizer", plugin=True),
    "distill.loss_merge": Choice(LOSS_MERGES, "loss merge"),
    "distill.batches": Choice(BATCHES, "way to draw batches"),
    "distill.inner_lr_form": Choice(INNER_LR_FORMS, "form of step sizes"),
    "distill.pixel_units": Choice(PIXEL_UNITS, "unit of pixels"),
    "distill.on_divergence": Choice(ON_DIVERGENCE, "end of a diverging set"),
    "distill.expert_order": Choice(EXPERT_ORDERS, "order of the experts"),
    "distill.loss": Choice(DISTILLATION_LOSSES, "distillation loss", plugin=True),
    "distill.correspondence": Choice(CORRESPONDENCES, "correspondence"),
    "distill.correspondence_init": Choice(CORRESPONDENCE_INITS, "start of P"),
    "distill.correspondence_teacher": Choice(CORRESPONDENCE_TEACHERS, "teacher of P"),
    "distill.init": Choice((*INITS, PROTOTYPES), "start of distillation"),
    "distill.optimizer": Choice(SET_OPTIMIZERS, "optimizer of the distilled set"),
    "distill.decay": Choice(DECAYS, "learning rate decay"),
    "distill.augment": Choice(AUGMENTATIONS, "augmentation", plugin=True),
    "distill.init_augment": Choice(AUGMENTATIONS, "augmentation", plugin=True),
    "evaluate.select_on": Choice(SELECT_ON, "split to select on"),
    "evaluate.schedule": Choice(SCHEDULES, "schedule of students"),
    "evaluate.tower": Choice(("", *TOWERS), "image tower", plugin=True),
    "evaluate.mode": Choice(MODES, "mode"),
    "watch.writers": Choice(WRITERS, "metrics writer", plugin=True),
    "export.formats": Choice(EXPORT_FORMATS, "export format"),
    "plan.device": Choice(DEVICES, "device"),
}
