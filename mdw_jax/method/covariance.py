"""Covariance matching (CovMatch, NeurIPS 25): a set whose embeddings are jointly distributed as those of real pairs.

One outer step compares the distilled pairs with a batch of real ones, both embedded by one network (docs/method.md,
section 5.6). No expert is trained: the network begins anew every few steps and in between learns from the same real
batches (`make_network_step`). What is compared are the embeddings of the two branches, the part of the model that is
trained, at the length sqrt(D) that a layer norm gives them; the paper's features are those of its two trained encoders.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mdw_jax.data.augment import augment
from mdw_jax.data.resizing import enlarged
from mdw_jax.method.distill import DistillState, apply_gradient, optimizer_of, pixel_std
from mdw_jax.method.losses import infonce
from mdw_jax.method.objective import Method
from mdw_jax.models.chunks import in_chunks
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import to_float
from mdw_jax.models.jit import jit_with_frozen


class RealBatch(NamedTuple):
    """A batch of B real pairs, image n with text n.

    Attributes:
        images: (B, ...) uint8 pixels, or features (B, F) of a frozen backbone.
        texts: (B, d) features, or (B, L) token ids.
    """

    images: Any
    texts: Any


def cross_covariance(v, t):
    """`1/n sum_i (v_i - mean v) (t_i - mean t)^T` of n pairs: (n, D), (n, D) -> (D, D)."""
    return (v - v.mean(0)).T @ (t - t.mean(0)) / len(v)


def covariance_loss(v, t, real_v, real_t, scale: float, mean_weight: float):
    """`|scale C_real - C|_F^2 + mean_weight (|mean v - mean real_v|^2 + |mean t - mean real_t|^2)` (CovMatch).

    Args:
        v, t: (M, D) embeddings of the distilled pairs.
        real_v, real_t: (B, D) embeddings of real pairs.
        scale: rho; above 1, pairs match more strongly than real ones do, which few pairs have to.
        mean_weight: lambda.

    Returns:
        A scalar.
    """
    covariance = jnp.sum((scale * cross_covariance(real_v, real_t) - cross_covariance(v, t)) ** 2)
    means = jnp.sum((v.mean(0) - real_v.mean(0)) ** 2) + jnp.sum((t.mean(0) - real_t.mean(0)) ** 2)
    return covariance + mean_weight * means


def objective(model: DualEncoder, method: Method, learned: dict, params, batch: RealBatch, key):
    """`covariance_loss` of all distilled pairs and one batch of real ones. One augmentation is drawn for the step.

    Args:
        model: the dual encoder.
        method: how to distill.
        learned: `DistillState.learned`.
        params: parameters of the network that embeds both.
        batch: the real pairs.
        key: a typed key.
    """
    model = dataclasses.replace(model, remat=method.remat)
    images = augment(key, enlarged(learned["images"], method.seen_size), method.augment)
    embedded = in_chunks(lambda images: model.embed_image(params["image"], model.inputs(images)), images, method.chunk)
    own = embedded, model.embed_text(params["text"], learned["texts"])
    v, t, real_v, real_t = (math.sqrt(model.dim) * x for x in (*own, *_embed(model, params, batch)))
    return covariance_loss(v, t, real_v, real_t, method.covariance_scale, method.mean_weight)


def make_outer_step(model: DualEncoder, method: Method) -> Callable:
    """The jitted outer step: (state, params, real batch, pixel_weights, key) -> (state, metrics).

    State and metrics are as in `distill.make_outer_step`, but there is no unroll. P and the step sizes get no gradient.

    Args:
        model: the dual encoder.
        method: how to distill.
    """
    optimizer = optimizer_of(method, pixel_std(model.tower, method))

    def outer_step(model, state: DistillState, params, batch: RealBatch, pixel_weights, key):
        loss, gradient = jax.value_and_grad(objective, argnums=2)(model, method, state.learned, params, batch, key)
        return apply_gradient(method, optimizer, state, loss, jnp.zeros(0), gradient, pixel_weights)

    return jit_with_frozen(model, outer_step, donate_argnums=1)


def make_network_step(model: DualEncoder, lr: float, momentum: float, weight_decay: float) -> tuple[Callable, Callable]:
    """The training of the network that embeds: SGD with InfoNCE on real pairs.

    Args:
        model: the dual encoder.
        lr, momentum, weight_decay: of SGD.

    Returns:
        start: a typed key -> a fresh network, (params, optimizer state).
        step: (network, real batch) -> the network after one step.
    """
    optimizer = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(lr, momentum))

    def start(key):
        params = model.init(key)
        return params, optimizer.init(params)

    def step(model, network, batch: RealBatch):
        params, state = network

        def loss(params):
            v, t = _embed(model, params, batch)
            logits = v @ t.T / model.tau
            return (jnp.diag(infonce(logits)).mean() + jnp.diag(infonce(logits.T)).mean()) / 2

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return start, jit_with_frozen(model, step)


def _embed(model: DualEncoder, params, batch: RealBatch):
    """(B, D) embeddings of the images and of the texts of real pairs."""
    return model.embed_image(params["image"], to_float(batch.images)), model.embed_text(params["text"], batch.texts)
