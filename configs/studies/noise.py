r"""How much noise each method tolerates, and of which kind: the quickstart's data, with fewer steps. See noise.md.

    C="--config configs/studies/noise.py"
    mdw sweep $C --grid noise.protocol=image --grid noise.rate=0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8
    mdw sweep $C --grid noise.protocol=caption,near_duplicate --grid noise.rate=0.2,0.4,0.6,0.8 \
        --grid preset=vld,infonce,mdw
    mdw sweep $C --grid noise.rate=0 --grid data.captions=truncated,generic --grid data.captions_rate=0.2,0.4,0.6,0.8 \
        --grid preset=vld,infonce,mdw

Learning rates of the baselines: the best of the search in noise.md, on val at 40 % image-level noise.
"""

from mdw_jax.config import base

BASELINES = {"vld": 0.005, "lors": 0.005, "repblend": 0.02}  # learning rate of images and texts
# More steps than MDW: 8 inner steps of one trajectory are cheaper than 16 of two.
ADAM = {"optimizer": "adam", "decay": "cosine", "lr_inner_lr": 0.03, "lr_correspondence": 0.003, "steps": 80}


def get_config():
    c = base()
    c.run.dir = "runs/noise"
    c.run.presets = (*BASELINES, "infonce", "mdw", "experts")
    c.model.mode = "projection"
    c.model.widths = (64, 128, 256)
    c.model.pretrain_epochs = 10
    c.experts.count = 2
    c.experts.epochs = 4
    c.experts.lr = 2.0
    c.distill.pairs = 50
    c.distill.steps = 60
    c.distill.lr_images = 0.02
    c.distill.checkpoint_every = 1000
    c.evaluate.students = 3
    c.run.preset_overrides = tuple(f"{name}:distill.{key}={value}" for name, lr in BASELINES.items()
                                   for key, value in {**ADAM, "lr_images": lr, "lr_texts": lr}.items())
    return c
