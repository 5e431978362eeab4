"""Towers trained on photographs, for log-mels: images of one channel, frequency by time."""

import jax
import jax.numpy as jnp

from mdw_jax.models.image.tower import Tower, mean_over_space

LEAST = 128
"""Pixels that the shorter side is enlarged to at least: towers that shrink 32-fold would keep two of 64 bands."""


def spectrogram_tower(build, shape) -> Tower:
    """A tower for images (B, H, W, 1) out of `build`, which makes one for a shape (H, W, 3).

    The picture is enlarged by a whole factor (bilinear) and its channel seen three times. Where the tower ends in the
    mean over space, only the mean over time is taken and the frequencies stay side by side, since which band sounds is
    what tells sounds apart (ours; linear probe of ESC-50, folds 1-2 -> 5, MobileNetV1 0.25: 43 % as it is, 50 %
    enlarged, 57 % so).
    """
    height, width, _ = shape
    factor = -(-LEAST // min(height, width))
    large = (height * factor, width * factor)
    tower = build((*large, 3))

    def feature_map(params, images):
        if factor > 1:
            images = jax.image.resize(images, (len(images), *large, 1), "linear")
        return tower.feature_map(params, images.repeat(3, axis=-1))

    if tower.pool is not mean_over_space:
        return tower._replace(feature_map=feature_map)
    bands = jax.eval_shape(lambda images: feature_map(tower.init(jax.random.key(0)), images),
                           jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1]

    def mean_over_time(params, feature_map):
        return feature_map.mean(2).reshape(len(feature_map), -1)

    return tower._replace(feature_map=feature_map, pool=mean_over_time, width=bands * tower.width)
