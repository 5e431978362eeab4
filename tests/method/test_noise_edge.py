"""The noise edge: under shuffled captions, with planted correspondence, and its two proved statements."""

import math

import numpy as np
import pytest

from mdw_jax.method import closed_form
from mdw_jax.method.noise_edge import noise_edge


def planted(images, correlated, wide=6, narrow=5, seed=0, strength=0.9):
    """The first `correlated` coordinates of images and captions agree; the others are independent. Two captions each."""
    generator = np.random.default_rng(seed)
    v, t = generator.normal(size=(images, wide)), generator.normal(size=(2 * images, narrow))
    image_of = np.repeat(np.arange(images), 2)
    shared = v[image_of][:, :correlated]
    t[:, :correlated] = strength * shared + math.sqrt(1 - strength**2) * t[:, :correlated]
    return v, t, image_of


def test_independent_captions_stay_below_the_edge_as_often_as_it_says():
    above = 0
    for seed in range(60):
        v, t, image_of = planted(80, 0, seed=seed)
        edge = noise_edge(np.random.default_rng(1000 + seed), v, t, image_of, shuffles=4)
        assert edge.confidence == pytest.approx(0.8)
        above += edge.singular_values[0] > edge.edge
    assert 3 <= above <= 22  # 12 of 60 are expected


@pytest.mark.parametrize("correlated", [0, 1, 3])
def test_planted_directions_are_counted(correlated):
    v, t, image_of = planted(1500, correlated)
    edge = noise_edge(np.random.default_rng(0), v, t, image_of)
    assert edge.directions_above(edge.edge) == correlated
    assert edge.images == 1500 and len(edge.shuffled) == 19


def test_singular_values_are_those_of_the_closed_form():
    v, t, image_of = planted(200, 2)
    edge = noise_edge(np.random.default_rng(0), v, t, image_of, shuffles=1, ridge=0.5)
    form = closed_form.solve(closed_form.moments(v, t, image_of), 0.5, 5)
    np.testing.assert_allclose(edge.singular_values, form.singular_values, rtol=1e-9)


def test_mismatches_lower_the_singular_values_and_leave_the_edge():
    v, t, image_of = planted(3000, 1)
    moved = np.arange(3000)
    moved[:1500] = np.random.default_rng(5).permutation(1500)
    clean, noisy = (noise_edge(np.random.default_rng(0), v, t, pairs, shuffles=9) for pairs in (image_of, moved[image_of]))
    assert noisy.singular_values[0] == pytest.approx(clean.singular_values[0] / 2, rel=0.1)
    assert noisy.edge == pytest.approx(clean.edge, rel=0.3)


def test_proved_edge_holds_and_is_informative_with_enough_pairs():
    v, t, image_of = planted(20_000, 2, wide=3, narrow=3)
    edge = noise_edge(np.random.default_rng(0), v, t, image_of, shuffles=19)
    assert edge.edge < edge.bernstein < edge.singular_values[1]
    assert edge.directions_above(edge.bernstein) == 2
    # The inequality by hand: rows of both sides whitened and centred, captions summed by image.
    given = closed_form.moments(v, t, image_of)
    a = (v - v.mean(0)) @ closed_form.whitening(given.image_cov, 1.0)
    b = ((t - t.mean(0)) @ closed_form.whitening(given.text_cov, 1.0)).reshape(20_000, 2, 3).sum(1) / 40_000
    reach = np.linalg.norm(a, axis=1).max() * np.linalg.norm(b, axis=1).max()
    square = max(np.linalg.norm(a.T @ a, 2) * (b**2).sum(), (a**2).sum() * np.linalg.norm(b.T @ b, 2)) / 20_000
    failure = 6 * math.exp(-edge.bernstein**2 / (12 * square + 4 * math.sqrt(2) * reach * edge.bernstein))
    assert failure == pytest.approx(1 / 20, rel=1e-2)


def test_images_without_captions_take_no_part():
    v, t, image_of = planted(300, 1)
    wider = np.concatenate([v, np.full((50, 6), 100.0)])
    one, other = (noise_edge(np.random.default_rng(0), images, t, image_of, shuffles=3) for images in (v, wider))
    np.testing.assert_allclose(one.shuffled, other.shuffled)
    assert one.bernstein == pytest.approx(other.bernstein) and other.images == 300
