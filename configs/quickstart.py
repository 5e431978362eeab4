"""The generated data set `scenes` at 40 % image-level noise, start to end in minutes on two CPU cores.

    mdw run --config configs/quickstart.py

A small conv net first learns to name what is on other generated scenes (the stand-in for an ImageNet backbone), is
frozen, and two projection heads learn from the noisy pairs.
"""

from mdw_jax.config import frozen_backbone


def get_config():
    c = frozen_backbone()
    c.run.dir = "runs/quickstart"
    c.run.presets = ("random", "infonce", "correspond", "mdw", "closed_form", "experts", "closed_form_full")
    c.model.widths = (64, 128, 256)
    c.model.pretrain_epochs = 10
    c.experts.count, c.experts.epochs = 2, 4
    c.experts.teacher_count, c.experts.teacher_epochs = 1, 4
    c.distill.pairs = 50
    c.distill.steps = 60
    c.distill.lr_images = 0.02
    # Twice the inner steps of the defaults, and gradients that count the student's parameters as constants (TESLA). With
    # exact gradients through 16 steps, sets differ by several points with how sums are rounded: step sizes are learned
    # up to where the unroll is close to diverging.
    c.distill.inner_steps = 32
    c.distill.gradient = "detached"
    c.distill.checkpoint_every = 100
    c.distill.correspondence_tau = (0.1,)  # one temperature and one checkpoint, for the sake of minutes
    c.distill.ceo = False  # it brings nothing measurable (docs/results.md)
    c.evaluate.steps, c.evaluate.patience = 400, 2
    return c
