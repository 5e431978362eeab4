"""Images of given features: the second half of distilling in feature space (ours).

Behind a frozen backbone, matching only ever sees pooled features, and unrolling students on them is far cheaper than
the backbone's own gradient. So the features are learned first, in many cheap outer steps, and then each image is moved,
from the real one it began as, until the backbone sees those features in it. Any image of the set is a problem of its
own, and a far easier one than matching.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from mdw_jax.towers.dual import DualEncoder


def make_decode_step(model: DualEncoder, lr: float):
    """(start, step): start(images) -> state; step(state, wanted, scale, pixel_weights) -> (state, error).

    images: (M, H, W, C) in [0, 1]; wanted: (M, F) features; scale: (F,) unit of each; pixel_weights: (M, H, W, 1), which
    scale the updates (CEO). Adam on pixels, kept in [0, 1]. error: mean squared distance of the features, in units of
    `scale`, before the step. A state is (images, optimiser state) and is donated.
    """
    optimizer = optax.adam(lr)

    def distance(images, wanted, scale):
        return jnp.mean(((model.inputs(images) - wanted) / scale) ** 2, axis=-1)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, wanted, scale, pixel_weights):
        images, moments = state
        # The sum: an image's gradient must not depend on how many others there are.
        errors, grads = jax.value_and_grad(lambda x: distance(x, wanted, scale).sum())(images)
        updates, moments = optimizer.update(grads, moments)
        return (jnp.clip(images + updates * pixel_weights, 0, 1), moments), errors / len(images)

    return lambda images: (jnp.asarray(images, jnp.float32), optimizer.init(jnp.asarray(images, jnp.float32))), step
