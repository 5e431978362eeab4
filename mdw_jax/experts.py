"""Dual-track collaborative learning: experts on noisy pairs (METHOD section 2).

An expert is two networks, A and B. After a warm-up under the tolerant loss, each divides the pairs into clean and risky
by its own losses, and the *other* one trains on that division:

    L = sum over clean pairs  w_n * clean_loss
      + lambda * sum over risky pairs  tolerant_loss                       (while they are not recovered)
      + mu     * sum over risky images tolerant_loss on a caption drawn from the peer's top k  (recovery)

All networks of all experts advance together, epoch by epoch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdw_jax.certificate import debiased
from mdw_jax.data.augment import augment
from mdw_jax.division import divide, division_quality
from mdw_jax.errors import UserError
from mdw_jax.losses import infonce, label_loss, pair_losses, shuffled_losses
from mdw_jax.mesh import spread, stack, unstack
from mdw_jax.retrieval import METRICS, recalls
from mdw_jax.rng import named_generator, named_key
from mdw_jax.towers.conv import on_cpu
from mdw_jax.towers.dual import DualEncoder


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How experts are trained: the fields of `config.experts`, explained there."""

    epochs: int
    batch: int
    lr: float
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
    debias: bool
    rescale_step: bool


class Inputs(NamedTuple):
    """One split as a model sees it: images (N, ...) uint8 pixels or float features; texts (K, d); image_of (K,)."""

    images: Any
    texts: Any
    image_of: Any


class Plan(NamedTuple):
    """The rows of one epoch, each (steps, B): which image, which caption, and the weight of either track's loss."""

    images: Any
    captions: Any
    clean: Any
    tolerant: Any


class Experts(NamedTuple):
    """What training leaves behind, one entry a network (2 e is A and 2 e + 1 is B of expert e).

    snapshots: lists of parameters, entry k after epoch k. log: one dict an epoch and network. best: parameters at the
    best validation r_mean. clean_probability: (K,) mean over networks of the last division (ones without one).
    """

    snapshots: list
    log: list
    best: list
    clean_probability: np.ndarray


def to_float(images):
    """uint8 pixels -> float32 in [0, 1]; features pass through."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def in_chunks(function, rows, size: int = 500):
    """`function` over slices of the leading axis, results put together; the host sees one call a slice."""
    return jnp.concatenate([function(rows[i : i + size]) for i in range(0, len(rows), size)])


class Passes(NamedTuple):
    """The compiled functions of one model; `for_all` applies the per-network ones to a list of networks."""

    optimizer: Any
    for_all: Callable
    epoch: Callable
    pair_loss: Callable
    image: Callable
    text: Callable


def passes(model: DualEncoder, recipe: Recipe, rate: float) -> Passes:
    """Compile what an epoch needs. `rate` is eta, used by the debiased loss and the rescaled step size only."""
    clean_loss = label_loss(recipe.clean_loss, recipe.clean_q)
    tolerant_loss = label_loss(recipe.tolerant_loss, recipe.tolerant_q)
    lr = recipe.lr / (1 - rate) if recipe.rescale_step else recipe.lr
    optimizer = optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.sgd(lr, recipe.momentum or None))

    def batch_loss(params, images, texts, unrelated, clean, tolerant):
        v, t = model.embed_image(params["image"], images), model.embed_text(params["text"], texts)
        logits = v @ t.T / model.tau

        def track(loss):
            pairs = pair_losses(loss, logits)
            if not recipe.debias:
                return pairs
            # Another batch's captions: among this batch's own the true ones would still be candidates.
            shuffled = v @ model.embed_text(params["text"], unrelated).T / model.tau
            return debiased(pairs, shuffled_losses(loss, shuffled), rate)

        return (clean * track(clean_loss) + tolerant * track(tolerant_loss)).mean()

    def epoch(carry, plan, key, images, texts):
        def step(carry, scanned):
            (params, state), (rows, unrelated, key) = carry, scanned
            x = augment(key, to_float(images[rows.images]), recipe.augment)
            loss, grads = jax.value_and_grad(batch_loss)(
                params, x, texts[rows.captions], texts[unrelated], rows.clean, rows.tolerant
            )
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        unrelated = jnp.roll(plan.captions, 1, axis=0)
        carry, losses = jax.lax.scan(step, carry, (plan, unrelated, jax.random.split(key, len(plan.images))))
        return carry, losses.mean()

    def pair_loss(v, t, images, captions):
        batch = lambda rows: pair_losses(infonce, v[rows[0]] @ t[rows[1]].T / model.tau)
        return jax.lax.map(batch, (images, captions))

    # Convolutions under vmap are slow on a CPU; two heads are not.
    together = model.mode == "projection" or not on_cpu()

    def for_all(function, mapped, *shared):
        """Apply function(one network's, *shared) to each entry of the list `mapped`."""
        axes = (0, *(None for _ in shared))
        if together:
            return unstack(_jit(function, axes)(spread(stack(mapped)), *shared), len(mapped))
        return [_jit(function, None)(one, *shared) for one in mapped]

    return Passes(
        optimizer, for_all,
        lambda one, images, texts: epoch(*one, images, texts),
        jax.jit(pair_loss),
        jax.jit(lambda params, images: model.embed_image(params["image"], to_float(images))),
        jax.jit(lambda params, texts: model.embed_text(params["text"], texts)),
    )


@functools.lru_cache(maxsize=64)
def _jit(function, axes):
    return jax.jit(function if axes is None else jax.vmap(function, in_axes=axes))


def plan_epoch(generator, image_of, batch: int, clean, tolerant, captions) -> Plan:
    """Shuffle K pairs into batches (the last few that fill none are left for another epoch).

    image_of, captions: (K,) what each row pairs; clean, tolerant: (K,) weights of the two tracks.
    """
    batch = min(batch, len(image_of))
    steps = len(image_of) // batch
    order = generator.permutation(len(image_of))[: steps * batch].reshape(steps, batch)
    pick = lambda values, dtype: jnp.asarray(np.asarray(values)[order], dtype)
    return Plan(pick(image_of, jnp.int32), pick(captions, jnp.int32), pick(clean, jnp.float32),
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


def top_captions(images, texts, k: int):
    """The k captions nearest to each image: (N, D), (K, D) -> (N, k) int."""
    nearest = jax.jit(lambda rows: jax.lax.top_k(rows @ texts.T, k)[1])
    return np.asarray(in_chunks(nearest, images))


def train_experts(model: DualEncoder, train: Inputs, val: Inputs, recipe: Recipe, *, count: int, seed: int, keep: int,
                  rate: float = 0.0, mismatched=None, on_epoch=lambda *_: None) -> Experts:
    """Train `count` experts together.

    train: pairs as paired by the noise draw (image_of is the noisy pairing). keep: snapshots 0..keep are returned.
    rate: eta, where `debias` or `rescale_step` ask for it. mismatched: (K,) bool, the truth, for the log and for
    `division="oracle"`. on_epoch: called with the epoch number after each.
    """
    run = passes(model, recipe, rate)
    nets = range(2 * count)
    params = [model.init(named_key(seed, "experts", n // 2, "init", n % 2)) for n in nets]
    states = [run.optimizer.init(p) for p in params]
    pairs, image_of = len(train.image_of), np.asarray(train.image_of)
    own_captions = np.arange(pairs)
    snapshots, best, best_val = [[p] for p in params], list(params), [-1.0] * len(nets)
    log, probability = [], np.ones(pairs, np.float32)

    for epoch in range(recipe.epochs):
        divided = epoch >= recipe.warmup and recipe.division in ("gmm", "oracle")
        recovering = divided and recipe.recovery_weight > 0 and epoch >= recipe.recovery_start
        embedded = [
            (in_chunks(functools.partial(run.image, p), train.images), run.text(p, train.texts))
            if recovering or (divided and recipe.division == "gmm") else None
            for p in params
        ]
        if divided and recipe.division == "gmm":
            losses = _all_pair_losses(run.pair_loss, embedded, image_of, recipe.batch, seed, epoch)
            own_division = [divide(values, seed) for values in losses]
        elif divided:
            own_division = [(~mismatched).astype(np.float32) for _ in nets]

        plans = []
        for n in nets:
            peer = n ^ 1 if recipe.dual else n
            captions = own_captions
            if divided:
                clean, tolerant = tracks(recipe, own_division[peer], recovering)
            else:
                clean, tolerant = _undivided(recipe, pairs, epoch < recipe.warmup)
            generator = named_generator(seed, "experts", n // 2, "epoch", epoch, n % 2)
            if recovering:
                nearest = top_captions(*embedded[peer], recipe.recovery_top_k)
                drawn = nearest[image_of, generator.integers(recipe.recovery_top_k, size=pairs)]
                captions = np.where(clean > 0, own_captions, drawn)
            plans.append(plan_epoch(generator, image_of, recipe.batch, clean, tolerant, captions))
        keys = [named_key(seed, "experts", n // 2, "augment", epoch, n % 2) for n in nets]
        mapped = [((p, s), plan, key) for p, s, plan, key in zip(params, states, plans, keys, strict=True)]
        results = run.for_all(run.epoch, mapped, train.images, train.texts)
        params, states = [r[0][0] for r in results], [r[0][1] for r in results]

        for n in nets:
            if not np.isfinite(results[n][1]):
                raise UserError(f"expert {n // 2} diverged in epoch {epoch + 1}: its loss is not finite; lower experts.lr.")
            scores = score(model, params[n], val)
            row = {"epoch": epoch + 1, "expert": n // 2, "network": "AB"[n % 2], "loss": float(results[n][1])}
            row |= {f"val_{name}": float(value) for name, value in zip(METRICS, scores, strict=True)}
            if divided and mismatched is not None:
                row |= division_quality(own_division[n], mismatched)
            log.append(row)
            if row["val_r_mean"] > best_val[n]:
                best[n], best_val[n] = params[n], row["val_r_mean"]
            if epoch + 1 <= keep:
                snapshots[n].append(params[n])
        if divided:
            probability = np.mean(own_division, axis=0)
        on_epoch(epoch, float(np.mean([row["val_r_mean"] for row in log[-len(nets):]])))
    return Experts(snapshots, log, best, probability)


def _all_pair_losses(pair_loss, embedded, image_of, batch, seed, epoch):
    """InfoNCE loss of every pair among a random batch, a list of (K,), one a network."""
    pairs, results = len(image_of), []
    batch = min(batch, pairs)
    for n, (v, t) in enumerate(embedded):
        generator = named_generator(seed, "experts", n // 2, "division", epoch, n % 2)
        order = generator.permutation(pairs)
        order = np.concatenate([order, order[: -pairs % batch]]).reshape(-1, batch)  # the last batch borrows rows
        losses = np.empty(pairs)
        losses[order.ravel()] = np.asarray(pair_loss(v, t, image_of[order], order)).ravel()
        results.append(losses)
    return results


def similarities(model: DualEncoder, params, data: Inputs):
    """(N, K) cosine similarity of all images with all captions."""
    image = _jit(_embedder(model, "image"), None)
    v = in_chunks(lambda rows: image(params["image"], rows), data.images)
    return v @ _jit(_embedder(model, "text"), None)(params["text"], data.texts).T


@functools.lru_cache(maxsize=64)
def _embedder(model, branch):
    if branch == "text":
        return model.embed_text
    return lambda params, images: model.embed_image(params, to_float(images))


def score(model: DualEncoder, params, data: Inputs):
    """Recalls of one network on one split: (7,) in the order of `retrieval.METRICS`."""
    return np.asarray(_jit(recalls, None)(similarities(model, params, data), data.image_of))
