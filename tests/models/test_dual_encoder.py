import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.models.dual_encoder import dual_encoder, unit
from mdw_jax.models.image.convnet import convnet
from mdw_jax.models.jit import jit_with_frozen
from mdw_jax.runtime.mesh import jitted

SHAPE = (16, 16, 3)
IMAGES = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype(np.float32)
TEXTS = np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32)


def build(mode, **options):
    tower = convnet(SHAPE, (4, 2), (16, 24))
    backbone = tower.init(jax.random.key(9))
    return dual_encoder(tower, backbone, 12, mode=mode, dim=8, **options)


@pytest.mark.parametrize("mode, head, width", [("projection", False, 8), ("full", False, 24), ("full", True, 8)])
def test_embeddings_are_unit_and_the_map_leads_to_them(mode, head, width):
    model = build(mode, image_head=head)
    params = model.init(jax.random.key(0))
    embedded = model.embed_image(params["image"], model.inputs(IMAGES))
    assert embedded.shape == (5, width)
    np.testing.assert_allclose(jnp.linalg.norm(embedded, axis=-1), 1, rtol=1e-5)
    by_map = model.embed_map(params["image"], model.feature_map(params["image"], IMAGES))
    np.testing.assert_allclose(by_map, embedded, atol=1e-5)
    cosines = embedded @ model.embed_text(params["text"], TEXTS).T
    np.testing.assert_allclose(model.logits(params, model.inputs(IMAGES), TEXTS), cosines / 0.07, rtol=1e-4, atol=1e-4)


def test_the_backbone_moves_in_full_mode_only():
    assert "backbone" in build("full").init(jax.random.key(0))["image"]
    assert set(build("projection").init(jax.random.key(0))["image"]) == {"head"}


def test_the_projection_head_is_the_peers_formula():
    model = build("projection")
    p = model.init(jax.random.key(0))["text"]
    h = TEXTS @ p["projection"]["kernel"] + p["projection"]["bias"]
    y = jax.nn.gelu(h, approximate=False) @ p["fc"]["kernel"] + p["fc"]["bias"] + h
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = y * p["layer_norm"]["scale"] + p["layer_norm"]["bias"]
    np.testing.assert_allclose(model.embed_text(p, TEXTS), y / jnp.linalg.norm(y, axis=-1, keepdims=True), atol=1e-5)


def test_unit_has_a_finite_gradient_at_zero():
    assert jnp.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros((1, 3)))).all()


def test_what_is_frozen_is_an_argument_of_the_program_and_no_constant_in_it():
    model = build("projection")
    features = jit_with_frozen(model, lambda model, images: model.inputs(images))
    np.testing.assert_allclose(features(IMAGES), model.inputs(IMAGES), atol=1e-5)
    as_constants = jax.jit(model.inputs).lower(IMAGES).as_text()
    weights = sum(x.size for x in jax.tree.leaves(model.frozen))
    assert len(as_constants) - len(features.lower(IMAGES).as_text()) > 4 * weights  # hexadecimal digits


def test_a_method_is_one_function_to_caches_of_compiled_functions():
    model = build("projection")
    assert jitted(model.embed_text) is jitted(model.embed_text) is not jitted(build("projection").embed_text)


def test_user_errors():
    with pytest.raises(UserError, match="projection, full"):
        build("frozen")
    with pytest.raises(UserError, match="divisible by 16"):
        convnet((20, 16, 3))
