import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.method.prototypes import Inversion, make_inversion, prototypes


def planted(groups=5, members=20, spread=0.01):
    """Pairs in tight groups: image features (n, 6), unit texts (n, 4), the group of each."""
    generator = np.random.default_rng(0)
    group = generator.permutation(np.repeat(np.arange(groups), members))
    noise = lambda width: spread * generator.normal(size=(len(group), width))
    images = generator.normal(size=(groups, 6))[group] + noise(6)
    texts = generator.normal(size=(groups, 4))[group] + noise(4)
    return images, texts / np.linalg.norm(texts, axis=1, keepdims=True), group


def test_prototypes_are_the_means_of_planted_groups():
    images, texts, group = planted()
    found = prototypes(np.concatenate([images, texts], 1), images, texts, 5, seed=0)
    order = [np.linalg.norm(found.image_features - images[group == g].mean(0), axis=1).argmin() for g in range(5)]
    assert sorted(order) == list(range(5))
    for g, m in enumerate(order):
        mean = texts[group == g].mean(0)
        np.testing.assert_allclose(found.image_features[m], images[group == g].mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.texts[m], mean / np.linalg.norm(mean), rtol=1e-5)
        rows = np.flatnonzero(group == g)
        distance = ((images[rows] - images[rows].mean(0)) ** 2).sum(1)
        assert found.nearest[m] == rows[distance.argmin()]


def test_mean_texts_have_the_length_of_the_captions():
    images, texts, _ = planted()
    found = prototypes(np.concatenate([images, texts], 1), images, 3 * texts, 5, seed=0)
    np.testing.assert_allclose(np.linalg.norm(found.texts, axis=1), 3, rtol=1e-5)


def test_no_cluster_is_empty_even_where_pairs_are_equal():
    joint = np.concatenate([np.zeros((10, 3)), np.eye(3)])
    found = prototypes(joint, joint, joint + 1, 6, seed=0)
    assert len(np.unique(found.nearest)) == 6 and np.isfinite(found.texts).all()


def test_too_few_pairs():
    with pytest.raises(UserError, match="lower distill.pairs"):
        prototypes(np.eye(3), np.eye(3), np.eye(3), 4, seed=0)


def test_inversion_finds_images_with_the_wanted_features():
    """Features linear in the pixels, 3 of 12: there are images that have them, and gradient descent finds some."""
    generator = np.random.default_rng(1)
    matrix = jnp.asarray(generator.normal(size=(12, 3)), jnp.float32)
    features = lambda model, params, images: images.reshape(len(images), -1) @ params
    wanted = features(None, matrix, jnp.asarray(generator.uniform(size=(4, 2, 2, 3)), jnp.float32))
    start = jnp.asarray(generator.uniform(size=(4, 2, 2, 3)), jnp.float32)
    invert = make_inversion(features, Inversion(steps=300, lr=0.05, clip=True))
    images, errors = invert(None, matrix, start, wanted, jnp.float32(2.0))
    assert float(errors.max()) < 1e-4 and 0 <= float(images.min()) and float(images.max()) <= 1
    np.testing.assert_allclose(features(None, matrix, images), wanted, atol=0.02)
    unchanged, before = make_inversion(features, Inversion(0, 0.05, True))(None, matrix, start, wanted, jnp.float32(2.0))
    np.testing.assert_array_equal(unchanged, start)
    np.testing.assert_allclose(before, ((features(None, matrix, start) - wanted) ** 2).sum(1) / 2, rtol=1e-5)


def test_an_image_is_fitted_the_same_in_any_company():
    features = lambda model, params, images: images.mean((1, 2))
    images, wanted = jnp.asarray(np.random.default_rng(2).uniform(size=(4, 2, 2, 3)), jnp.float32), jnp.full((4, 3), 0.3)
    invert = make_inversion(features, Inversion(10, 0.05, True))
    together, _ = invert(None, None, images, wanted, jnp.float32(1.0))
    alone, _ = invert(None, None, images[1:2], wanted[1:2], jnp.float32(1.0))
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-6)
