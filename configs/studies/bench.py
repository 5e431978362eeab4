"""All methods on one benchmark: Flickr8k at 128 px, MobileNetV1 0.25 features, projection mode. See docs/results.md.

MobileNetV1 0.25 is seven times cheaper than the V2 of configs/flickr8k.py and nearly as good a backbone here, so that
a cell of the grid takes minutes on two CPU cores.
"""

from mdw_jax.config import frozen_backbone

# Baselines make more outer steps, for comparable seconds. Learning rates: the best of the search in bench.md.
ADAM = {"optimizer": "adam", "decay": "cosine", "lr_inner_lr": 0.03, "lr_correspondence": 0.003, "steps": 150}
BASELINES = {"vld": (0.004, 0.02), "tesla": (0.004, 0.02), "lors": (0.004, 0.02), "repblend": (0.004, 0.02)}
VARIANTS = ("{}", "{}_dtcl", "{}_taught", "filter_{}")


def get_config():
    c = frozen_backbone()
    c.run.dir = "runs/bench"
    c.data.name = "karpathy"
    c.data.size = 128
    c.noise.protocol, c.noise.rate = "image", 0.4  # the study: drawn on purpose
    c.text.encoder = "precomputed"
    c.model.tower = "mobilenet"
    c.distill.inner_steps, c.distill.batch = 64, 100
    c.distill.steps = 150
    c.distill.checkpoint_every = 50
    c.distill.ceo = False  # it brings nothing measurable (docs/results.md)
    c.evaluate.every = 50
    c.evaluate.hard_targets = True
    overrides = []
    for baseline, (lr_images, lr_texts) in BASELINES.items():
        settings = {**ADAM, "lr_images": lr_images, "lr_texts": lr_texts}
        overrides += [f"{variant.format(baseline)}:distill.{key}={value}" for variant in VARIANTS
                      if not (variant == "{}_taught" and baseline in ("tesla", "lors"))
                      for key, value in settings.items()]
    c.run.preset_overrides = tuple(overrides)
    return c
