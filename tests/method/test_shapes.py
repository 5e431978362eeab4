"""A wrong shape is named where it is given, and not by what goes wrong with it later."""

import chex
import jax
import numpy as np
import pytest

from mdw_jax.method import coresets, filtering, retrieval
from mdw_jax.method.correspondence import fitted_correspondence, taught_correspondence
from mdw_jax.method.losses import distillation_loss_entry

IMAGES, TEXTS, IMAGE_OF = np.ones((3, 4), np.float32), np.ones((6, 4), np.float32), np.repeat(np.arange(3), 2)
GENERATOR = np.random.default_rng(0)
CALLS = {
    "one caption too few": lambda: retrieval.ranks(np.ones((3, 5)), IMAGE_OF),
    "a single row": lambda: retrieval.recalls(np.ones(6), IMAGE_OF),
    "features of a single image": lambda: coresets.joint_features(IMAGES[0], TEXTS, IMAGE_OF),
    "more pairs than captions": lambda: coresets.joint_features(IMAGES, TEXTS[:5], IMAGE_OF),
    "embeddings of two widths": lambda: filtering.cosines(IMAGES[:, :3], TEXTS, IMAGE_OF),
    "more captions than pairs": lambda: filtering.neg_clip_loss(GENERATOR, IMAGES, TEXTS, IMAGE_OF[:4], 0.07),
    "a correspondence that is not square": lambda: fitted_correspondence(np.ones((3, 2)), "full", 1, 1.0),
    "teachers on other texts": lambda: taught_correspondence(np.ones((3, 2)), 0.07, distillation_loss_entry("nce")),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_wrong_shape_is_named(call):
    with pytest.raises(AssertionError, match=r"(?i)shape|rank|axis"):
        call()


@pytest.mark.parametrize("compiled", [False, True])
def test_the_right_shapes_pass_also_where_they_are_traced(compiled):
    ranks = jax.jit(retrieval.ranks) if compiled else retrieval.ranks
    chex.assert_shape(ranks(np.ones((3, 6)), IMAGE_OF), [(6,), (3,)])
    chex.assert_shape(coresets.joint_features(IMAGES, TEXTS, IMAGE_OF), (6, 8))
    chex.assert_shape(filtering.cosines(IMAGES, TEXTS, IMAGE_OF), (6,))
