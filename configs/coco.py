"""COCO (Karpathy's split) in the setting of the published tables. Budgets: --config.distill.pairs=100, 200, 500 or 1000.

    mdw run --config configs/coco.py --config.data.annotations=dataset_coco.json \
        --config.data.images=train2014.zip,val2014.zip

At 500 pairs LoRS's and RepBlend's scripts distil at temperature 0.1 and then evaluate at 0.07, on images that are not
augmented; so do the presets "..., as published", and the others have 0.07 throughout.
"""

from mdw_jax.config import published

# LoRS's constants for COCO by budget, and RepBlend's, which are the same but for the batch. Scripts are of 99, 199 and
# 499 pairs. Rates of images are per normalized pixel; presets that count in pixels of [0, 1] have 0.073 of them.
LORS = {
    0: {"lr_images": 1000.0, "lr_texts": 1000.0, "lr_correspondence": 5.0, "rank": 10, "alpha": 1.0, "max_start_epoch": 2},
    199: {"lr_correspondence": 50.0, "rank": 20},
    499: {"lr_images": 5000.0, "lr_texts": 5000.0, "lr_correspondence": 500.0, "rank": 40},
}
AS_PUBLISHED_499 = {"logit_scale": 10.0, "init_augment": "none"}


def preset_overrides(preset, published):
    """Entries of `run.preset_overrides` for a method, or for its preset "..., as published"."""
    name, merge, pixel = (f"{preset}_published", "merged_data", 1.0) if published else (preset, "merged", 0.073)
    yield f"{name}:distill.loss_merge={merge}"
    for budget, settings in LORS.items():
        for key, value in settings.items():
            yield f"{name}@{budget}:distill.{key}={pixel * value if key == 'lr_images' else value}"
    for key, value in AS_PUBLISHED_499.items() if published else ():
        yield f"{name}@499:distill.{key}={value}"
    if preset == "lors":
        yield f"{name}@499:distill.batch=30"


def get_config():
    c = published()
    c.run.dir = "runs/coco"
    c.data.name = "karpathy"
    c.data.stream = True  # 113 287 images of 224 px are 16 GiB
    c.noise.protocol, c.noise.rate = "image", 0.4  # the study: drawn on purpose
    c.run.preset_overrides = tuple(entry for preset in ("lors", "repblend") for published in (False, True)
                                   for entry in preset_overrides(preset, published))
    c.plan.images = 113_287
    c.plan.captions = 566_747
    return c
