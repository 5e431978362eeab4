"""What an outer step of the distillation lowers: the matching loss as a function of everything that is learned.

One value of it (docs/method.md, sections 5.1 to 5.3): roll a student out from expert snapshots on the distilled set,
and compare where it ends with where the experts went. All random choices come in from outside (`Draws`), so that a step
can be replayed.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mdw_jax.config.sections import fields
from mdw_jax.data.augment import augment
from mdw_jax.data.resizing import enlarged
from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.losses import distillation_loss
from mdw_jax.method.matching import matching_loss, minibatches, scan_mean, unmerged_step_sizes, unroll
from mdw_jax.models.chunks import in_chunks
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.jit import use_vmap
from mdw_jax.runtime import mesh


@dataclasses.dataclass(frozen=True)
class Method:
    """How to distill: fields of `config.distill`, explained there."""

    inner_steps: int
    inner_optimizer: str
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
    objective: str = "trajectories"
    covariance_scale: float = 1.0
    mean_weight: float = 0.1
    seen_size: int = 0  # side at which models see the images, where they are stored smaller; 0: as they are stored
    inner_lr_form: str = "log"
    logit_scale: float = 0.0
    batches: str = "rounds"
    pixel_units: str = "unit"
    chunk: int = 0
    remat: str = "none"


def method_of(config: ConfigDict) -> Method:
    """How a config distills."""
    return fields(Method, config.distill, seen_size=config.data.size if config.distill.image_size else 0)


def step_sizes(learned: dict) -> dict:
    """The student's step sizes {branch: scalar} of `DistillState.learned`, which holds them or their logarithms."""
    return learned["inner_lr"] if "inner_lr" in learned else jax.tree.map(jnp.exp, learned["log_inner_lr"])


# ---- random choices --------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blend:
    """RepBlend's mixing of the rows of a mini-batch: `weight x + (1 - weight) x[order]`; weight None changes nothing.

    Attributes:
        weight: scalar, or one of each trajectory and inner step, (R, S).
        order: (b,) positions in the mini-batch, or (R, S, b).
    """

    weight: Any = None
    order: Any = None

    def __call__(self, x):
        return x if self.weight is None else self.weight * x + (1 - self.weight) * x[self.order]


class Draws(NamedTuple):
    """All that is random in an outer step.

    Attributes:
        batches: (R, S, b) rows of the distilled set, for each of R trajectories and S inner steps.
        blends: of the same mini-batches.
        augment: typed key of the augmentation, one draw for the whole outer step.
    """

    batches: Any
    blends: Blend
    augment: Any


def draw(key, method: Method, pairs: int, trajectories: int) -> Draws:
    """The random choices of one outer step.

    Args:
        key: a typed key.
        method: how to distill.
        pairs: size M of the set.
        trajectories: number R of trajectories.
    """
    by_batch, by_augment = jax.random.split(key)
    batches = jnp.stack([minibatches(k, pairs, method.batch, method.inner_steps, method.batches)
                         for k in jax.random.split(by_batch, trajectories)])
    blends = draw_blends(by_augment, batches.shape) if method.mixup else Blend()
    return Draws(batches, blends, by_augment)


def draw_blends(key, shape: tuple[int, int, int]) -> Blend:
    """A blend of each mini-batch, the same for images and texts: weight ~ Beta(1, 1) = U(0, 1) (RepBlend).

    Args:
        key: a typed key.
        shape: (R, S, b) of the mini-batches.
    """
    trajectories, steps, size = shape

    def of_trajectory(key):
        by_weight, by_order = jax.random.split(key)
        orders = jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(by_order, steps))
        return Blend(jax.random.uniform(by_weight, (steps,)), orders)

    blends = [of_trajectory(k) for k in jax.random.split(key, trajectories)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *blends)


# ---- the objective ---------------------------------------------------------------------------------------------------


def objective(model: DualEncoder, method: Method, learned: dict, starts, targets, draws: Draws):
    """Matching loss, averaged over trajectories.

    Args:
        model: the dual encoder.
        method: how to distill.
        learned: `DistillState.learned`.
        starts, targets: snapshots of the experts, stacked on a leading axis R.
        draws: the random choices.

    Returns:
        Loss, (S,) mean inner losses.
    """
    model = dataclasses.replace(model, remat=method.remat)
    inputs = student_inputs(model, method, learned, draws.augment)

    def trajectory(start, target, batches, blends):
        sizes = step_sizes(learned)
        if method.loss_merge == "merged_data":
            sizes = unmerged_step_sizes(sizes, start, target)
        final, inner = roll_out(model, method, {**learned, "inputs": inputs}, sizes, start, batches, blends)
        return matching_loss(final, start, target, method.loss_merge), inner

    items = (starts, targets, draws.batches, draws.blends)
    if not use_vmap(model):
        return scan_mean(lambda item: trajectory(*item), items)
    losses, inner = jax.vmap(trajectory, spmd_axis_name=mesh.REPLICA)(*items)
    return losses.mean(), inner.mean(0)


def student_inputs(model: DualEncoder, method: Method, learned: dict, key):
    """The distilled images as the students' image branch takes them: (M, ...)."""
    images = augment(key, enlarged(learned["images"], method.seen_size), method.augment)
    if model.mode == "full":  # the images themselves: the student's mini-batches are the chunks
        return model.inputs(mesh.shard_rows(images, (mesh.REPLICA, mesh.DATA)))
    return in_chunks(model.inputs, images, method.chunk, (mesh.REPLICA, mesh.DATA))


def roll_out(model: DualEncoder, method: Method, learned: dict, sizes: dict, start, batches, blends: Blend):
    """The path of one student on the distilled set.

    Args:
        model, method: as in `objective`.
        learned: texts and correspondence as in `DistillState.learned`, and inputs, of `student_inputs`.
        sizes: {branch: step size}.
        start: parameters of the student.
        batches: (S, b) rows of the distilled set.
        blends: of S mini-batches.

    Returns:
        The student's last parameters, (S,) inner losses.
    """
    soft = distillation_loss(method.loss)

    def inner_loss(params, batch):
        rows, blend = batch
        logits = model.logits(params, mesh.shard_rows(blend(learned["inputs"][rows])),
                              mesh.shard_rows(blend(learned["texts"][rows])))
        if method.logit_scale:  # in place of the model's own, 1 / tau
            logits = logits * (method.logit_scale * model.tau)
        return soft(logits, correspondence(learned["correspondence"], rows, method.alpha))

    return unroll(inner_loss, start, (batches, blends), sizes, gradient=method.gradient,
                  optimizer=method.inner_optimizer)


_OVERSHOOT = 2.0  # of the matching loss, in units of that of students that do not move


def overshooting(method: Method, loss: float) -> float | None:
    """How many times as far from the experts' target students end as they began, where that warns of divergence.

    The matching loss is in units of the squared distance that the experts traveled: where that is short, the gradient is
    large, and SGD's rates know no scale (Adam's have none). On a tiny problem VLD's published update holds at its own
    distance (losses below 2.1 in twelve steps) and at half of it (2.3), and is thrown out at a quarter: 9 in the fifth
    step, 570 in the sixth, step sizes below 0. (This work.)

    Args:
        method: how to distill.
        loss: of an outer step.

    Returns:
        The ratio, from the square root of 2 up; None below, and where the loss has no such scale.
    """
    if method.optimizer != "sgd" or method.objective != "trajectories":
        return None
    still = 2.0 if method.loss_merge == "separate" else 1.0
    return (loss / still) ** 0.5 if loss > _OVERSHOOT * still else None
