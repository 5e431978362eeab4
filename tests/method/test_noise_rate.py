import numpy as np
import pytest

from mdw_jax.method.noise_rate import estimate_rate, separation


def losses(eta, size, seed=0, per_image=5, apart=3.0, null=1):
    """Losses of pairs with a share eta of mismatched images, and of `null` times as many pairs mismatched on purpose."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(size // per_image), per_image)
    wrong = (generator.permutation(size // per_image) < eta * (size // per_image))[groups]
    values = np.where(wrong, generator.normal(0, 1, size), generator.gamma(2, 0.5, size) - apart)
    return values, generator.normal(0, 1, null * size), groups


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.4, 0.6, 0.8])
def test_the_planted_rate_is_found(eta):
    rate = estimate_rate(*losses(eta, 10_000))
    assert abs(rate.eta - eta) < 0.03
    assert rate.low <= rate.eta <= rate.high and rate.high - rate.low < 0.12


def test_the_interval_covers_the_truth_about_as_often_as_its_confidence():
    covered = 0
    for seed in range(40):
        rate = estimate_rate(*losses(0.4, 2000, seed), seed=seed, draws=60)
        covered += rate.low - 0.01 <= 0.4 <= rate.high + 0.01
    assert covered >= 34


def test_captions_of_one_image_count_as_one():
    def width(by_image, seed):
        observed, null, groups = losses(0.4, 2000, seed, null=20)
        rate = estimate_rate(observed, null, groups if by_image else np.arange(2000), seed=seed, smallest_tail=0.5)
        return rate.high - rate.low

    by_image, by_caption = (np.mean([width(grouped, seed) for seed in range(10)]) for grouped in (True, False))
    assert by_image > 1.1 * by_caption


def test_a_network_that_cannot_tell_pairs_apart_calls_all_mismatched():
    null = np.random.default_rng(1).normal(size=4000)
    assert estimate_rate(np.random.default_rng(2).normal(size=4000), null, np.arange(4000)).eta > 0.9


@pytest.mark.parametrize("eta", [0.2, 0.6])
def test_the_estimate_is_not_the_least_of_many_noisy_ratios(eta):
    errors = [estimate_rate(*losses(eta, 2000, seed, apart=5.0), seed=seed, draws=2).eta - eta for seed in range(60)]
    error = np.std(errors) / len(errors) ** 0.5
    assert abs(np.mean(errors)) < 3 * error + 0.005 and error < 0.01


def test_one_image_gives_no_estimate():
    assert estimate_rate([1.0, 2.0], [1.0, 2.0], [7, 7])[:3] == (0.0, 0.0, 1.0)


def test_separation_is_the_chance_that_a_random_pair_is_worse():
    generator = np.random.default_rng(0)
    null = generator.normal(2, 1, 20_000)
    assert separation(null, null) == 0.5
    assert abs(separation(generator.normal(0, 1, 20_000), null) - 0.9214) < 0.01  # Phi(2 / sqrt 2)
    assert separation([0.0, 1.0], [1.0, 2.0]) == 0.875  # ties count half
