import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.method.correspondence import correspondence, init_correspondence, matching_probability
from mdw_jax.method.grad_cam import grad_cam, pixel_weights
from mdw_jax.method.losses import DISTILLATION_LOSSES
from mdw_jax.models.dual_encoder import DualEncoder, dual_encoder
from mdw_jax.models.image.convnet import convnet

SHAPE, PAIRS = (16, 16, 3), 5
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(PAIRS, *SHAPE)), jnp.float32)
TEXTS = jnp.asarray(np.random.default_rng(1).normal(size=(PAIRS, 12)), jnp.float32)


def build(mode):
    tower = convnet(SHAPE, (4, 2), (8, 12))
    model = dual_encoder(tower, tower.init(jax.random.key(9)), 12, mode=mode, dim=8)
    return model, model.init(jax.random.key(0))


def naive_map(model, params, a, text):
    """Grad-CAM of one similarity, by the definition."""
    def similarity(a):
        v = model.embed_map(params["image"], a[None])[0]
        return jnp.dot(v, model.embed_text(params["text"], text[None])[0]) / model.tau

    gradient = np.asarray(jax.grad(similarity)(a))
    summed = np.zeros(a.shape[:2])
    for c in range(a.shape[-1]):
        summed += gradient[..., c].mean() * np.asarray(a[..., c])
    return np.maximum(summed, 0)


@pytest.mark.parametrize("mode", ["full", "projection"])
def test_grad_cam_is_its_definition(mode):
    model, params = build(mode)
    a = model.feature_map(params["image"], IMAGES[:1])[0]
    maps = grad_cam(model, params, a, TEXTS)
    assert maps.shape == (PAIRS, 2, 2) and float(maps.max()) > 0
    for one_map, text in zip(maps, TEXTS, strict=True):
        np.testing.assert_allclose(one_map, naive_map(model, params, a, text), rtol=1e-3, atol=1e-5)


def test_weights_sum_the_nearest_texts_maps_and_have_mean_one():
    model, params = build("full")
    p = init_correspondence(jax.random.key(2), "lowrank", PAIRS, 2)
    p["right"] = jax.random.normal(jax.random.key(3), p["right"].shape)
    p["right"] *= 0.1  # so that 10 P leaves two texts their share
    weights = pixel_weights(model, params, IMAGES, TEXTS, p, alpha=3.0, loss="probability", top_k=2, beta=0.4)
    assert weights.shape == (PAIRS, 16, 16, 1)
    probability = np.asarray(matching_probability(correspondence(p, jnp.arange(PAIRS), 3.0),
                                                  DISTILLATION_LOSSES["probability"]))
    maps = model.feature_map(params["image"], IMAGES)
    checked = 0
    for i in range(PAIRS):
        summed = sum(probability[i, j] * naive_map(model, params, maps[i], TEXTS[j])
                     for j in np.argsort(-probability[i])[:2])
        if summed.max() == 0:
            continue
        wanted = np.asarray(jax.image.resize(summed, (16, 16), "linear"))
        wanted = 1 + 0.4 * (wanted / wanted.mean() - 1)
        np.testing.assert_allclose(weights[i, ..., 0], np.maximum(wanted, 0), rtol=1e-3, atol=1e-4)
        checked += 1
    assert checked >= 3
    # With beta below 1 nothing is clipped.
    np.testing.assert_allclose(weights.mean((1, 2, 3)), 1, rtol=1e-4)
    assert float(jnp.ptp(weights)) > 0.05


@pytest.mark.parametrize("loss", ["probability", "kl", "nce", "wbce"])
@pytest.mark.parametrize("kind", ["identity", "lowrank", "full"])
def test_under_the_identity_the_map_is_that_of_an_images_own_text(kind, loss):
    """However many texts are looked at, and whichever others the ties bring in."""
    model, params = build("full")
    p = init_correspondence(jax.random.key(2), kind, PAIRS, 2)
    given = {"alpha": 3.0, "loss": loss, "beta": 0.5}
    own = pixel_weights(model, params, IMAGES, TEXTS, p, top_k=1, **given)
    np.testing.assert_allclose(pixel_weights(model, params, IMAGES, TEXTS, p, top_k=PAIRS, **given), own, atol=2e-3)
    maps, checked = model.feature_map(params["image"], IMAGES), 0
    for i in range(PAIRS):
        wanted = np.asarray(jax.image.resize(naive_map(model, params, maps[i], TEXTS[i]), (16, 16), "linear"))
        if wanted.max() > 0:
            np.testing.assert_allclose(own[i, ..., 0], 1 + 0.5 * (wanted / wanted.mean() - 1), rtol=1e-3, atol=1e-4)
            checked += 1
    assert checked >= 3


def test_images_that_are_stored_small_are_weighted_where_they_are_stored():
    model, params = build("full")
    small = IMAGES[:, ::2, ::2]
    given = {"alpha": 1.0, "loss": "probability", "top_k": 1, "beta": 0.5}
    weights = pixel_weights(model, params, small, TEXTS, {}, seen_size=16, **given)
    assert weights.shape == (PAIRS, 8, 8, 1)
    maps, checked = model.feature_map(params["image"], jax.image.resize(small, IMAGES.shape, "linear")), 0
    for i in range(PAIRS):
        wanted = np.asarray(jax.image.resize(naive_map(model, params, maps[i], TEXTS[i]), (8, 8), "linear"))
        if wanted.max() > 0:
            np.testing.assert_allclose(weights[i, ..., 0], 1 + 0.5 * (wanted / wanted.mean() - 1), rtol=1e-3, atol=1e-4)
            checked += 1
    assert checked >= 3


def test_a_large_beta_is_clipped_at_zero():
    model, params = build("full")
    weights = pixel_weights(model, params, IMAGES, TEXTS, {}, alpha=1.0, loss="nce", top_k=3, beta=50.0)
    assert float(weights.min()) == 0


def test_beta_zero_weighs_all_pixels_alike():
    model, params = build("full")
    weights = pixel_weights(model, params, IMAGES, TEXTS, {}, alpha=1.0, loss="nce", top_k=1, beta=0.0)
    np.testing.assert_array_equal(weights, np.ones((PAIRS, 16, 16, 1)))


def test_maps_that_are_all_zero_weigh_all_pixels_alike():
    # The embedding ignores the map: no gradient, no map.
    class Blind(DualEncoder):
        def embed_map(self, params, feature_map):
            return jnp.ones((len(feature_map), 12)) / jnp.sqrt(12)

    model, params = build("full")
    blind = Blind(**vars(model))
    weights = pixel_weights(blind, params, IMAGES, TEXTS, {}, alpha=1.0, loss="nce", top_k=2, beta=1.0)
    np.testing.assert_array_equal(weights, np.ones((PAIRS, 16, 16, 1)))
