"""The generated data set `scenes` at 40 % image-level noise, start to end in minutes on two CPU cores.

    mdw run --config configs/quickstart.py

A small conv net first learns to name what is on other generated scenes (the stand-in for an ImageNet backbone), is
frozen, and two projection heads learn from the noisy pairs.
"""

from mdw_jax.config import base


def get_config():
    c = base()
    c.run.dir = "runs/quickstart"
    c.run.presets = ("random", "infonce", "mdw", "experts", "full")
    c.model.mode = "projection"
    c.model.widths = (64, 128, 256)
    c.model.pretrain_epochs = 10
    c.experts.count = 2
    c.experts.epochs = 4
    c.experts.lr = 2.0
    c.distill.pairs = 50
    c.distill.steps = 100
    c.distill.lr_images = 0.02
    # Twice the inner steps of the defaults, and gradients that count the student's parameters as constants (TESLA). With
    # exact gradients through 16 steps, sets differ by several points with how sums are rounded: step sizes are learned
    # up to where the unroll is close to diverging.
    c.distill.inner_steps = 32
    c.distill.gradient = "detached"
    c.distill.checkpoint_every = 50
    c.evaluate.steps, c.evaluate.patience = 1000, 2  # for the sake of minutes
    return c
