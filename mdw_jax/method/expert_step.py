"""One epoch of expert training: batches, track weights, and the compiled steps over them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdw_jax.data.augment import augment
from mdw_jax.method.losses import debiased, infonce, label_loss, pair_losses, shuffled_losses, soft_cross_entropy
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import to_float
from mdw_jax.models.jit import use_vmap
from mdw_jax.runtime.mesh import jitted, map_replicas, shard_rows


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How experts are trained: the fields of `config.experts`, explained there."""

    teacher_count: int
    teacher_epochs: int
    epochs: int
    batch: int
    lr: float
    lr_with_teachers: float
    momentum: float
    weight_decay: float
    augment: str
    dual: bool
    warmup: int
    division: str
    clean_loss: str
    clean_q: float
    tolerant_loss: str
    tolerant_q: float
    tolerant_weight: float
    recovery_weight: float
    recovery_top_k: int
    recovery_start: int
    guidance_weight: float
    guidance_tau: float
    peers: int
    ema_decay: float
    debias: bool
    rescale_step: bool


class EpochBatches(NamedTuple):
    """One epoch, each (steps, B).

    rows: which pair. images, captions: what it pairs. pixels: that image itself, (steps, B, ...), if they are
    streamed; None if they are all at hand. unrelated: a caption of another batch. clean, tolerant: weights of the tracks.
    """

    rows: Any
    images: Any
    pixels: Any
    captions: Any
    unrelated: Any
    clean: Any
    tolerant: Any


class ExpertSteps(NamedTuple):
    """The compiled functions of one model; `map_networks` applies the per-network ones to a list of networks."""

    optimizer: Any
    map_networks: Callable
    epoch: Callable
    pair_loss: Callable


def make_expert_steps(model: DualEncoder, recipe: Recipe, rate: float) -> ExpertSteps:
    """Compile what an epoch needs. `rate` is eta, used by the debiased loss and the rescaled step size only."""
    clean_loss = label_loss(recipe.clean_loss, recipe.clean_q)
    tolerant_loss = label_loss(recipe.tolerant_loss, recipe.tolerant_q)
    lr = recipe.lr / (1 - rate) if recipe.rescale_step else recipe.lr
    optimizer = optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.sgd(lr, recipe.momentum or None))

    def batch_loss(params, images, texts, unrelated, clean, tolerant, said):
        v, t = model.embed_image(params["image"], images), model.embed_text(params["text"], texts)
        logits = v @ t.T / model.tau

        def track(loss):
            pairs = pair_losses(loss, logits)
            if not recipe.debias:
                return pairs
            # Another batch's captions: among this batch's own the true ones would still be candidates.
            shuffled = v @ model.embed_text(params["text"], unrelated).T / model.tau
            return debiased(pairs, shuffled_losses(loss, shuffled), rate)

        loss = (clean * track(clean_loss) + tolerant * track(tolerant_loss)).mean()
        if said is not None:
            loss += recipe.guidance_weight * soft_cross_entropy(logits, said[0] @ said[1].T / recipe.guidance_tau)
        own = jnp.arange(len(logits))
        return loss, (logits.argmax(0) == own) & (logits.argmax(1) == own)

    def epoch(carry, plan, keys, own_teacher, images, texts, common_teacher):
        teacher = own_teacher or common_teacher

        def step(carry, scanned):
            (params, state, (average, count)), (now, key) = carry, scanned
            pixels = images[now.images] if now.pixels is None else now.pixels
            x = shard_rows(augment(key, to_float(pixels), recipe.augment))
            said = teacher and (teacher[0][now.images], teacher[1][now.captions])
            (loss, right), grads = jax.value_and_grad(batch_loss, has_aux=True)(
                params, x, shard_rows(texts[now.captions]), texts[now.unrelated], now.clean, now.tolerant, said
            )
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            decay = jnp.minimum(recipe.ema_decay, (1 + count) / (10 + count))  # short at first, or it would lag behind
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
            return (params, state, (average, count + 1)), (loss, right)

        carry, (losses, right) = jax.lax.scan(step, carry, (plan, keys))
        return carry, losses, right

    def map_networks(function, mapped, *shared):
        """Apply function(one network's, *shared) to each entry of the list `mapped`."""
        if use_vmap(model):
            return map_replicas(function, mapped, *shared)
        return [jitted(function)(one, *shared) for one in mapped]

    return ExpertSteps(
        optimizer, map_networks,
        lambda one, *shared: epoch(*one, *shared),
        jitted(_pair_loss(model.tau)),
    )


@functools.lru_cache(maxsize=8)
def _pair_loss(tau: float):
    def pair_loss(v, t, images, captions):
        """Embeddings (N, D) and (K, D), rows (steps, B) of either -> (steps, B) losses, each among its batch."""
        batch = lambda rows: pair_losses(infonce, v[rows[0]] @ t[rows[1]].T / tau)
        return jax.lax.map(batch, (images, captions))

    return pair_loss


def make_epoch_batches(generator, image_of, batch: int, clean, tolerant, captions) -> EpochBatches:
    """Shuffle K pairs into batches (the last few that fill none are left for another epoch).

    image_of, captions: (K,) what each row pairs; clean, tolerant: (K,) weights of the two tracks.
    """
    batch = min(batch, len(image_of))
    steps = len(image_of) // batch
    order = generator.permutation(len(image_of))[: steps * batch].reshape(steps, batch)
    pick = lambda values, dtype: jnp.asarray(np.asarray(values)[order], dtype)
    images, captions = pick(image_of, jnp.int32), pick(captions, jnp.int32)
    return EpochBatches(jnp.asarray(order), images, None, captions, jnp.roll(captions, 1, axis=0), pick(clean, jnp.float32),
                pick(tolerant, jnp.float32))


def tracks(recipe: Recipe, clean_probability, recovered: bool):
    """Weights of the clean and of the tolerant track for each pair: two (K,) arrays."""
    w = np.asarray(clean_probability, np.float32)
    clean = np.where(w >= 0.5, w, 0)
    risky = recipe.recovery_weight if recovered else recipe.tolerant_weight
    return clean, np.where(w >= 0.5, 0, risky).astype(np.float32)


def _undivided(recipe: Recipe, pairs: int, warming_up: bool):
    """Track weights where no pair is told from another: during warm-up, or for a whole recipe."""
    ones, zeros = np.ones(pairs, np.float32), np.zeros(pairs, np.float32)
    if recipe.division == "clean":
        return ones, zeros
    if recipe.division == "both" and not warming_up:
        return ones, ones * recipe.tolerant_weight
    return zeros, ones
