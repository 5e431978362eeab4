"""Work that all presets share: data and frozen features, and closed forms."""

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.analysis.cost.counts import Counts
from mdw_jax.analysis.cost.model_cost import ModelCost
from mdw_jax.analysis.cost.unit import Work
from mdw_jax.config.options import GENERATED_READERS
from mdw_jax.io.row_cache import ON_DEVICES
from mdw_jax.method.closed_form import RANKS, RIDGES
from mdw_jax.pipeline.closed_form import ROUNDS

# Seconds of one core of the reference machine, measured for this work.
_START = 12.0  # importing, reading the config, first use of the device
# Of an image file (finding it, looking whether it is broken, its digest), of each pixel in it (a JPEG's), and of each pixel
# of the result.
_DECODE_FILE, _DECODE_STORED, _DECODE_PIXEL = 3.5e-4, 1.075e-8, 4.0e-8
_DRAW_PIXEL = 3.3e-7  # of a generated image
_HASH_CAPTION = 3.0e-5
_TOKENS = 16  # of a caption, in the buckets that the encoder pads to
_EIGEN = 8  # FLOP per cube of the width, of an eigendecomposition
_BATCH = 100  # images in a forward pass (`pipeline.feature_cache`)
_PAIR_BYTES = 320  # of a pair on the host: its caption, its place in the files, what is known of it
_BLOCK = 65_536  # rows that a closed form embeds at a time
_KEPT_FORWARD = 1 / 15  # of what a gradient needs, what a forward pass has in memory at a time


def feature_work(config: ConfigDict, counts: Counts, model: ModelCost) -> Work:
    """Reading data, features of captions, and, of a frozen tower, of images; pretraining of a conv net."""
    m, data = config.model, config.data
    images, captions = counts.all_images, counts.all_captions
    generated = data.name in GENERATED_READERS
    decoding = 0.0 if generated else images * decode_seconds(counts, model)
    pretraining = m.pretrain_epochs * m.pretrain_images * 3 * model.tower if m.tower == "convnet" else 0
    drawn = (images if generated else 0) + (m.pretrain_images if pretraining else 0)
    host = _START + drawn * _DRAW_PIXEL * model.pixels + captions * _HASH_CAPTION
    encoding = captions * text_encoder_flops(config, counts) if config.text.encoder == "transformer" else 0
    features = images * model.tower if model.projection else 0
    pixels = 0 if data.stream else images * model.pixels
    sizes = feature_bytes(config, captions, images, model)
    of_images, stored = in_memory(sizes[1]), sum(sizes)  # features of captions are mapped, and not touched yet
    return Work(
        "features", f"data, features of {captions:,} captions" + (f" and {images:,} images" if features else ""),
        flops=encoding, tower_forward=features, tower_gradient=pretraining, host=host, decoding=decoding, programs=4,
        tower_programs=(1 if features else 0) + (3 if pretraining else 0),
        host_memory=pixels + of_images + pair_bytes(captions),
        device_memory=max(4 * model.backbone + _BATCH * _KEPT_FORWARD * model.activations, of_images),
        disk=stored + (4 * model.backbone if pretraining else 0))


def feature_bytes(config: ConfigDict, captions: int, images: int, model: ModelCost) -> tuple[float, float]:
    """Bytes of the features of captions, and of images where their tower is frozen."""
    of_texts = np.dtype(config.text.dtype).itemsize * captions * model.text_dim
    of_images = np.dtype(config.model.feature_dtype).itemsize * images * model.features
    return of_texts, of_images if model.projection else 0.0


def in_memory(size: float) -> float:
    """Bytes in memory of features that have so many in their file: all, or, of those that are read from it, none."""
    return size if size <= ON_DEVICES else 0.0


def pair_bytes(captions: int) -> float:
    """Bytes on the host of what is known of so many pairs, beside their features."""
    return _PAIR_BYTES * captions


def decode_seconds(counts: Counts, model: ModelCost) -> float:
    """Seconds of one core to decode an image and make it as large as the model sees it."""
    return _DECODE_FILE + _DECODE_STORED * counts.stored_pixels + _DECODE_PIXEL * model.pixels


def students_feature_work(counts: Counts, model: ModelCost) -> Work:
    """Features of val and test by the frozen tower of the students (`evaluate.tower`)."""
    images = counts.val_images + counts.test_images
    return Work("students", f"features of {images:,} images by evaluate.tower", tower_forward=images * model.tower,
                programs=1, tower_programs=1, disk=4 * images * model.features,
                device_memory=4 * model.backbone + _BATCH * _KEPT_FORWARD * model.activations)


def text_encoder_flops(config: ConfigDict, counts: Counts) -> int:
    """FLOP of a caption in a transformer of twelve layers of the features' width (six of MiniLM's, 384)."""
    layers = 12 if counts.text_dim > 384 else 6
    tokens = min(_TOKENS, config.text.max_tokens)
    return tokens * layers * (24 * counts.text_dim**2 + 4 * tokens * counts.text_dim)


def closed_form_work(config: ConfigDict, counts: Counts, model: ModelCost) -> Work:
    """Solving for all ridges and ranks, in every round of its own division (`method.closed_form.fit`)."""
    images, captions, f, d = counts.images, counts.captions, model.features, counts.text_dim
    rank = min(f, d)
    moments = 2 * (images * f * f + captions * d * d + images * f * d) + _EIGEN * (f**3 + d**3 + rank**3)
    val, queries = counts.val_images, counts.val_captions
    tried = len(RIDGES) * (len(RANKS) + 1) // 2 + len(RANKS) // 2
    search = tried * (val * queries * rank + (val * f + queries * d) * rank)  # half the ranks on average, twice
    division = 2 * (images * f + captions * d) * rank
    rounds = ROUNDS + 1
    return Work(
        "closed form", f"solved in {rounds} rounds", moved=rounds * tried * 48 * val * queries,
        host_flops=rounds * (2 * moments + search + division), host=1e-5 * captions, programs=1,
        host_memory=8 * (f * f + d * d + f * d) + 4 * (f + d + 3 * rank) * min(captions, _BLOCK) + pair_bytes(captions)
        + in_memory(feature_bytes(config, captions, images, model)[0]),
        disk=4 * (rank * (f + d) + captions))
