"""Flickr30K in the setting of the published tables. Budgets: --config.distill.pairs=100, 200, 500 or 1000.

    mdw plan --config configs/flickr30k.py
    mdw run --config configs/flickr30k.py --config.data.annotations=dataset_flickr30k.json \
        --config.data.images=flickr30k-images

The baselines' constants, by budget, are those of mdw_jax/config/presets.py.
"""

from mdw_jax.config import published


def get_config():
    c = published()
    c.run.dir = "runs/flickr30k"
    c.data.name = "karpathy"
    c.noise.protocol, c.noise.rate = "image", 0.4  # the study: drawn on purpose
    c.plan.images = 29_000
    c.plan.captions = 145_000
    return c
