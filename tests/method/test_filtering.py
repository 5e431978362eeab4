"""Scores of pairs, and what a filter keeps by them."""

import numpy as np

from mdw_jax.method import filtering
from mdw_jax.method.filtering import (
    best_pairs,
    cosines,
    filter_quality,
    mean_score,
    neg_clip_loss,
    spread,
    spread_bits,
)


def unit(seed, n, d=5):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


IMAGES, TEXTS, IMAGE_OF = unit(0, 4), unit(1, 7), np.array([0, 1, 2, 3, 3, 0, 1])


def test_cosines_are_those_of_the_pairs():
    expected = [float(IMAGES[i] @ TEXTS[k]) for k, i in enumerate(IMAGE_OF)]
    np.testing.assert_allclose(cosines(IMAGES, TEXTS, IMAGE_OF), expected, rtol=1e-6)
    np.testing.assert_allclose(mean_score([np.array([1.0, 2.0]), np.array([3.0, 6.0])]), [2, 4])


def expected_neg_clip_loss(rows, tau=0.1):
    similarity = IMAGES[IMAGE_OF[rows]].astype(float) @ TEXTS[rows].T
    sums = np.log(np.exp(similarity / tau).sum(0)) + np.log(np.exp(similarity / tau).sum(1))
    return np.diagonal(similarity) - tau / 2 * sums


def test_neg_clip_loss_of_one_batch_is_the_formula():
    for rounds in (1, 3):
        found = neg_clip_loss(np.random.default_rng(0), IMAGES, TEXTS, IMAGE_OF, 0.1, batch=10, rounds=rounds)
        np.testing.assert_allclose(found, expected_neg_clip_loss(np.arange(7)), rtol=1e-5)


def test_neg_clip_loss_of_several_batches_scores_every_pair_within_its_own():
    order = np.random.default_rng(4).permutation(7)
    first, second = order[:4], np.concatenate([order[4:], order[:1]])  # two batches of 4, the last one filled up
    expected = np.empty(7)
    expected[first] = expected_neg_clip_loss(first)
    expected[order[4:]] = expected_neg_clip_loss(second)[:3]
    found = neg_clip_loss(np.random.default_rng(4), IMAGES, TEXTS, IMAGE_OF, 0.1, batch=4, rounds=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_best_pairs_are_kept_in_order():
    score = np.array([0.3, 0.1, 0.2, 0.1, 0.9])
    np.testing.assert_array_equal(best_pairs(score, 0.4), [0, 2, 4])
    np.testing.assert_array_equal(best_pairs(score, 0.2), [0, 2, 3, 4])  # of equal ones the first is dropped
    np.testing.assert_array_equal(best_pairs(score, 0.0), np.arange(5))


def test_values_of_kept_pairs_are_spread_over_all_pairs():
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(spread(values, np.array([1, 3]), 4), [[0, 1, 0, 2], [0, 3, 0, 4]])
    assert spread(values, np.arange(2), 2) is values


def test_filter_quality_known_answer():
    mismatched = np.array([True, True, True, False, False, False, False, False])
    quality = filter_quality(np.array([2, 3, 4, 5]), mismatched)  # drops 0, 1 and 6, 7
    assert quality == {"precision": 0.5, "recall": 2 / 3, "remaining_rate": 0.25}
    assert filter_quality(np.arange(8), mismatched) == {"precision": 0, "recall": 0, "remaining_rate": 3 / 8}


def test_bits_are_spread_as_their_values_are(monkeypatch):
    values, rows = np.random.default_rng(0).random((2, 3, 11)) < 0.5, np.array([0, 1, 2, 5, 6, 7, 9, 12, 13, 18, 19])
    bits = np.packbits(values, axis=-1)
    np.testing.assert_array_equal(spread_bits(bits, rows, 20), np.packbits(spread(values, rows, 20), axis=-1))
    assert spread_bits(bits, np.arange(11), 11) is bits
    monkeypatch.setattr(filtering, "_BLOCK", 3)
    np.testing.assert_allclose(cosines(IMAGES, TEXTS, IMAGE_OF), (IMAGES[IMAGE_OF] * TEXTS).sum(1), rtol=1e-5)
