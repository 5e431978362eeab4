"""Correspondence-enhanced optimization (CEO): Grad-CAM weights on the pixels of distilled images.

docs/method.md, section 5.4.
"""

import jax
import jax.numpy as jnp

from mdw_jax.data.resizing import enlarged
from mdw_jax.method.correspondence import correspondence, matching_probability
from mdw_jax.method.losses import distillation_loss_entry
from mdw_jax.models.chunks import in_chunks
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.image.tower import mean_over_space


def grad_cam(model: DualEncoder, params: dict, feature_map, texts):
    """`relu(sum_c mean_xy(ds/dA_c) A_c)` of the similarity s of one image with each of k texts.

    Grad-CAM (Selvaraju et al. 2017) applied to the similarity of an image and a text, as in MDW's CEO.

    Args:
        model: the dual encoder.
        params: its parameters.
        feature_map: the backbone's last map A of the image, without a batch axis.
        texts: (k, d).

    Returns:
        (k, h, w); of video clips (k, t, h, w).
    """
    embedded = model.embed_text(params["text"], texts)

    def similarities(a):
        return embedded @ model.embed_map(params["image"], a[None])[0] / model.tau

    importance = mean_over_space(None, model.grid(jax.jacrev(similarities)(feature_map)))  # (k, F)
    return jax.nn.relu(jnp.einsum("kc,...c->k...", importance, model.grid(feature_map[None])[0]))


def pixel_weights(model: DualEncoder, params: dict, images, texts, correspondence_params: dict, *, alpha: float,
                  loss: str, top_k: int, beta: float, seen_size: int = 0, chunk: int = 0):
    """`W_i`, the weight of each pixel's update.

    The maps of each image's `top_k` texts under P are added, weighted by P (as probabilities, read as the loss reads
    it), resized to the stored image and scaled to mean 1, then softened to `1 + beta (W / mean - 1)`, clipped at 0 (the
    softening is this work's). An image whose maps are all zero gets weight 1 everywhere. Under the identity an image's
    own text has all the weight, whichever others are among the `top_k`.

    Args:
        model: the dual encoder.
        params: its parameters.
        images: (M, H, W, C) as they are stored, or video clips (M, T, H, W, C).
        texts: (M, d).
        correspondence_params: parameters of P.
        alpha: scale of a low-rank P.
        loss: name of the distillation loss, which says how P is read.
        top_k: texts per image, at most M.
        beta: 0 weights all pixels alike.
        seen_size: side at which the model sees the images; 0: as they are stored.
        chunk: images whose maps are held at a time; 0: all.

    Returns:
        (M, H, W, 1), of video clips (M, T, H, W, 1); the mean of each image is about 1.
    """
    p = matching_probability(correspondence(correspondence_params, jnp.arange(len(images)), alpha),
                             distillation_loss_entry(loss))
    weights, best_texts = jax.lax.top_k(p, top_k)

    def combine(a, best_texts, weights):
        return jnp.einsum("k,k...->...", weights, grad_cam(model, params, a, texts[best_texts]))

    def combined_maps(rows):
        images, best_texts, weights = rows
        maps = model.feature_map(params["image"], enlarged(images, seen_size))
        return jax.lax.map(lambda row: combine(*row), (maps, best_texts, weights))

    combined = in_chunks(combined_maps, (images, best_texts, weights), chunk)
    resized = jax.image.resize(combined, images.shape[:-1], "linear")
    mean = resized.mean(tuple(range(1, resized.ndim)), keepdims=True)
    relative = jnp.where(mean > 1e-12, resized / jnp.maximum(mean, 1e-12), 1.0)
    return jnp.maximum(1 + beta * (relative - 1), 0)[..., None]
