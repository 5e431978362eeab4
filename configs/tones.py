"""Sounds synthesised on the spot, as log-mels of one channel: the embedded data set of audio and text, in CPU minutes.

    mdw run --config configs/tones.py
"""

from mdw_jax.config import base


def get_config():
    c = base()
    c.run.dir = "runs/tones"
    c.run.presets = ("random", "infonce", "mdw", "experts", "full")
    c.data.name = "tones"
    c.data.train = 1500
    c.model.patches = (4, 4, 2)
    c.experts.count = 2
    c.experts.epochs = 4
    c.experts.augment = "shift_mask"
    c.distill.pairs = 50
    c.distill.steps = 60
    c.distill.checkpoint_every = 30
    return c
