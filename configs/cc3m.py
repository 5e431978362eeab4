"""CC3M as img2dataset writes it: three million pairs from the web, mismatched as they come.

    mdw run --config configs/cc3m.py --config.data.train_shards='cc3m/{00000..00331}.tar'

Which pairs are mismatched nobody knows; `mdw experts` estimates how many. Val and test are held out of the shards, and
therefore as noisy as these: read their recalls as a lower bound. Budgets: --config.distill.pairs=100, 200, 500 or 1000.
"""

from mdw_jax.config import published


def get_config():
    c = published()
    c.run.dir = "runs/cc3m"
    c.data.name = "webdataset"
    c.data.stream = True
    c.data.on_error = "skip"  # of so many downloads some are no images
    c.data.holdout_val = 1000
    c.data.holdout_test = 1000
    c.text.dtype = "float16"  # 4.5 GB of features on the disk, memory-mapped, instead of 8.9
    c.noise.protocol = "natural"
    c.noise.rate = 0.0
    c.experts.epochs = 2  # each is twenty of Flickr30K's
    c.experts.recovery_start = 1  # the second epoch: recovery and guidance would never begin at the default, 2
    c.plan.images = 2_900_000
    c.plan.captions = 2_900_000
    return c
