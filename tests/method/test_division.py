import numpy as np
import pytest

from mdw_jax.method import division
from mdw_jax.method.division import divide, division_quality


def test_two_planted_groups_are_told_apart():
    generator = np.random.default_rng(0)
    mismatched = generator.random(600) < 0.4
    losses = np.where(mismatched, generator.normal(5, 0.6, 600), generator.normal(1, 0.6, 600))
    clean = divide(losses, seed=1)
    assert clean.dtype == np.float32 and clean.min() >= 0 and clean.max() <= 1
    np.testing.assert_array_equal(clean >= 0.5, ~mismatched)
    np.testing.assert_array_equal(divide(losses, seed=1), clean)


def test_only_the_order_and_spacing_of_losses_count():
    losses = np.random.default_rng(1).gamma(2.0, size=200)
    np.testing.assert_allclose(divide(7 * losses - 3), divide(losses), atol=1e-4)


def test_losses_that_do_not_differ_are_all_clean():
    np.testing.assert_array_equal(divide(np.full(5, 0.3)), np.ones(5))


def test_quality_by_hand():
    # Called clean: 0, 1, 2 (0.5 counts). Truly matched: 0, 2, 3, 4.
    quality = division_quality([0.9, 0.7, 0.5, 0.4, 0.1], [False, True, False, False, False])
    assert quality == pytest.approx({"precision": 2 / 3, "recall": 2 / 4, "share_clean": 3 / 5})
    assert division_quality([0.1, 0.2], [False, True])["precision"] == 0
    assert division_quality([0.1, 0.9], [True, True])["recall"] == 0


def test_a_mixture_of_very_many_losses_is_fitted_to_a_sample(monkeypatch):
    generator = np.random.default_rng(2)
    losses = np.where(generator.random(5000) < 0.4, generator.normal(4, 0.8, 5000), generator.normal(1, 0.8, 5000))
    whole = divide(losses)
    monkeypatch.setattr(division, "FITTED", 1000)
    sampled = divide(losses)
    assert sampled.shape == whole.shape and not np.array_equal(sampled, whole)
    assert ((sampled >= 0.5) == (whole >= 0.5)).mean() > 0.97
    np.testing.assert_array_equal(divide(losses), sampled)
