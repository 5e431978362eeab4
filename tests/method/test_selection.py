"""Ways to choose the real pairs that a distillation starts from."""

import itertools

import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.method import selection
from mdw_jax.method.coresets import clean_pairs, herding, k_means, random_pairs
from mdw_jax.method.selection import INITS, StartInputs, facility_location, most_probable_pairs

IMAGE_OF = np.repeat(np.arange(10), 5)


def unit_features(seed, n, d=6):
    x = np.random.default_rng(seed).normal(size=(n, d)) + 0.5
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def coverage(x, chosen):
    return np.maximum(x @ x[list(chosen)].T, 0).max(1).sum(dtype=float)


def test_facility_location_known_answer():
    # Two groups along axes, of 3 and 2, and a loner: the larger group first, then the other, then the loner.
    x = np.eye(3, dtype=np.float32)[[0, 1, 0, 1, 2, 0]]
    np.testing.assert_array_equal(facility_location(x, 3), [0, 1, 4])
    # An opposite counts as 0, not as -1: the second of a pair of opposites is worth choosing.
    np.testing.assert_array_equal(facility_location(np.array([[1.0], [-1.0], [1.0]]), 2), [0, 1])


def test_facility_location_agrees_with_brute_force_and_reaches_its_bound(monkeypatch):
    monkeypatch.setattr(selection, "_CHUNK", 5)
    for seed in range(5):
        x, chosen = unit_features(seed, 14, 3), []
        for _ in range(4):
            sums = {n: coverage(x, [*chosen, n]) for n in range(14) if n not in chosen}
            chosen.append(max(sums, key=sums.get))
        found = facility_location(x, 4)
        np.testing.assert_array_equal(found, chosen)
        best = max(coverage(x, subset) for subset in itertools.combinations(range(14), 4))
        assert coverage(x, found) >= (1 - 1 / np.e) * best


def test_facility_location_chooses_different_items_and_refuses_too_many():
    x = np.repeat(unit_features(0, 2), 3, axis=0)
    np.testing.assert_array_equal(np.sort(facility_location(x, 6)), np.arange(6))
    with pytest.raises(UserError, match="7 pairs but there are only 6 .* lower distill.pairs"):
        facility_location(x, 7)


def test_k_means_represents_every_cluster_by_the_item_nearest_to_its_mean():
    generator = np.random.default_rng(0)
    around = generator.normal(scale=0.01, size=(3, 10, 4))
    x = np.concatenate([np.eye(4)[axis] + np.concatenate([np.zeros((1, 4)), around[axis], -around[axis]])
                        for axis in range(3)]).astype(np.float32)
    np.testing.assert_array_equal(np.sort(k_means(x, 3, seed=0)), [0, 21, 42])
    with pytest.raises(UserError, match="lower distill.pairs"):
        k_means(x[:2], 3, seed=0)


def test_most_probable_pairs_are_one_for_each_image_and_ties_are_drawn():
    image_of, probability = np.array([0, 0, 1, 1, 2, 3]), np.array([0.9, 0.95, 0.2, 0.1, 0.7, 0.7])
    seen = set()
    for seed in range(30):
        rows = most_probable_pairs(np.random.default_rng(seed), image_of, probability, 3)
        assert rows[0] == 1 and set(rows[1:]) == {4, 5}
        seen.add(rows[1])
    assert seen == {4, 5}
    np.testing.assert_array_equal(most_probable_pairs(np.random.default_rng(0), image_of, probability, 4)[-1], 2)


def inputs_of(seed, count=4, probability=None):
    features = unit_features(7, 50)
    probability = np.where(np.arange(50) % 5 < 2, 0.9, 0.2) if probability is None else probability
    return StartInputs(IMAGE_OF, count, np.random.default_rng(seed), clean_probability=lambda: probability,
                       features=lambda rows: features[rows])


@pytest.mark.parametrize("name", INITS)
def test_every_start_takes_different_images_again_with_the_same_seed(name):
    rows, again = (INITS[name](inputs_of(3)) for _ in range(2))
    np.testing.assert_array_equal(rows, again)
    assert rows.shape == (4,) and len(set(IMAGE_OF[rows])) == 4
    if name != "random":
        assert (rows % 5 < 2).all()  # the clean side


def test_starts_are_their_functions():
    inputs = inputs_of(5)
    probability = inputs.clean_probability()
    np.testing.assert_array_equal(INITS["random"](inputs_of(5)), random_pairs(np.random.default_rng(5), IMAGE_OF, 4))
    np.testing.assert_array_equal(INITS["division"](inputs_of(5)),
                                  clean_pairs(np.random.default_rng(5), IMAGE_OF, probability, 4))
    rows = clean_pairs(np.random.default_rng(5), IMAGE_OF, probability, 10)  # one of each of the ten images
    np.testing.assert_array_equal(INITS["herding"](inputs_of(5)), rows[herding(inputs.features(rows), 4)])
    np.testing.assert_array_equal(INITS["facility_location"](inputs_of(5)),
                                  rows[facility_location(inputs.features(rows), 4)])


def test_candidates_are_all_clean_images_topped_up_or_cut(monkeypatch):
    few = np.where(IMAGE_OF < 2, 0.9, np.linspace(0.4, 0.1, 50))
    assert set(IMAGE_OF[selection.candidates(inputs_of(0, 4, few))]) == {0, 1, 2, 3}
    assert len(selection.candidates(inputs_of(0))) == 10
    monkeypatch.setattr(selection, "MOST_CANDIDATES", 6)
    assert len(selection.candidates(inputs_of(0))) == 6
    assert len(selection.candidates(inputs_of(0, 8))) == 8
