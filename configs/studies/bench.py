"""All methods on one benchmark: Flickr8k at 128 px, MobileNetV1 0.25 features, projection mode. See bench.md.

MobileNetV1 0.25 is seven times cheaper than the V2 of configs/flickr8k.py and nearly as good a backbone here, so that
a cell of the grid takes minutes on two CPU cores.
"""

from mdw_jax.config import base

# Baselines make more outer steps, for comparable seconds: their 8 inner steps of one trajectory are cheaper than the 32
# of two here (except VLD's, exact and of 100 pairs). Learning rates: the best of the search in bench.md.
ADAM = {"optimizer": "adam", "decay": "cosine", "lr_inner_lr": 0.03, "lr_correspondence": 0.003, "steps": 150}
BASELINES = {"vld": (0.004, 0.02), "tesla": (0.004, 0.02), "lors": (0.004, 0.02), "repblend": (0.004, 0.02)}


def get_config():
    c = base()
    c.run.dir = "runs/bench"
    c.data.name = "karpathy"
    c.data.size = 128
    c.text.encoder = "precomputed"
    c.model.tower = "mobilenet"
    c.model.mode = "projection"
    c.experts.count = 4
    c.experts.epochs = 3
    c.experts.teacher_count = 4
    c.experts.teacher_epochs = 4
    c.experts.lr = 1.0
    c.experts.lr_with_teachers = 0.1
    c.distill.steps = 120
    c.distill.inner_steps = 32
    c.distill.checkpoint_every = 1000  # no candidates: the last step's average is the set
    c.evaluate.every = 50
    c.evaluate.hard_targets = True
    overrides = []
    for baseline, (lr_images, lr_texts) in BASELINES.items():
        settings = {**ADAM, "lr_images": lr_images, "lr_texts": lr_texts}
        overrides += [f"{name}:distill.{key}={value}" for name in (baseline, f"{baseline}_dtcl")
                      for key, value in settings.items()]
    c.run.preset_overrides = tuple(overrides)
    return c
