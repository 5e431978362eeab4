"""The computations of a config as functions of shapes alone: nothing is loaded, nothing is run."""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mdw_jax.config.options import DIVIDING
from mdw_jax.config.sections import fields
from mdw_jax.data.registry import image_shape
from mdw_jax.data.resizing import stored_shape
from mdw_jax.method.distill import make_outer_step, outer_shapes
from mdw_jax.method.expert_step import EpochBatches, EpochInputs, Recipe, make_expert_steps
from mdw_jax.method.grad_cam import pixel_weights
from mdw_jax.method.objective import method_of
from mdw_jax.models.build import tower_without_weights
from mdw_jax.models.dual_encoder import DualEncoder, dual_encoder


class Programs:
    """The computations of a resolved config.

    Attributes:
        config: the config.
        image: (H, W, C) of an image.
        tower: the image tower, without weights.
        backbone: shapes of its parameters.
        backbone_size: how many these are.
        params: shapes of what is trained.
    """

    def __init__(self, config: ConfigDict):
        self.config = config
        self.image = image_shape(config.data)
        self.tower = tower_without_weights(config.model, self.image)
        key = jax.eval_shape(jax.random.key, 0)
        self.backbone = jax.eval_shape(self.tower.init, key)
        self.backbone_size = _size(self.backbone)
        self.params = jax.eval_shape(self._model(None).init, key)
        self._recipe, self._method = fields(Recipe, config.experts), method_of(config)

    def sizes(self) -> dict[str, int]:
        """Numbers of trained parameters by part of the model."""
        return {**{f"image {part}": _size(tree) for part, tree in self.params["image"].items()},
                "text head": _size(self.params["text"])}

    def expert_arguments(self) -> tuple:
        """Arguments of `expert_step`: one batch of one network."""
        c, batch = self.config, self.config.experts.batch
        projection = c.model.mode == "projection"
        images = (c.plan.images, self.tower.width) if projection else (
            batch if c.data.stream else c.plan.images, *self.image)
        rows, weights = _shape((1, batch), jnp.int32), _shape((1, batch))
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        teacher = None
        if self._recipe.guidance_weight > 0 and self._recipe.division in DIVIDING:
            width = jax.eval_shape(lambda params, texts: self._model(None).embed_text(params["text"], texts),
                                   self.params, self._texts(1)).shape[1] * self._recipe.peers
            teacher = (_shape((c.plan.images, width)), _shape((c.plan.captions, width)))
        state = jax.eval_shape(
            lambda params: make_expert_steps(self._model(None), self._recipe, 0.0).init(params), self.params)
        batches = EpochBatches(rows, rows, None, rows, rows, weights, weights)
        return (EpochInputs(state, batches, keys, teacher), _shape(images, jnp.float32 if projection else jnp.uint8),
                self._texts(c.plan.captions))

    def expert_step(self, inputs: EpochInputs, images, texts):
        """One epoch of one batch."""
        return make_expert_steps(self._model(None), self._recipe, 0.0).epoch(inputs, images, texts, None)

    def outer_arguments(self) -> tuple:
        """Arguments of `outer_step`."""
        d = self.config.distill
        images, texts = (d.pairs, *stored_shape(self.image, d.image_size)), (d.pairs, self.config.plan.text_dim)
        frozen = self.backbone if self.config.model.mode == "projection" else None
        return frozen, *outer_shapes(self._model(None), self._method, d.trajectories, images, texts)

    def outer_step(self, backbone, *arguments):
        """One outer step of the distillation; `backbone` is the frozen one of projection mode."""
        return make_outer_step(self._model(backbone), self._method)(*arguments)

    def pixel_weights(self) -> tuple:
        """CEO's Grad-CAM weights: (function, *arguments)."""
        backbone, state, *_ = self.outer_arguments()
        d = self.config.distill

        def weights(backbone, params, learned):
            return pixel_weights(self._model(backbone), params, learned["images"], learned["texts"],
                                 learned["correspondence"], alpha=d.alpha, loss=d.loss,
                                 top_k=min(d.ceo_top_k, d.pairs), beta=d.ceo_beta, seen_size=self._method.seen_size,
                                 chunk=d.chunk)

        return weights, backbone, self.params, state.learned

    def _model(self, backbone) -> DualEncoder:
        m = self.config.model
        return dual_encoder(self.tower, backbone, self.config.plan.text_dim, mode=m.mode, dim=m.dim,
                            image_head=m.image_head, tau=m.tau, dtype=m.dtype)

    def _texts(self, rows: int) -> jax.ShapeDtypeStruct:
        return _shape((rows, self.config.plan.text_dim))


def _shape(shape: tuple, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
