import dataclasses
import itertools

import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.method import coresets
from mdw_jax.method.coresets import (
    CORESETS,
    CoresetInputs,
    clean_pairs,
    clip_filter,
    forgetting_events,
    herding,
    joint_features,
    k_center,
    most_forgotten,
    one_caption_each,
    random_pairs,
)

IMAGE_OF = np.repeat(np.arange(10), 5)


def test_random_pairs_are_different_images_and_all_rows_are_reached():
    seen = set()
    for seed in range(200):
        rows = random_pairs(np.random.default_rng(seed), IMAGE_OF, 6)
        assert len(rows) == len(set(IMAGE_OF[rows])) == 6
        seen |= set(rows.tolist())
    assert seen == set(range(50))
    same = [random_pairs(np.random.default_rng(3), IMAGE_OF, 6) for _ in range(2)]
    np.testing.assert_array_equal(*same)


def test_images_are_equally_likely():
    counts = np.zeros(10)
    for seed in range(500):
        counts[IMAGE_OF[random_pairs(np.random.default_rng(seed), IMAGE_OF, 2)]] += 1
    # Binomial(500, 0.2): mean 100, standard deviation 9.
    assert counts.min() > 65 and counts.max() < 135


def test_clean_pairs_come_from_the_clean_side():
    probability = np.where(np.arange(50) % 5 == 2, 0.8, 0.3)
    rows = clean_pairs(np.random.default_rng(0), IMAGE_OF, probability, 7)
    assert (probability[rows] >= 0.5).all() and len(set(IMAGE_OF[rows])) == 7


def test_too_few_clean_images_are_topped_up_by_the_next_best_of_other_images():
    probability = np.linspace(0.4, 0.0, 50)
    probability[[20, 21, 22, 35]] = 0.9  # clean: images 4 (three captions) and 7
    rows = clean_pairs(np.random.default_rng(0), IMAGE_OF, probability, 5)
    assert set(IMAGE_OF[rows[:2]]) == {4, 7} and (probability[rows[:2]] == 0.9).all()
    # The best caption of each of the best remaining images.
    np.testing.assert_array_equal(rows[2:], [0, 5, 10])


def test_without_clean_pairs_the_best_are_taken():
    probability = np.linspace(0.0, 0.4, 50)
    rows = clean_pairs(np.random.default_rng(0), IMAGE_OF, probability, 3)
    np.testing.assert_array_equal(rows, [49, 44, 39])


def unit_features(seed, n, d=6):
    x = np.random.default_rng(seed).normal(size=(n, d)) + 0.5
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_one_caption_each_is_one_row_an_image_in_order_and_all_rows_are_reached():
    image_of = np.random.default_rng(0).permutation(IMAGE_OF)  # as a noise draw leaves it
    seen = set()
    for seed in range(100):
        rows = one_caption_each(np.random.default_rng(seed), image_of)
        np.testing.assert_array_equal(image_of[rows], np.arange(10))
        seen |= set(rows.tolist())
    assert seen == set(range(50))
    # An image that lost its captions has no row.
    assert image_of[one_caption_each(np.random.default_rng(0), image_of[image_of != 4])].shape == (9,)


def test_joint_features_known_answer():
    images, texts = [[3, 4], [0, 2], [0, 0]], [[5], [-2], [1], [9]]
    joint = joint_features(images, texts, [1, 0, 0, 2])
    assert joint.dtype == np.float32
    np.testing.assert_allclose(joint, [[0, 1, 1], [0.6, 0.8, -1], [0.6, 0.8, 1], [0, 0, 1]], rtol=1e-6)


def test_joint_features_of_more_rows_than_are_filled_at_a_time():
    generator = np.random.default_rng(0)
    image_of = generator.integers(7, size=10_000)
    images, texts = generator.normal(size=(7, 3)), generator.normal(size=(10_000, 2))
    joint = joint_features(images, texts, image_of)
    for part, x in ((joint[:, :3], images[image_of]), (joint[:, 3:], texts)):
        np.testing.assert_allclose(part, x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-6)


def test_herding_known_answer():
    # Mean 2.8. First the item nearest to it; then 3 + 2 (mean 2.5) beats 3 + 1, 3 + 0; then 8 (mean 4.33) loses to 1.
    np.testing.assert_array_equal(herding([[0], [1], [2], [3], [8]], 3), [3, 2, 1])
    np.testing.assert_array_equal(sorted(herding([[0], [1], [2], [3], [8]], 5)), range(5))


def test_herding_agrees_with_brute_force():
    for seed in range(5):
        x, chosen = unit_features(seed, 30), []
        for _ in range(12):
            off = {n: np.linalg.norm(x[[*chosen, n]].mean(0, dtype=float) - x.mean(0, dtype=float))
                   for n in range(30) if n not in chosen}
            chosen.append(min(off, key=off.get))
        np.testing.assert_array_equal(herding(x, 12), chosen)


def test_k_center_known_answer():
    # 10 is farthest from 0; then 5.5 (4.5 from 10); then 2 (2 from 0).
    np.testing.assert_array_equal(k_center([[0], [1], [2], [5.5], [10]], 4, first=0), [0, 4, 3, 2])


def test_k_center_agrees_with_brute_force_and_covers_within_twice_the_best():
    for seed in range(5):
        x = unit_features(seed, 12, 3)
        distance = np.linalg.norm(x[:, None] - x[None], axis=2)
        chosen = [seed]
        for _ in range(3):
            chosen.append(int(distance[:, chosen].min(1).argmax()))
        found = k_center(x, 4, first=seed)
        np.testing.assert_array_equal(found, chosen)
        # Gonzalez 1985: greedy is a 2-approximation.
        best = min(distance[:, centres].min(1).max() for centres in map(list, itertools.combinations(range(12), 4)))
        assert distance[:, found].min(1).max() <= 2 * best + 1e-6


def test_equal_pairs_are_never_chosen_twice():
    same = np.repeat(unit_features(0, 2), 6, axis=0)
    for chosen in (herding(same, 12), k_center(same, 12, 5), clip_filter(np.zeros(12), same, 12, 0, drop=0)):
        np.testing.assert_array_equal(np.sort(chosen), np.arange(12))


def test_forgetting_events_known_answer():
    history = np.array([
        # always, never, late, forgot once, twice, right once at first
        [1, 0, 0, 1, 1, 1],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 1, 0, 1, 0],
        [1, 0, 1, 1, 0, 0],
    ], bool)
    np.testing.assert_array_equal(forgetting_events(history), [0, 4, 0, 1, 2, 1])


def test_most_forgotten_takes_the_most_forgotten_pair_of_each_image():
    image_of = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    events = np.array([5, 4, 0, 1, 3, 3, 9, 0])
    rows = np.array([0, 1, 2, 3, 4, 5, 7])  # 6 is no candidate
    seen = set()
    for seed in range(30):
        found = most_forgotten(np.random.default_rng(seed), events, rows, image_of, 4)
        assert (found[[0, 2, 3]] == [0, 3, 7]).all()
        seen.add(found[1])
    assert seen == {4, 5}  # a tie
    with pytest.raises(UserError, match="5 pairs but there are only 4"):
        most_forgotten(np.random.default_rng(0), events, rows, image_of, 5)


def test_most_forgotten_draws_equally_forgotten_images_equally_often():
    counts = np.zeros(10)
    for seed in range(500):
        rows = most_forgotten(np.random.default_rng(seed), np.zeros(50, int), np.arange(50), IMAGE_OF, 2)
        counts[IMAGE_OF[rows]] += 1
    # Binomial(500, 0.2): mean 100, standard deviation 9.
    assert counts.min() > 65 and counts.max() < 135


def blobs(sizes):
    """Tight clusters along the axes; the first item of each is its mean."""
    generator, items = np.random.default_rng(0), []
    for axis, size in enumerate(sizes):
        around = generator.normal(scale=0.01, size=(size // 2, len(sizes)))
        items.append(np.eye(len(sizes))[axis] + np.concatenate([np.zeros((1, len(sizes))), around, -around]))
    return np.concatenate(items).astype(np.float32), np.repeat(np.arange(len(sizes)), [len(i) for i in items])


def test_clip_filter_takes_the_centre_of_every_cluster():
    x, cluster = blobs([20, 30, 40, 50])
    chosen = clip_filter(np.ones(len(x)), x, 4, seed=0, drop=0)
    np.testing.assert_array_equal(np.sort(chosen), np.unique(cluster, return_index=True)[1])


def test_clip_filter_drops_the_least_similar():
    x, cluster = blobs([20, 30, 40, 50])
    similarity = np.random.default_rng(1).random(len(x)) + (cluster != 1)
    chosen = clip_filter(similarity, x, 3, seed=0, drop=(cluster == 1).mean())
    np.testing.assert_array_equal(np.sort(cluster[chosen]), [0, 2, 3])
    # Every pair left stands for a cluster: exactly the dropped ones are missing.
    x, similarity = unit_features(0, 20), np.random.default_rng(2).permutation(20)
    np.testing.assert_array_equal(np.sort(similarity[clip_filter(similarity, x, 16, seed=0)]), np.arange(4, 20))


def test_clip_filter_is_fixed_by_its_seed():
    x, similarity = unit_features(0, 200), np.random.default_rng(0).random(200)
    first, again, other = (clip_filter(similarity, x, 30, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(set(first)) == 30 and set(first) != set(other)


def test_too_few_pairs_are_a_users_mistake():
    x = unit_features(0, 10)
    for choose, there in ((lambda: herding(x, 11), 10), (lambda: k_center(x, 11, 0), 10),
                          (lambda: clip_filter(np.zeros(10), x, 11, 0), 8)):
        with pytest.raises(UserError, match=f"11 pairs but there are only {there} .* lower distill.pairs"):
            choose()
    for drop in (-0.1, 1.0):
        with pytest.raises(UserError, match="drop"):
            clip_filter(np.zeros(10), x, 1, 0, drop)


def inputs_of(seed, count=4):
    """Inputs of coresets over ten images of five captions each."""
    features = unit_features(7, 50)
    history = np.random.default_rng(8).random((2, 6, 50)) < 0.5
    similarity = np.random.default_rng(9).random(50)
    return CoresetInputs(IMAGE_OF, count, np.random.default_rng(seed), features=lambda rows: features[rows],
                         history=lambda: history, similarity=lambda: similarity)


def test_every_coreset_of_the_table_takes_different_images():
    for name, choose in CORESETS.items():
        rows, again = choose(inputs_of(3)), choose(inputs_of(3))
        np.testing.assert_array_equal(rows, again)
        assert rows.shape == (4,) and len(set(IMAGE_OF[rows])) == 4, name


def test_coresets_of_the_table_are_the_functions_on_one_caption_of_each_image():
    def start():
        generator = np.random.default_rng(5)
        return generator, one_caption_each(generator, IMAGE_OF)

    inputs = inputs_of(5)
    generator, rows = start()
    np.testing.assert_array_equal(CORESETS["herding"](inputs_of(5)), rows[herding(inputs.features(rows), 4)])
    np.testing.assert_array_equal(CORESETS["k_center"](inputs_of(5)),
                                  rows[k_center(inputs.features(rows), 4, int(generator.integers(10)))])
    generator, rows = start()
    seed = int(generator.integers(2**31))
    np.testing.assert_array_equal(CORESETS["clip_filter"](inputs_of(5)),
                                  rows[clip_filter(inputs.similarity()[rows], inputs.features(rows), 4, seed)])
    generator, rows = start()
    events = np.mean([forgetting_events(history) for history in inputs.history()], axis=0)
    np.testing.assert_array_equal(CORESETS["forgetting"](inputs_of(5)),
                                  most_forgotten(generator, events, rows, IMAGE_OF, 4))
    np.testing.assert_array_equal(CORESETS["random"](inputs_of(5)),
                                  random_pairs(np.random.default_rng(5), IMAGE_OF, 4))


def test_a_coreset_asks_only_for_what_it_needs():
    def refuse():
        raise AssertionError("asked for experts")

    for name in ("random", "herding", "k_center"):
        CORESETS[name](dataclasses.replace(inputs_of(0), history=refuse, similarity=refuse))


def test_k_means_chooses_the_same_from_blocks(monkeypatch):
    features = np.random.default_rng(0).normal(size=(700, 5)).astype(np.float32)
    whole = coresets.k_means(features, 30, 1)
    monkeypatch.setattr(coresets, "_ITEMS", 64)
    np.testing.assert_array_equal(coresets.k_means(features, 30, 1), whole)
    assert len(set(whole)) == 30
    # As one picks the closest of all that are left, again and again.
    means = coresets.MiniBatchKMeans(30, random_state=1).fit(features)
    distance, wanted = means.transform(features), np.empty(30, int)
    for _ in range(30):
        item, centroid = np.unravel_index(distance.argmin(), distance.shape)
        wanted[centroid] = item
        distance[item] = distance[:, centroid] = np.inf
    np.testing.assert_array_equal(whole, wanted)
