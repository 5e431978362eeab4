"""Recall of text -> image (IR) and image -> text (TR) retrieval."""

import jax.numpy as jnp
import numpy as np

from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs, embeddings_of_all
from mdw_jax.runtime.mesh import jitted

RANKS = (1, 5, 10)
METRICS = tuple(f"{side}@{k}" for side in ("IR", "TR") for k in RANKS) + ("r_mean",)


def ranks(similarity, image_of):
    """0-based ranks of the right answers.

    similarity: (N, K), image by caption; image_of: (K,) the image each caption belongs to.
    Returns ((K,) rank of each caption's image among all images, (N,) rank of each image's best caption among all).
    Ties and NaN count against the model: a collapsed or broken model must not score.
    """
    captions = jnp.arange(similarity.shape[1])
    own = similarity[image_of, captions]
    text_to_image = (~(similarity < own)).sum(0) - 1
    belongs = image_of[None, :] == jnp.arange(similarity.shape[0])[:, None]
    best = jnp.where(belongs, similarity, -jnp.inf).max(1, keepdims=True)
    image_to_text = (~(similarity < best) & ~belongs).sum(1)
    return text_to_image, image_to_text


def recalls(similarity, image_of):
    """IR@1/5/10, TR@1/5/10 (image -> text, best over an image's captions) and their mean `r_mean`, in percent.

    similarity: (N, K); image_of: (K,). Returns a (7,) array in the order of `METRICS`.
    """
    text_to_image, image_to_text = ranks(similarity, image_of)
    values = [100 * (found < k).mean() for found in (text_to_image, image_to_text) for k in RANKS]
    return jnp.stack([*values, jnp.stack(values).mean()])


def scores(model: DualEncoder, networks: list, data: Inputs) -> np.ndarray:
    """Recalls of each network on one split: (networks, 7) in the order of `retrieval.METRICS`."""
    recall = lambda v, t: np.asarray(jitted(recalls)(v @ t.T, data.image_of))
    return np.stack([recall(v, t) for v, t in embeddings_of_all(model, networks, data)])
