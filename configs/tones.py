"""Generated tones as log-mels of one channel: a data set of audio and text without files, in CPU minutes.

    mdw run --config configs/tones.py
"""

from mdw_jax.config import base


def get_config():
    c = base()
    c.run.dir = "runs/tones"
    c.run.presets = ("random", "mdw", "experts")
    c.data.name = "tones"
    c.model.patches = (4, 4, 2)  # the conv net moves; captions tell what comes first, so no shift of time
    c.experts.count = 1
    c.experts.epochs = 4
    c.experts.teacher_count = 1
    c.experts.teacher_epochs = 8
    c.experts.lr_with_teachers = 0.02
    c.distill.pairs = 50
    c.distill.steps = 40
    c.distill.inner_lr_image = c.distill.inner_lr_text = 0.02
    c.distill.checkpoint_every = 40
    c.evaluate.students = 3
    c.evaluate.steps = 400
    c.evaluate.lr_scales = (0.1, 0.3)
    return c
