"""What is timed: the computations of a config, and random tensors for them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
    """A config's computations, and random tensors for them: snapshots of R trajectories, stacked; batches (R, S, b)."""

    c: ConfigDict
    tower: Tower
    backbone: Any
    model: DualEncoder
    method: Method
    learned: dict
    starts: Any
    targets: Any
    batches: Any


def make_case(c: ConfigDict) -> Case:
    """Raises UserError for a text encoder that is trained: what is measured starts from frozen features."""
    if c.text.train:
        raise UserError("mdw bench measures distillation of frozen text features; set text.train to false.")
    d, m, seed = c.distill, c.model, c.run.seed
    text_dim = c.plan.text_dim or c.text.dim
    tower = tower_without_weights(m, image_shape(c.data))
    backbone = tower.init(named_key(seed, "backbone"))
    model = dual_encoder(tower, backbone, text_dim, mode=m.mode, dim=m.dim, image_head=m.image_head, tau=m.tau,
                         dtype=m.dtype)
    method = dataclasses.replace(fields(Method, d), augment="none", mixup=False)
    generator = named_generator(seed, "bench")
    images = generator.uniform(size=(d.pairs, *image_shape(c.data)))
    learned = init_state(named_key(seed, "bench"), method, images, generator.normal(size=(d.pairs, text_dim))).learned
    # At its start half of a low-rank P has no gradient: move it a little.
    learned["correspondence"] = _moved(generator, learned["correspondence"], 0.1)
    starts = stack([model.init(named_key(seed, "bench", r)) for r in range(d.trajectories)])
    batches = jnp.stack([minibatches(named_key(seed, "bench", "rows", r), d.pairs, d.batch, d.inner_steps)
                         for r in range(d.trajectories)])
    return Case(c, tower, backbone, model, method, learned, starts, _moved(generator, starts, 0.01), batches)


def _moved(generator, tree, distance: float):
    """Every number a normal step of that size away."""
    return jax.tree.map(lambda x: x + jnp.asarray(distance * generator.normal(size=x.shape), x.dtype), tree)
