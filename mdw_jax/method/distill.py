"""Distillation: learn images, texts, correspondence and step sizes so that a student's path follows the experts'.

One outer step (METHOD section 4): roll a student out from expert snapshots on the distilled set, compare where it ends
with where the experts went, differentiate through the roll-out, scale the image part by the CEO weights, update.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from mdw_jax.data.augment import augment
from mdw_jax.method.correspondence import correspondence, init_correspondence
from mdw_jax.method.losses import soft_loss
from mdw_jax.method.matching import matching_loss, minibatches, scan_mean, unroll
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.jit import jit_with_frozen, use_vmap
from mdw_jax.runtime import mesh
from mdw_jax.runtime.rng import named_key


@dataclasses.dataclass(frozen=True)
class Method:
    """How to distil: fields of `config.distill`, explained there."""

    inner_steps: int
    batch: int
    gradient: str
    loss_merge: str
    loss: str
    correspondence: str
    rank: int
    alpha: float
    optimizer: str
    decay: str
    steps: int
    lr_images: float
    lr_texts: float
    lr_correspondence: float
    lr_inner_lr: float
    inner_lr_image: float
    inner_lr_text: float
    clip_images: bool
    augment: str
    mixup: bool
    ema_decay: float
    ceo: bool
    ceo_every: int
    ceo_top_k: int
    ceo_beta: float


class State(NamedTuple):
    """Everything that changes. learned and average are dicts of
    images (M, H, W, C), texts (M, d), correspondence (parameters of P), log_steps {"image", "text"}."""

    learned: Any
    average: Any
    optimizer: Any
    step: Any


def init_state(key, method: Method, images, texts) -> State:
    """Start from real pairs: images (M, H, W, C) float32 in [0, 1], texts (M, d) or (M, L, h)."""
    learned = {
        "images": jnp.asarray(images, jnp.float32),
        "texts": jnp.asarray(texts, jnp.float32),
        "correspondence": init_correspondence(key, method.correspondence, len(texts), method.rank),
        # Logarithms keep the step sizes positive.
        "log_steps": {"image": jnp.log(jnp.float32(method.inner_lr_image)), "text": jnp.log(jnp.float32(method.inner_lr_text))},
    }
    # The average must not share buffers with what is learned: both are donated.
    return State(learned, jax.tree.map(jnp.copy, learned), optimizer_of(method).init(learned), jnp.int32(0))


def optimizer_of(method: Method):
    """One optimizer a group of learned tensors: Adam, or SGD with momentum 0.5 (the peers'); cosine decay if asked."""
    make = optax.adam if method.optimizer == "adam" else lambda lr: optax.sgd(lr, momentum=0.5)
    rates = {"images": method.lr_images, "texts": method.lr_texts, "correspondence": method.lr_correspondence,
             "log_steps": method.lr_inner_lr}
    if method.decay == "cosine":
        rates = {name: optax.cosine_decay_schedule(lr, method.steps) for name, lr in rates.items()}
    return optax.multi_transform({name: make(lr) for name, lr in rates.items()}, {name: name for name in rates})


def objective(model: DualEncoder, method: Method, learned, starts, targets, batches, key):
    """Matching loss averaged over trajectories.

    starts, targets: snapshots stacked on a leading axis R; batches: (R, S, b) rows. One augmentation is drawn for the
    whole outer step. Returns (loss, (S,) mean inner losses).
    """
    inputs = model.inputs(mesh.shard_rows(augment(key, learned["images"], method.augment), (mesh.REPLICA, mesh.DATA)))
    steps = jax.tree.map(jnp.exp, learned["log_steps"])
    soft = soft_loss(method.loss)

    def inner_loss(params, batch):
        rows, blend = batch
        logits = model.logits(params, mesh.shard_rows(blend(inputs[rows])), mesh.shard_rows(blend(learned["texts"][rows])))
        return soft(logits, correspondence(learned["correspondence"], rows, method.alpha))

    def trajectory(start, target, batches, key):
        final, inner = unroll(inner_loss, start, (batches, _blends(key, batches, method.mixup)), steps,
                              gradient=method.gradient)
        return matching_loss(final, start, target, method.loss_merge), inner

    keys = jax.random.split(key, len(batches))
    if not use_vmap(model):
        return scan_mean(lambda one: trajectory(*one), (starts, targets, batches, keys))
    losses, inner = jax.vmap(trajectory, spmd_axis_name=mesh.REPLICA)(starts, targets, batches, keys)
    return losses.mean(), inner.mean(0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Blend:
    """RepBlend's mixing of the rows of a mini-batch: `weight x + (1 - weight) x[order]`; weight None leaves them be."""

    weight: Any
    order: Any

    def __call__(self, x):
        return x if self.weight is None else self.weight * x + (1 - self.weight) * x[self.order]


def _blends(key, batches, mix: bool) -> _Blend:
    """One blend an inner step, the same for images and texts: weight ~ Beta(1, 1) = U(0, 1) (RepBlend)."""
    if not mix:
        return _Blend(None, None)
    by_weight, by_order = jax.random.split(key)
    steps, size = batches.shape
    orders = jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(by_order, steps))
    return _Blend(jax.random.uniform(by_weight, (steps,)), orders)


def make_outer_step(model: DualEncoder, method: Method):
    """The jitted outer step: (state, starts, targets, pixel_weights, key) -> (state, metrics).

    It has `lower` and `trace`, as jitted functions do. The state's buffers are donated: use the returned one. Where a
    value is not finite the state is left as it was, and `first_nonfinite` of the metrics is its place in `finite_checks`; it is -1
    where all are.
    """
    optimizer = optimizer_of(method)

    def outer_step(model, state: State, starts, targets, pixel_weights, key):
        by_batch, by_augment = jax.random.split(key)
        pairs, trajectories = len(state.learned["texts"]), len(jax.tree.leaves(starts)[0])
        batches = jnp.stack([minibatches(k, pairs, method.batch, method.inner_steps)
                             for k in jax.random.split(by_batch, trajectories)])
        (loss, inner), grads = jax.value_and_grad(objective, argnums=2, has_aux=True)(
            model, method, state.learned, starts, targets, batches, by_augment
        )
        gradient, norm = dict(grads), jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
        if method.optimizer == "sgd":
            grads["images"] = grads["images"] * pixel_weights
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.learned)
        if method.optimizer == "adam":
            # Adam divides a constant factor of the gradient out again, so here W must scale the update itself.
            updates["images"] = updates["images"] * pixel_weights
        learned = optax.apply_updates(state.learned, updates)
        if method.clip_images:
            learned["images"] = jnp.clip(learned["images"], 0, 1)
        average = jax.tree.map(lambda a, x: method.ema_decay * a + (1 - method.ema_decay) * x, state.average, learned)
        new = State(learned, average, optimizer_state, state.step + 1)
        finite = jnp.stack([*_finite(state.learned), *jnp.isfinite(inner), jnp.isfinite(loss), *_finite(gradient),
                            jnp.isfinite(norm), *_finite(learned)])
        good = finite.all()
        new = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, state)
        steps = jax.tree.map(jnp.exp, new.learned["log_steps"])
        metrics = {"loss": loss, "gradient": norm, "inner_first": inner[0], "inner_last": inner[-1],
                   "inner_lr_image": steps["image"], "inner_lr_text": steps["text"],
                   "first_nonfinite": jnp.where(good, -1, jnp.argmin(finite))}
        return new, metrics

    if len(jax.devices()) == 1:
        return jit_with_frozen(model, outer_step, donate_argnums=1)
    return ShardedOuterStep(model, outer_step)


def outer_shapes(model: DualEncoder, method: Method, trajectories: int, images, texts):
    """Shapes of all arguments of `make_outer_step`'s function, to compile it ahead of its first call:
    `step.lower(*outer_shapes(...)).compile()`.

    images: shape (M, H, W, C) of the distilled images; texts: that of the texts.
    """
    shape = lambda sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(functools.partial(init_state, method=method), key, images=shape(images), texts=shape(texts))
    snapshots = jax.tree.map(lambda x: shape((trajectories, *x.shape), x.dtype),
                             jax.eval_shape(model.init, key))
    return state, snapshots, snapshots, shape((*images[:-1], 1)), key


def _finite(tree) -> list:
    return [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]


def finite_checks(learned, inner_steps: int) -> list[str]:
    """Names of what an outer step checks to be finite, in the order in which one value comes of another."""
    names = [jax.tree_util.keystr(path, simple=True, separator=".")
             for path, _ in jax.tree_util.tree_leaves_with_path(learned)]
    return [*(f"{name}, before the step" for name in names),
            *(f"a student's loss at inner step {step}" for step in range(inner_steps)), "the matching loss",
            *(f"the gradient of {name}" for name in names), "the norm of the gradient",
            *(f"{name}, after the step" for name in names)]


class ShardedOuterStep:
    """The jitted outer step with trajectories side by side and mini-batches over what is left; the state is on all."""

    def __init__(self, model: DualEncoder, outer_step):
        self._model, self._outer_step = model, outer_step
        self._made = functools.cache(self._make)

    def __call__(self, *arguments):
        return self._through(lambda step: step, *arguments)

    def lower(self, *arguments):
        """As a jitted function has it: of arrays or of their shapes."""
        return self._through(lambda step: step.lower, *arguments)

    def trace(self, *arguments):
        """Likewise."""
        return self._through(lambda step: step.trace, *arguments)

    def _through(self, what, state, starts, targets, *rest):
        devices, step = self._made(len(jax.tree.leaves(starts)[0]))
        state = mesh.shard(devices, PartitionSpec(), state)
        starts, targets = (mesh.shard(devices, PartitionSpec(mesh.REPLICA), tree) for tree in (starts, targets))
        rest = mesh.shard(devices, PartitionSpec(), rest)
        with jax.set_mesh(devices):
            return what(step)(state, starts, targets, *rest)

    def _make(self, trajectories: int):
        devices = mesh.mesh_for(trajectories)
        # On all devices once, not at every step.
        model = self._model.with_frozen(mesh.shard(devices, PartitionSpec(), self._model.frozen))
        return devices, jit_with_frozen(model, self._outer_step, donate_argnums=1,
                                out_shardings=NamedSharding(devices, PartitionSpec()))


def schedule(seed: int, set_index: int, step: int, trajectories: int, networks: int, max_start_epoch: int):
    """Which network and which start epoch each trajectory of an outer step uses: two (R,) lists of ints.

    A function of the step alone, so that a resumed run goes on exactly where it was.
    """
    by_network, by_start = jax.random.split(named_key(seed, "distill", set_index, "schedule", step))
    order = jax.random.permutation(by_network, networks)
    starts = jax.random.randint(by_start, (trajectories,), 0, max_start_epoch)
    return [int(order[r % networks]) for r in range(trajectories)], [int(start) for start in starts]
