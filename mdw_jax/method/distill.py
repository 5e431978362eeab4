"""Distillation: learn images, texts, correspondence and step sizes so that a student's path follows the experts'.

One outer step (docs/method.md, section 5): roll a student out from expert snapshots on the distilled set, compare where
it ends with where the experts went, differentiate through the unroll, scale the image part by the Grad-CAM weights,
update.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from mdw_jax.config.options import EXPERT_ORDERS
from mdw_jax.config.plugins import unknown_option
from mdw_jax.errors import UserError
from mdw_jax.method.correspondence import init_correspondence
from mdw_jax.method.objective import Draws, Method, draw, objective, step_sizes
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.image.tower import Tower
from mdw_jax.models.jit import jit_with_frozen
from mdw_jax.runtime import mesh
from mdw_jax.runtime.rng import named_key


class DistillState(NamedTuple):
    """Everything that an outer step changes.

    Attributes:
        learned: dict of images (M, H, W, C), texts (M, d) or (M, L, h), correspondence (parameters of P) and
            log_inner_lr or inner_lr {"image", "text"} (logarithms of the student's step sizes, or these themselves).
        average: its exponential moving average over outer steps.
        optimizer: state of the optimizers.
        step: number of outer steps done.
    """

    learned: Any
    average: Any
    optimizer: Any
    step: Any


def init_state(key, method: Method, images, texts) -> DistillState:
    """The state before the first outer step, from real pairs.

    Args:
        key: a typed key, for a low-rank P.
        method: how to distill.
        images: (M, H, W, C) float32 in [0, 1].
        texts: (M, d) features or (M, L, h) embedded tokens.

    Raises:
        AssertionError: there are more of one than of the other.
    """
    learned = {
        "images": jnp.asarray(images, jnp.float32),
        "texts": jnp.asarray(texts, jnp.float32),
        "correspondence": init_correspondence(key, method.correspondence, len(texts), method.rank),
    }
    chex.assert_equal_shape_prefix([learned["images"], learned["texts"]], 1)
    sizes = {"image": jnp.float32(method.inner_lr_image), "text": jnp.float32(method.inner_lr_text)}
    if method.inner_lr_form == "linear":
        learned["inner_lr"] = sizes
    else:  # logarithms keep the step sizes positive
        learned["log_inner_lr"] = jax.tree.map(jnp.log, sizes)
    # The average must not share buffers with what is learned: both are donated.
    return DistillState(learned, jax.tree.map(jnp.copy, learned), optimizer_of(method).init(learned), jnp.int32(0))


class SetOptimizer(NamedTuple):
    """An optimizer of the distilled set.

    Attributes:
        make: learning rate or schedule -> optax transformation.
        weighted: what the Grad-CAM pixel weights multiply, "gradient" or "update". (Adam divides a constant factor of
            the gradient out again, so its update has to be weighted.)
    """

    make: Callable[[Any], optax.GradientTransformation]
    weighted: str


SET_OPTIMIZERS = {
    "adam": SetOptimizer(optax.adam, "update"),
    "sgd": SetOptimizer(lambda lr: optax.sgd(lr, momentum=0.5), "gradient"),  # as LoRS and VLD
}
DECAYS: dict[str, Callable[[float, int], Any]] = {
    "cosine": lambda lr, steps: optax.cosine_decay_schedule(lr, max(steps, 1)),
    "none": lambda lr, steps: lr,
}


def optimizer_of(method: Method, std: tuple[float, ...] | None = None) -> optax.GradientTransformation:
    """One optimizer for each group of learned tensors, with its own learning rate.

    Args:
        method: how to distill.
        std: of `pixel_std`.

    Raises:
        UserError: distill.optimizer or distill.decay is unknown.
    """
    make = _choice(SET_OPTIMIZERS, method.optimizer, "distill.optimizer", "optimizer of the distilled set").make
    decay = _choice(DECAYS, method.decay, "distill.decay", "learning rate decay")
    rates = {"images": method.lr_images, "texts": method.lr_texts, "correspondence": method.lr_correspondence,
             "inner_lr" if method.inner_lr_form == "linear" else "log_inner_lr": method.lr_inner_lr}
    optimizers = {name: make(decay(lr, method.steps)) for name, lr in rates.items()}
    if std is not None:
        optimizers["images"] = _in_units(optimizers["images"], std)
    return optax.multi_transform(optimizers, {name: name for name in rates})


def _in_units(optimizer: optax.GradientTransformation, std: tuple[float, ...]) -> optax.GradientTransformation:
    """The optimizer of pixels divided by `std`, applied to pixels: its state is that of the divided ones."""
    scaled = lambda tree: jax.tree.map(lambda x: x * jnp.float32(std), tree)

    def update(gradient, state, params=None):
        updates, state = optimizer.update(scaled(gradient), state, params)
        return scaled(updates), state

    return optax.GradientTransformation(optimizer.init, update)


def pixel_std(tower: Tower, method: Method) -> tuple[float, ...] | None:
    """The standard deviation of each channel by which the tower divides images, where `lr_images` counts in such units.

    Published code learns normalized pixels `x = (pixel - mean) / std`. There the gradient is std times that by the
    pixel, and a step moves the pixel by std times that of x: under SGD a rate of x is std squared of it for the pixel.

    Returns:
        One number for each channel, or None where `lr_images` is in units of pixels in [0, 1].

    Raises:
        UserError: the tower does not say how it normalizes.
    """
    if method.pixel_units == "unit":
        return None
    if tower.std is None:
        raise UserError(f"distill.pixel_units is '{method.pixel_units}', but nothing is known of how the tower "
                        f"'{tower.name}' normalizes images; set it to unit, and distill.lr_images for pixels in [0, 1].")
    return tower.std


def _choice(table: dict, name: str, setting: str, noun: str):
    if name not in table:
        raise unknown_option(name, setting, noun, table, plugin=False)
    return table[name]


# ---- the outer step --------------------------------------------------------------------------------------------------


def make_outer_step(model: DualEncoder, method: Method) -> Callable:
    """The jitted outer step: (state, starts, targets, pixel_weights, key) -> (state, metrics).

    It also has `lower` and `trace`, as jitted functions do. The state's buffers are donated: use the returned one.
    Where a value is not finite the state stays as it was, and the metric `first_nonfinite` is the value's position in
    `finite_checks`; else it is -1.

    Args:
        model: the dual encoder that students and experts share.
        method: how to distill.
    """
    optimizer = optimizer_of(method, pixel_std(model.tower, method))

    def outer_step(model, state: DistillState, starts, targets, pixel_weights, key):
        draws = draw(key, method, len(state.learned["texts"]), len(jax.tree.leaves(starts)[0]))
        return outer_update(model, method, optimizer, state, starts, targets, pixel_weights, draws)

    if len(jax.devices()) == 1:
        return jit_with_frozen(model, outer_step, donate_argnums=1)
    return ShardedOuterStep(model, outer_step)


def apply_gradient(method: Method, optimizer: optax.GradientTransformation, state: DistillState, loss, inner,
                   gradient: dict, pixel_weights) -> tuple[DistillState, dict]:
    """The state after a step along a gradient, and the step's metrics, as `make_outer_step` describes them.

    Args:
        method: how to distill.
        optimizer: `optimizer_of(method)`.
        state: the state before.
        loss: the loss of the step.
        inner: (S,) losses of the student, none without an unroll.
        gradient: of the loss, with respect to `DistillState.learned`.
        pixel_weights: (M, H, W, 1).
    """
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient)))
    updated = _update(method, optimizer, state, gradient, pixel_weights)
    # In the order of `finite_checks`.
    finite = jnp.stack([*_finite(state.learned), *jnp.isfinite(inner), jnp.isfinite(loss), *_finite(gradient),
                        jnp.isfinite(norm), *_finite(updated.learned)])
    all_finite = finite.all()
    updated = jax.tree.map(lambda new, old: jnp.where(all_finite, new, old), updated, state)
    steps = step_sizes(updated.learned)
    return updated, {"loss": loss, "gradient": norm, "inner_lr_image": steps["image"], "inner_lr_text": steps["text"],
                     "first_nonfinite": jnp.where(all_finite, -1, jnp.argmin(finite))}


def outer_update(model: DualEncoder, method: Method, optimizer: optax.GradientTransformation, state: DistillState, starts,
                 targets, pixel_weights, draws: Draws) -> tuple[DistillState, dict]:
    """One outer step with its random choices given: what `make_outer_step` compiles.

    Args:
        model, method: as in `make_outer_step`.
        optimizer: `optimizer_of(method, pixel_std(model.tower, method))`.
        state: where it begins.
        starts, targets: snapshots of the experts, stacked on a leading axis R.
        pixel_weights: (M, H, W, 1) Grad-CAM weights.
        draws: the random choices.

    Returns:
        The new state, metrics.
    """
    (loss, inner), gradient = jax.value_and_grad(objective, argnums=2, has_aux=True)(
        model, method, state.learned, starts, targets, draws
    )
    updated, metrics = apply_gradient(method, optimizer, state, loss, inner, gradient, pixel_weights)
    return updated, {**metrics, "inner_first": inner[0], "inner_last": inner[-1]}


def _update(method: Method, optimizer: optax.GradientTransformation, state: DistillState, gradient: dict,
            pixel_weights) -> DistillState:
    """The state after one step of the optimizers, the images' weighted by `pixel_weights` (M, H, W, 1)."""
    weighted = SET_OPTIMIZERS[method.optimizer].weighted
    if weighted == "gradient":
        gradient = {**gradient, "images": gradient["images"] * pixel_weights}
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.learned)
    if weighted == "update":
        updates["images"] = updates["images"] * pixel_weights
    learned = optax.apply_updates(state.learned, updates)
    if method.clip_images:
        learned["images"] = jnp.clip(learned["images"], 0, 1)
    average = jax.tree.map(lambda a, x: method.ema_decay * a + (1 - method.ema_decay) * x, state.average, learned)
    return DistillState(learned, average, optimizer_state, state.step + 1)


def _finite(tree) -> list:
    return [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]


def finite_checks(learned: dict, inner_steps: int) -> list[str]:
    """Names of the values that an outer step checks to be finite, in the order in which they are computed.

    Args:
        learned: `DistillState.learned`.
        inner_steps: number S of inner steps; 0 without an unroll.
    """
    names = [jax.tree_util.keystr(path, simple=True, separator=".")
             for path, _ in jax.tree_util.tree_leaves_with_path(learned)]
    return [*(f"{name}, before the step" for name in names),
            *(f"a student's loss at inner step {step}" for step in range(inner_steps)), "the matching loss",
            *(f"the gradient of {name}" for name in names), "the norm of the gradient",
            *(f"{name}, after the step" for name in names)]


def outer_shapes(model: DualEncoder, method: Method, trajectories: int, images: Sequence[int], texts: Sequence[int]):
    """Shapes of all arguments of the outer step, to compile it ahead of its first call:
    `step.lower(*outer_shapes(...)).compile()`.

    Args:
        model, method: as in `make_outer_step`.
        trajectories: number R of trajectories per outer step.
        images: shape (M, H, W, C) of the distilled images.
        texts: shape of the distilled texts.
    """
    shape = lambda sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(functools.partial(init_state, method=method), key, images=shape(images), texts=shape(texts))
    snapshots = jax.tree.map(lambda x: shape((trajectories, *x.shape), x.dtype), jax.eval_shape(model.init, key))
    return state, snapshots, snapshots, shape((*images[:-1], 1)), key


class ShardedOuterStep:
    """The jitted outer step on several devices: trajectories in parallel, mini-batches over the devices left.

    The state is replicated on all devices.
    """

    def __init__(self, model: DualEncoder, outer_step: Callable):
        self._model, self._outer_step = model, outer_step
        self._compiled: dict[int, tuple] = {}  # by number of trajectories

    def __call__(self, *arguments):
        devices, step, arguments = self._place(*arguments)
        with jax.set_mesh(devices):
            return step(*arguments)

    def lower(self, *arguments):
        """Lowered for arguments that are arrays or `jax.ShapeDtypeStruct`s."""
        devices, step, arguments = self._place(*arguments)
        with jax.set_mesh(devices):
            return step.lower(*arguments)

    def trace(self, *arguments):
        """Traced for arguments that are arrays or `jax.ShapeDtypeStruct`s."""
        devices, step, arguments = self._place(*arguments)
        with jax.set_mesh(devices):
            return step.trace(*arguments)

    def _place(self, state: DistillState, starts, targets, *others) -> tuple:
        """(mesh, jitted step, arguments on that mesh)."""
        devices, step = self._step_for(len(jax.tree.leaves(starts)[0]))
        everywhere, by_trajectory = PartitionSpec(), PartitionSpec(mesh.REPLICA)
        state = mesh.shard(devices, everywhere, state)
        starts, targets = (mesh.shard(devices, by_trajectory, tree) for tree in (starts, targets))
        return devices, step, (state, starts, targets, *mesh.shard(devices, everywhere, others))

    def _step_for(self, trajectories: int) -> tuple:
        """(mesh, jitted step) for a number of trajectories, made once."""
        if trajectories not in self._compiled:
            devices = mesh.mesh_for(trajectories)
            # Frozen weights are sent to all devices here, not at every step.
            model = self._model.with_frozen(mesh.shard(devices, PartitionSpec(), self._model.frozen))
            self._compiled[trajectories] = devices, jit_with_frozen(
                model, self._outer_step, donate_argnums=1, out_shardings=NamedSharding(devices, PartitionSpec()))
        return self._compiled[trajectories]


def schedule(seed: int, set_index: int, step: int, trajectories: int, networks: int,
             max_start_epoch: int, order: str = "drawn") -> tuple[list[int], list[int]]:
    """Which network and which start epoch each trajectory of an outer step uses.

    It is a function of the step alone, so that a resumed run continues exactly where it was.

    Args:
        seed: of the run.
        set_index: which distilled set.
        step: which outer step.
        trajectories: number R of trajectories.
        networks: number of networks whose trajectories are stored.
        max_start_epoch: start epochs are drawn from 0 .. max_start_epoch - 1.
        order: `drawn`, anew at each step, or `cycled`: one after another in a random order, which is a new one after
            each round (VLD, LoRS, RepBlend).

    Returns:
        R networks, R start epochs.

    Raises:
        UserError: the order is unknown.
    """
    if order not in EXPERT_ORDERS:
        raise unknown_option(order, "distill.expert_order", "order of the experts", EXPERT_ORDERS, plugin=False)
    by_network, by_start = jax.random.split(named_key(seed, "distill", set_index, "schedule", step))
    starts = [int(start) for start in jax.random.randint(by_start, (trajectories,), 0, max_start_epoch)]
    if order == "cycled":
        places = [divmod(step * trajectories + r, networks) for r in range(trajectories)]
        rounds = {n: jax.random.permutation(named_key(seed, "distill", set_index, "round", n), networks) for n, _ in places}
        return [int(rounds[n][place]) for n, place in places], starts
    permutation = jax.random.permutation(by_network, networks)
    return [int(permutation[r % networks]) for r in range(trajectories)], starts
