"""Every choice that a config key has, by name. No jax here: tables of functions stand in the modules that implement them."""

PRETRAINED = (  # names of mdw_jax/towers/pretrained.py
    "nfnet_l0", "nf_resnet50", "nf_regnet_b1", "resnet18", "resnet50", "vit_tiny_patch16_224", "vit_small_patch16_224",
    "vit_small_patch32_224", "vit_base_patch16_224", "vit_base_patch32_224", "clip_vit_base_patch32",
    "clip_vit_base_patch16", "clip_vit_large_patch14")

TOWERS = ("convnet", "vit", "mobilenet", *PRETRAINED)

DATA = ("scenes", "karpathy", "folder", "hf", "tfds", "webdataset", "tones", "audio", "esc50")

DEGRADATIONS = ("generic", "truncated")  # what training captions can be made: mdw_jax/data/structured.py

WRITERS = ("tensorboard", "wandb")  # beside metrics.csv: see mdw_jax/watch.py

AUGMENTS = ("none", "flip", "crop_flip", "shift", "mask", "shift_mask")
