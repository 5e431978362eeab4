"""Flickr8k at 128 px, MobileNetV2 features, projection mode, image-level noise.

    mdw run --config configs/flickr8k.py --config.data.annotations=dataset_flickr8k.json.gz \
        --config.data.images='flickr8k/*.zip' --config.text.path=minilm_l6_caption_features.int8.npz \
        --config.model.weights=mobilenet_v2_1.0_224_quant.q8.npz
"""

from mdw_jax.config import base


def get_config():
    c = base()
    c.run.dir = "runs/flickr8k"
    c.run.presets = ("random", "vld", "infonce", "mdw", "experts", "full")
    # VLD's constants are for another tower: these are what won the search of configs/studies/bench.md.
    c.run.preset_overrides = ("vld:distill.optimizer=adam", "vld:distill.decay=cosine", "vld:distill.lr_inner_lr=0.03",
                   "vld:distill.lr_images=0.004", "vld:distill.lr_texts=0.02")
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
    c.distill.pairs = 100
    c.distill.sets = 3
    c.distill.steps = 160
    c.distill.checkpoint_every = 160
    c.evaluate.hard_targets = True
    return c
