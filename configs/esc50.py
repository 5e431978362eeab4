"""ESC-50 log-mels with class names for captions, frozen MobileNetV1 0.25, projection mode, image-level noise.

    mdw run --config configs/esc50.py --config.data.source=ESC-50 \
        --config.model.weights=mobilenet_v1_0.25_128_quant.q8.npz
"""

from mdw_jax.config import base


def get_config():
    c = base()
    c.run.dir = "runs/esc50"
    c.run.presets = ("random", "infonce", "mdw", "experts", "full")
    c.data.name = "esc50"
    c.noise.protocol, c.noise.rate = "image", 0.4  # the study: drawn on purpose
    c.model.tower = "mobilenet"
    c.model.mode = "projection"
    c.experts.count = 2
    c.experts.epochs = 5
    c.experts.teacher_count = 2
    c.experts.teacher_epochs = 6
    c.experts.batch = 64
    c.experts.lr = 1.0
    c.experts.lr_with_teachers = 0.1
    c.distill.pairs = 100
    c.distill.match_epochs = 3
    c.distill.steps = 100
    c.distill.checkpoint_every = 50
    return c
