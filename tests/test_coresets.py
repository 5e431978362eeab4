import numpy as np

from mdw_jax.coresets import clean_pairs, random_pairs

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
