"""Made pairs by the hundred thousand in tar shards: how time and memory grow (mdw bench --scale 50000,200000,1000000).

    mdw bench --scale 50000

The whole way of own data: read shards, encode captions, features of a frozen tower, closed form, experts with division,
recovery and guidance, the noise rate, distillation, students. Images are 8 x 8 pixels and the tower is one random layer,
so that nearly all of the time is what N pairs cost beside the tower. `mdw bench` writes the shards and sets their path.
"""

from mdw_jax.config import frozen_backbone


def get_config():
    c = frozen_backbone()
    c.run.dir = "runs/scale"
    c.run.presets = ("mdw",)
    c.data.name, c.data.size = "webdataset", 8
    c.data.stream = True
    c.data.holdout_val = c.data.holdout_test = 500
    c.noise.protocol, c.noise.rate = "natural", 0.0
    c.model.patches, c.model.widths = (8,), (256,)
    c.model.dim = 64
    c.experts.count, c.experts.epochs = 1, 2
    c.experts.teacher_count, c.experts.teacher_epochs = 1, 2
    c.distill.pairs, c.distill.steps, c.distill.checkpoint_every = 100, 20, 20
    c.distill.correspondence_tau = (0.1,)
    c.distill.ceo = False
    c.evaluate.students, c.evaluate.lr_scales = 2, (1.0,)
    c.evaluate.steps, c.evaluate.patience = 400, 2
    return c
