"""One epoch of one expert network: batches, weights of the tracks, and the compiled steps over them (docs/method.md, 2)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdw_jax.data.augment import augment
from mdw_jax.errors import UserError
from mdw_jax.method.losses import debiased, expert_loss, infonce, pair_losses, shuffled_losses, soft_cross_entropy
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import to_float
from mdw_jax.models.jit import use_vmap
from mdw_jax.runtime.mesh import jitted, map_replicas, shard_rows


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How experts are trained: the fields of `config.experts`, explained there."""

    closed_form: bool
    init: str
    teacher_count: int
    teacher_epochs: int
    epochs: int
    trajectory_epochs: int
    trajectory_lr: float
    batch: int
    lr: float
    lr_with_teachers: float
    optimizer: str
    decay: str
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
    recovery_search: str
    guidance_weight: float
    guidance_tau: float
    peers: int
    ema_decay: float
    debias: bool
    rescale_step: bool


class NetworkState(NamedTuple):
    """What the optimizer changes of one network.

    Attributes:
        params: the parameters.
        optimizer_state: of `ExpertSteps.optimizer`.
        average: the exponential moving average of the parameters; this is the expert.
        step_count: float32 scalar, steps done.
    """

    params: Any
    optimizer_state: Any
    average: Any
    step_count: Any


class EpochBatches(NamedTuple):
    """The batches of one epoch of one network; every array is (steps, B).

    Attributes:
        rows: row of each pair in the training set.
        images: row of the pair's image.
        pixels: the images themselves, (steps, B, ...), where they are streamed; None where all are in memory.
        captions: row of the caption that the image is trained with.
        unrelated: row of a caption of another batch.
        clean: weight of the pair in the clean track.
        tolerant: weight of the pair in the tolerant track.
        texts, unrelated_texts: the texts themselves of `captions` and `unrelated`, (steps, B, ...), as `pixels`.
        teacher_images, teacher_texts: embeddings (steps, B, D) of the images and of `captions` by the teachers, where
            these stay on the host.
    """

    rows: Any
    images: Any
    pixels: Any
    captions: Any
    unrelated: Any
    clean: Any
    tolerant: Any
    texts: Any = None
    unrelated_texts: Any = None
    teacher_images: Any = None
    teacher_texts: Any = None


class EpochInputs(NamedTuple):
    """What is a network's own in an epoch; all else is shared by the networks.

    Attributes:
        state: its `NetworkState`.
        batches: its `EpochBatches`.
        keys: (steps,) typed keys of the augmentation.
        teacher: embeddings of its own teachers, of all images (N, D) and all captions (K, D); None without guidance,
            where all networks have the same teachers, or where they come with the batches.
    """

    state: NetworkState
    batches: EpochBatches
    keys: Any
    teacher: Any


class ExpertSteps(NamedTuple):
    """The compiled functions of one model and recipe.

    Attributes:
        optimizer: an optax optimizer.
        epoch: (EpochInputs, images, texts, common teacher or None) -> (NetworkState, losses (steps,), correct (steps, B)
            bool: whether image and caption of the pair found each other in the batch). Not jitted; one object, so that
            jitting it twice compiles it once.
        map_networks: (function, list of EpochInputs, *shared) -> list of function(inputs, *shared), jitted; all networks
            in one program where that is faster.
    """

    optimizer: optax.GradientTransformation
    epoch: Callable
    map_networks: Callable

    def init(self, params) -> NetworkState:
        """The state of a network before its first step."""
        return NetworkState(params, self.optimizer.init(params), params, jnp.float32(0))


EXPERT_OPTIMIZERS: dict[str, Callable[[Any, Recipe], optax.GradientTransformation]] = {
    "sgd": lambda lr, recipe: optax.chain(optax.add_decayed_weights(recipe.weight_decay),
                                          optax.sgd(lr, recipe.momentum or None)),
    "adam": lambda lr, recipe: optax.adamw(lr, weight_decay=recipe.weight_decay),
}


def make_expert_steps(model: DualEncoder, recipe: Recipe, rate: float, total_steps: int = 0) -> ExpertSteps:
    """The optimizer and the steps of networks that train by `recipe`.

    Args:
        model: whose networks train.
        recipe: losses, weights and step sizes.
        rate: eta, the share of mismatched pairs; only the debiased loss and the rescaled step size use it.
        total_steps: of the whole training, over which the learning rate decays.

    Raises:
        UserError: the recipe names an unknown loss.
    """
    lr: Any = recipe.lr / (1 - rate) if recipe.rescale_step else recipe.lr  # Proposition 2
    if recipe.decay == "cosine":
        lr = optax.cosine_decay_schedule(lr, max(total_steps, 1))
    optimizer = EXPERT_OPTIMIZERS[recipe.optimizer](lr, recipe)
    return ExpertSteps(optimizer, _make_epoch(_make_batch_loss(model, recipe, rate), optimizer, recipe),
                       functools.partial(_map_networks, model))


def _make_batch_loss(model: DualEncoder, recipe: Recipe, rate: float) -> Callable:
    """The loss of a batch and which of its pairs found each other: both tracks and guidance (docs/method.md, 2.3, 2.5)."""
    clean_loss = expert_loss(recipe.clean_loss, recipe.clean_q)
    tolerant_loss = expert_loss(recipe.tolerant_loss, recipe.tolerant_q)

    def batch_loss(params, images, texts, unrelated, clean, tolerant, teacher):
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
        if teacher is not None:
            loss += recipe.guidance_weight * soft_cross_entropy(logits, teacher[0] @ teacher[1].T / recipe.guidance_tau)
        own = jnp.arange(len(logits))
        return loss, (logits.argmax(0) == own) & (logits.argmax(1) == own)

    return batch_loss


def _make_epoch(batch_loss: Callable, optimizer: optax.GradientTransformation, recipe: Recipe) -> Callable:
    """`ExpertSteps.epoch`."""

    def epoch(inputs: EpochInputs, images, texts, common_teacher):
        teacher = inputs.teacher or common_teacher

        def step(state: NetworkState, batch_and_key):
            batch, key = batch_and_key
            pixels = images[batch.images] if batch.pixels is None else batch.pixels
            x = shard_rows(augment(key, to_float(pixels), recipe.augment))
            own_texts, unrelated = batch.texts, batch.unrelated_texts
            if own_texts is None:
                own_texts, unrelated = texts[batch.captions], texts[batch.unrelated]
            batch_teacher = teacher and (teacher[0][batch.images], teacher[1][batch.captions])
            if batch.teacher_images is not None:
                batch_teacher = batch.teacher_images, batch.teacher_texts
            (loss, correct), grads = jax.value_and_grad(batch_loss, has_aux=True)(
                state.params, x, shard_rows(own_texts), unrelated, batch.clean, batch.tolerant, batch_teacher
            )
            updates, optimizer_state = optimizer.update(grads, state.optimizer_state, state.params)
            params = optax.apply_updates(state.params, updates)
            count = state.step_count
            decay = jnp.minimum(recipe.ema_decay, (1 + count) / (10 + count))  # short at first, or it would lag behind
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, params)
            return NetworkState(params, optimizer_state, average, count + 1), (loss, correct)

        state, (losses, correct) = jax.lax.scan(step, inputs.state, (inputs.batches, inputs.keys))
        return state, losses, correct

    return epoch


def _map_networks(model: DualEncoder, function: Callable, networks: list, *shared) -> list:
    """[function(network, *shared) for network in networks], jitted."""
    if use_vmap(model):
        return map_replicas(function, networks, *shared)
    return [jitted(function)(network, *shared) for network in networks]


@functools.lru_cache(maxsize=8)
def compiled_pair_losses(tau: float) -> Callable:
    """The jitted InfoNCE loss of pairs, each within its batch, at temperature `tau`.

    Returns:
        A function of unit embeddings (N, D) of images and (K, D) of captions and of (steps, B) rows of either, which
        returns (steps, B) losses.
    """

    def pair_loss(v, t, images, captions):
        batch = lambda rows: pair_losses(infonce, v[rows[0]] @ t[rows[1]].T / tau)
        return jax.lax.map(batch, (images, captions))

    return jitted(pair_loss)


def make_epoch_batches(generator: np.random.Generator, image_of, batch: int, clean, tolerant, captions) -> EpochBatches:
    """Shuffle K pairs into batches; the last pairs that fill no batch are left out of this epoch.

    Args:
        generator: draws the order.
        image_of: (K,) row of each pair's image.
        batch: pairs in a batch, at most K.
        clean, tolerant: (K,) weights of the two tracks.
        captions: (K,) row of the caption that each image is trained with.
    """
    batch = min(batch, len(image_of))
    steps = len(image_of) // batch
    order = generator.permutation(len(image_of))[: steps * batch].reshape(steps, batch)
    pick = lambda values, dtype: jnp.asarray(np.asarray(values)[order], dtype)
    images, captions = pick(image_of, jnp.int32), pick(captions, jnp.int32)
    return EpochBatches(jnp.asarray(order), images, None, captions, jnp.roll(captions, 1, axis=0),
                        pick(clean, jnp.float32), pick(tolerant, jnp.float32))


def track_weights(recipe: Recipe, clean_probability, recovering: bool) -> tuple[np.ndarray, np.ndarray]:
    """(K,) weights of divided pairs in the clean and in the tolerant track (docs/method.md, 2.3).

    Args:
        recipe: its weights lambda and mu.
        clean_probability: (K,) w_n.
        recovering: whether risky images get captions that their teachers choose.
    """
    w = np.asarray(clean_probability, np.float32)
    clean = np.where(w >= 0.5, w, 0)
    risky = recipe.recovery_weight if recovering else recipe.tolerant_weight
    return clean, np.where(w >= 0.5, 0, risky).astype(np.float32)


def undivided_weights(recipe: Recipe, pairs: int, warming_up: bool) -> tuple[np.ndarray, np.ndarray]:
    """(K,) weights in both tracks where all pairs are treated alike: in the warm-up, or by a recipe without division.

    Raises:
        UserError: `experts.division` is no choice that treats all pairs alike.
    """
    ones, zeros = np.ones(pairs, np.float32), np.zeros(pairs, np.float32)
    if recipe.division == "clean":
        return ones, zeros
    if warming_up or recipe.division == "tolerant":
        return zeros, ones
    if recipe.division == "both":
        return ones, ones * recipe.tolerant_weight
    raise UserError(f"experts.division is '{recipe.division}'; choose one of gmm, oracle, clean, tolerant, both.")
