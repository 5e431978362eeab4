"""Correspondence-enhanced optimization: Grad-CAM weights on the pixels of distilled images (METHOD section 4)."""

import jax
import jax.numpy as jnp

from mdw_jax.method.correspondence import correspondence, matching_probability
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.image.tower import mean_over_space


def grad_cam(model: DualEncoder, params, feature_map, texts):
    """`relu(sum_c mean_xy(ds/dA_c) A_c)` of the similarity s of one image with each of k texts.

    feature_map: the backbone's last map A of the image, without a batch axis; texts: (k, d). Returns (k, h, w), of
    clips (k, t, h, w).
    Source: Grad-CAM (Selvaraju et al. 2017) applied to s_ij, MDW's CEO.
    """
    embedded = model.embed_text(params["text"], texts)

    def similarities(a):
        return embedded @ model.embed_map(params["image"], a[None])[0] / model.tau

    importance = mean_over_space(None, model.grid(jax.jacrev(similarities)(feature_map)))  # (k, F)
    return jax.nn.relu(jnp.einsum("kc,...c->k...", importance, model.grid(feature_map[None])[0]))


def pixel_weights(model: DualEncoder, params, images, texts, correspondence_params, *, alpha: float, top_k: int,
                  beta: float):
    """`W_i`, the weight of each pixel's update: (M, H, W, 1), of clips (M, T, H, W, 1), mean about 1.

    Maps of each image's top_k texts by P are added, weighted by P (as probabilities), scaled to mean 1, resized to the
    image, and softened to `1 + beta (W / mean - 1)`, clipped at 0 (the softening is ours). An image whose maps are all
    zero gets weight 1 everywhere.
    """
    p = matching_probability(correspondence(correspondence_params, jnp.arange(len(images)), alpha))
    weights, nearest = jax.lax.top_k(p, top_k)
    maps = model.feature_map(params["image"], images)

    def one(a, nearest, weights):
        return jnp.einsum("k,k...->...", weights, grad_cam(model, params, a, texts[nearest]))

    combined = jax.lax.map(lambda row: one(*row), (maps, nearest, weights))
    resized = jax.image.resize(combined, images.shape[:-1], "linear")
    mean = resized.mean(tuple(range(1, resized.ndim)), keepdims=True)
    relative = jnp.where(mean > 1e-12, resized / jnp.maximum(mean, 1e-12), 1.0)
    return jnp.maximum(1 + beta * (relative - 1), 0)[..., None]
