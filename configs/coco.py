"""COCO (Karpathy's split) in the setting of the published tables. Budgets: --config.distill.pairs=100, 200, 500 or 1000.

    mdw run --config configs/coco.py --config.data.annotations=dataset_coco.json \
        --config.data.images=train2014.zip,val2014.zip

At 500 pairs LoRS's script distils at temperature 0.1 and then evaluates at 0.07; here it is 0.07 throughout.
"""

from mdw_jax.config import published

# LoRS's constants for COCO by budget, and RepBlend's, which are the same but for the batch.
LORS = {
    0: {"lr_images": 73.0, "lr_texts": 1000.0, "lr_correspondence": 5.0, "rank": 10, "alpha": 1.0},
    200: {"lr_correspondence": 50.0, "rank": 20},
    500: {"lr_images": 365.0, "lr_texts": 5000.0, "lr_correspondence": 500.0, "rank": 40},
}


def get_config():
    c = published()
    c.run.dir = "runs/coco"
    c.data.name = "karpathy"
    c.data.stream = True  # 113 287 images of 224 px are 16 GiB
    overrides = [f"{preset}:distill.loss_merge=merged" for preset in ("lors", "repblend")]
    overrides += [f"{preset}@{budget}:distill.{key}={value}"
                  for preset in ("lors", "repblend") for budget, settings in LORS.items()
                  for key, value in settings.items()]
    c.run.preset_overrides = (*overrides, "lors@500:distill.batch=30")
    c.plan.images = 113_287
    c.plan.captions = 566_747
    return c
