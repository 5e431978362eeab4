"""Recall of text -> image (IR) and image -> text (TR) retrieval (docs/method.md, section 6)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.io.scores import RANKS
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs, embeddings_of_all
from mdw_jax.runtime.mesh import jitted


def ranks(similarity, image_of) -> tuple[jax.Array, jax.Array]:
    """0-based ranks of the right answers.

    Ties and NaN count against the model: a collapsed or broken model must not score.

    Args:
        similarity: (N, K), image by caption.
        image_of: (K,) the image that each caption belongs to.

    Returns:
        (K,) rank of each caption's image among all images, and (N,) rank of each image's best caption among all captions
        of other images.

    Raises:
        AssertionError: other shapes than these.
    """
    chex.assert_rank(similarity, 2)
    chex.assert_shape(image_of, similarity.shape[1:])
    captions = jnp.arange(similarity.shape[1])
    own = similarity[image_of, captions]
    text_to_image = (~(similarity < own)).sum(0) - 1
    belongs = image_of[None, :] == jnp.arange(similarity.shape[0])[:, None]
    best = jnp.where(belongs, similarity, -jnp.inf).max(1, keepdims=True)
    image_to_text = (~(similarity < best) & ~belongs).sum(1)
    return text_to_image, image_to_text


def recalls(similarity, image_of) -> jax.Array:
    """IR@1/5/10, TR@1/5/10 (best over an image's captions) and their mean `r_mean`.

    Args:
        similarity: (N, K), image by caption.
        image_of: (K,) the image that each caption belongs to.

    Returns:
        (7,) percent, in the order of `io.scores.METRICS`.
    """
    text_to_image, image_to_text = ranks(similarity, image_of)
    values = [100 * (rank < k).mean() for rank in (text_to_image, image_to_text) for k in RANKS]
    return jnp.stack([*values, jnp.stack(values).mean()])


def scores(model: DualEncoder, networks: list, data: Inputs) -> np.ndarray:
    """Recalls of several networks on one split.

    Args:
        model: the dual encoder.
        networks: parameters of each network.
        data: the split.

    Returns:
        (networks, 7) percent, in the order of `io.scores.METRICS`.
    """
    recall = lambda v, t: np.asarray(jitted(recalls)(v @ t.T, data.image_of))
    return np.stack([recall(v, t) for v, t in embeddings_of_all(model, networks, data)])
