"""P from teachers: what a preset's experts, or its closed form, believe about the pairs of a set (docs/method.md, 5.3)."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from mdw_jax.data.resizing import enlarged
from mdw_jax.method import closed_form
from mdw_jax.method.correspondence import fitted_correspondence, taught_correspondence
from mdw_jax.method.losses import distillation_loss_entry
from mdw_jax.method.objective import Method, method_of
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import compiled_inputs
from mdw_jax.models.jit import jit_with_frozen
from mdw_jax.pipeline.closed_form import load_closed_form
from mdw_jax.pipeline.expert_networks import Epoch, expert_networks
from mdw_jax.pipeline.experts import experts_stage, kept_pairs
from mdw_jax.pipeline.prepared import Prepared, backbone_features
from mdw_jax.pipeline.preset_run import PresetRun

TEACHERS_WITH_EXPERTS = ("experts", "matched", "both")
TEACHERS_WITH_CLOSED_FORM = ("closed_form", "both")


class CorrespondenceTeachers:
    """The teachers of P of one preset: `distill.correspondence_teacher`."""

    def __init__(self, run: PresetRun, prepared: Prepared):
        self.run, self.prepared = run, prepared
        self.name = run.config.distill.correspondence_teacher

    def similarity(self, images, texts) -> np.ndarray:
        """The mean cosine of each image with each text under the teachers.

        A closed form spreads its cosines otherwise than networks do, so its own count at their calibrated temperature,
        in units of the model's: both then mean the same at one temperature.

        Args:
            images: (M, H, W, C) float32 as they are stored.
            texts: (M, d) features or (M, L, h) embedded tokens.

        Returns:
            (M, M) float32.
        """
        run, model = self.run, self.prepared.model
        method = method_of(run.config)
        images = enlarged(jnp.asarray(images), method.seen_size)
        parts = []
        if self.name in TEACHERS_WITH_EXPERTS:
            experts_stage(run, self.prepared)
            inputs, texts_in = compiled_inputs(model, method.chunk)(images), jnp.asarray(texts)
            cosines = _compiled_cosines(model)
            epoch: Epoch = -1 if self.name == "matched" else "best"
            parts.append(np.mean([np.asarray(cosines(params, inputs, texts_in))
                                  for params in expert_networks(run.experts, epoch)], axis=0))
        if self.name in TEACHERS_WITH_CLOSED_FORM:
            stored = load_closed_form(run, self.prepared, kept_pairs(run, self.prepared))
            features = np.asarray(backbone_features(self.prepared)[0](images))
            cosines_of_form = (closed_form.embed_images(stored.form, features)
                               @ closed_form.embed_texts(stored.form, self.prepared.text_features_of(texts)).T)
            parts.append(cosines_of_form * np.float32(model.tau / stored.tau))
        return np.mean(parts, axis=0)

    def correspondence(self, learned: dict, method: Method, tau: float) -> dict:
        """Parameters of P of learned pairs, as these teachers see them at one temperature.

        Args:
            learned: `DistillState.learned` or `.average`.
            method: how the set is distilled.
            tau: the temperature.
        """
        similarity = self.similarity(learned["images"], learned["texts"])
        matrix = taught_correspondence(similarity, tau, distillation_loss_entry(method.loss))
        return fitted_correspondence(matrix, method.correspondence, method.rank, method.alpha)


@functools.lru_cache(maxsize=4)
def _compiled_cosines(model: DualEncoder) -> Callable:
    """The jitted function (params, inputs, texts) -> (M, M) cosines of one network."""
    def cosines(model, params, inputs, texts):
        return model.embed_image(params["image"], inputs) @ model.embed_text(params["text"], texts).T

    return jit_with_frozen(model, cosines)
