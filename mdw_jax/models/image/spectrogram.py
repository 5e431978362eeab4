"""Towers trained on photographs applied to log-mels: images of one channel, frequency by time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mdw_jax.models.image.tower import Tower, mean_over_space

MIN_SIDE = 128
"""The shorter side is enlarged to at least so many pixels: towers that shrink 32-fold would keep two of 64 bands."""


def spectrogram_tower(build: Callable[[tuple[int, int, int]], Tower], shape) -> Tower:
    """A tower for log-mels out of one for RGB images (this work).

    The image is enlarged by a whole factor (bilinear) and its channel repeated three times. Where the tower ends in the
    mean over space, only the mean over time is taken and the frequencies are concatenated, since frequencies are what
    distinguishes sounds. (Linear probe of ESC-50, folds 1-2 -> 5, MobileNetV1 0.25: 43 % unchanged, 50 % enlarged,
    57 % also without the mean over frequencies.)

    Args:
        build: shape (H, W, 3) -> tower.
        shape: (H, W, 1) of the log-mels.
    """
    height, width, _ = shape
    factor = -(-MIN_SIDE // min(height, width))
    large = (height * factor, width * factor)
    tower = build((*large, 3))
    std = tower.std and (tower.std[:1] if len(set(tower.std)) == 1 else None)  # the one channel is normalized in 3 ways

    def feature_map(params, images):
        if factor > 1:
            images = jax.image.resize(images, (len(images), *large, 1), "linear")
        return tower.feature_map(params, images.repeat(3, axis=-1))

    if tower.pool is not mean_over_space:
        return tower._replace(feature_map=feature_map, std=std)
    bands = jax.eval_shape(lambda images: feature_map(tower.init(jax.random.key(0)), images),
                           jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1]

    def mean_over_time(params, feature_map):
        return feature_map.mean(2).reshape(len(feature_map), -1)

    return tower._replace(feature_map=feature_map, pool=mean_over_time, width=bands * tower.width, std=std)
