"""What is measured: the computations of a config, and random tensors for them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config.sections import fields
from mdw_jax.data.registry import image_shape
from mdw_jax.errors import UserError
from mdw_jax.method.distill import Method, init_state
from mdw_jax.method.matching import minibatches
from mdw_jax.models.build import tower_without_weights
from mdw_jax.models.dual_encoder import DualEncoder, dual_encoder
from mdw_jax.models.image.tower import Tower
from mdw_jax.runtime.pytree import stack
from mdw_jax.runtime.rng import named_generator, named_key


class Case(NamedTuple):
    """A config's computations, and random tensors for them.

    Attributes:
        config: resolved.
        tower: the image tower, with random weights.
        backbone: its parameters.
        model: the dual encoder.
        method: how to distill, without augmentation, mixing, and what is of published code alone.
        learned: as `DistillState.learned`.
        starts, targets: snapshots of R trajectories, stacked.
        batches: (R, S, b) rows of the distilled set.
    """

    config: ConfigDict
    tower: Tower
    backbone: Any
    model: DualEncoder
    method: Method
    learned: dict
    starts: Any
    targets: Any
    batches: Any

    @property
    def outer_arguments(self) -> tuple:
        """Arguments of the outer gradient."""
        return self.learned, self.starts, self.targets, self.batches


def make_case(config: ConfigDict) -> Case:
    """The case of a resolved config.

    Raises:
        UserError: its text encoder is trained, or its images are stored small, which is not measured.
    """
    if config.distill.image_size:
        raise UserError("mdw bench measures images of data.size; set distill.image_size to 0.")
    if config.text.train:
        raise UserError("mdw bench measures distillation of frozen text features; set text.train to false.")
    d, m, seed = config.distill, config.model, config.run.seed
    text_dim = config.plan.text_dim or config.text.dim
    tower = tower_without_weights(m, image_shape(config.data))
    backbone = tower.init(named_key(seed, "backbone"))
    model = dual_encoder(tower, backbone, text_dim, mode=m.mode, dim=m.dim, image_head=m.image_head, tau=m.tau,
                         dtype=m.dtype)
    method = dataclasses.replace(fields(Method, d), augment="none", mixup=False, logit_scale=0.0, inner_lr_form="log",
                                 loss_merge=d.loss_merge.removesuffix("_data"))
    generator = named_generator(seed, "bench")
    images = generator.uniform(size=(d.pairs, *image_shape(config.data)))
    learned = init_state(named_key(seed, "bench"), method, images, generator.normal(size=(d.pairs, text_dim))).learned
    # Half of a low-rank P has no gradient at its start: move it a little.
    learned["correspondence"] = _perturbed(generator, learned["correspondence"], 0.1)
    starts = stack([model.init(named_key(seed, "bench", r)) for r in range(d.trajectories)])
    batches = jnp.stack([minibatches(named_key(seed, "bench", "rows", r), d.pairs, d.batch, d.inner_steps)
                         for r in range(d.trajectories)])
    return Case(config, tower, backbone, model, method, learned, starts, _perturbed(generator, starts, 0.01), batches)


def _perturbed(generator: np.random.Generator, tree, distance: float):
    """Every number moved by a normal step of standard deviation `distance`."""
    return jax.tree.map(lambda x: x + jnp.asarray(distance * generator.normal(size=x.shape), x.dtype), tree)
