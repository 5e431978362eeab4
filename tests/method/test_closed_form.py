"""The closed form: against dense computations, and on planted clusters and noise."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.metrics import roc_auc_score

from mdw_jax.errors import UserError
from mdw_jax.method import closed_form as cf
from mdw_jax.method.retrieval import recalls


def random_pairs(images=60, captions=200, wide=9, narrow=6, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(images, wide)) + 3, generator.normal(size=(captions, narrow)) - 1,
            generator.integers(images, size=captions), generator.random(captions))


def clusters(images, seed, captions_of_each=3, factors=12, wide=40, narrow=30, noise=0.7):
    """Images and captions that are different linear views of the same random factors, with independent noise."""
    mixing, generator = np.random.default_rng(7), np.random.default_rng(seed)
    to_image, to_text = mixing.normal(size=(factors, wide)), mixing.normal(size=(factors, narrow))
    truth = generator.normal(size=(images, factors))
    image_of = np.repeat(np.arange(images), captions_of_each)
    return ((truth @ to_image + noise * generator.normal(size=(images, wide))).astype(np.float32),
            (truth[image_of] @ to_text + noise * generator.normal(size=(len(image_of), narrow))).astype(np.float32),
            image_of)


def mismatch(image_of, images, rate, seed=3):
    """A share of the images permuted, all captions of an image together."""
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(images)[:round(rate * images)]
    moved = np.arange(images)
    moved[chosen] = generator.permutation(chosen)
    return moved[image_of]


# ---- moments and the solution ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [7, 64, 10_000])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_those_of_all_pairs(batch, weighted):
    features, texts, image_of, weights = random_pairs()
    weights = weights if weighted else None
    v, t = features[image_of], texts
    p = np.full(len(t), 1 / len(t)) if weights is None else weights / weights.sum()
    found = cf.moments(features, texts, image_of, weights, batch)
    assert found.weight == pytest.approx(len(t) if weights is None else weights.sum())
    np.testing.assert_allclose(found.mean_image, p @ v, atol=1e-12)
    np.testing.assert_allclose(found.mean_text, p @ t, atol=1e-12)
    v, t = v - p @ v, t - p @ t
    np.testing.assert_allclose(found.image_cov, v.T @ (p[:, None] * v), atol=1e-12)
    np.testing.assert_allclose(found.text_cov, t.T @ (p[:, None] * t), atol=1e-12)
    np.testing.assert_allclose(found.cross_cov, v.T @ (p[:, None] * t), atol=1e-12)


@pytest.mark.parametrize("weights", [np.zeros(200), -np.ones(200), np.full(200, np.nan)])
def test_weights_must_make_sense(weights):
    features, texts, image_of, _ = random_pairs()
    with pytest.raises(UserError, match="weights of the pairs"):
        cf.moments(features, texts, image_of, weights)


def test_solution_is_that_of_a_dense_computation():
    features, texts, image_of, weights = random_pairs()
    p = weights / weights.sum()
    v, t = features[image_of] - p @ features[image_of], texts - p @ texts
    roots = []
    for rows in (v, t):
        covariance = rows.T @ (p[:, None] * rows)
        ridge = 0.3 * np.linalg.eigvalsh(covariance).mean()
        roots.append(np.linalg.inv(scipy.linalg.sqrtm(covariance + ridge * np.eye(len(covariance)))))
    left, values, right = np.linalg.svd((v @ roots[0]).T @ (p[:, None] * (t @ roots[1])))
    form = cf.solve(cf.moments(features, texts, image_of, weights), 0.3, 4)
    np.testing.assert_allclose(form.singular_values, values[:4], rtol=1e-9)
    np.testing.assert_allclose(cf.whitening(v.T @ (p[:, None] * v), 0.3), roots[0], atol=1e-9)
    for map_found, root, vectors in ((form.image_map, roots[0], left), (form.text_map, roots[1], right.T)):
        expected = root @ vectors[:, :4] * np.sqrt(values[:4])
        signs = np.sign((map_found * expected).sum(0))
        np.testing.assert_allclose(map_found, expected * signs, atol=1e-9)
    # One sign for both sides: similarities do not depend on it.
    similarity = (features - p @ features[image_of]) @ form.image_map @ form.text_map.T @ (texts - p @ texts).T
    dense = (features - p @ features[image_of]) @ roots[0] @ (left[:, :4] * values[:4]) @ right[:4] @ roots[1] @ t.T
    np.testing.assert_allclose(similarity, dense, atol=1e-9)


def test_embeddings_are_unit_float32_and_ranks_are_nested():
    features, texts, image_of, _ = random_pairs()
    moments = cf.moments(features, texts, image_of)
    form, small = cf.solve(moments, 1.0, 5), cf.solve(moments, 1.0, 2)
    v = cf.embed_images(form, features)
    assert v.dtype == np.float32 and v.shape == (60, 5) and cf.embed_texts(form, texts).shape == (200, 5)
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(v[:, :2] / np.linalg.norm(v[:, :2], axis=1, keepdims=True),
                               cf.embed_images(small, features), atol=1e-5)


# ---- noise -----------------------------------------------------------------------------------------------------------


def test_noise_only_shrinks_the_cross_covariance():
    features, texts, image_of = clusters(200, 0)
    clean = cf.moments(features, texts, image_of)
    draws = [cf.moments(features, texts, mismatch(image_of, 200, 0.4, seed)) for seed in range(300)]
    for draw in draws[:3]:  # the marginals are untouched
        np.testing.assert_allclose(draw.image_cov, clean.image_cov, atol=1e-9)
    crosses = np.stack([draw.cross_cov for draw in draws])
    error = crosses.std(0) / np.sqrt(len(draws))
    # 80 of 200 images are permuted, of which one stays in place on average: exactly (N - m) / (N - 1).
    z = (crosses.mean(0) - 120 / 199 * clean.cross_cov) / error
    assert abs(z).max() < 5 and z.std() < 1.2
    assert abs((crosses.mean(0) - clean.cross_cov) / error).max() > 20


def test_excess_cosine_is_the_doubly_centred_cosine_of_each_pair():
    features, texts, image_of, _ = random_pairs()
    form = cf.solve(cf.moments(features, texts, image_of), 1.0, 4)
    v, t = cf.embed_images(form, features)[image_of], cf.embed_texts(form, texts)
    s = v @ t.T
    expected = np.diag(s) - s.mean(1) - s.mean(0) + s.mean()
    np.testing.assert_allclose(cf.excess_cosine(form, features, texts, image_of), expected, atol=1e-6)


def test_its_own_division_finds_planted_mismatches_and_makes_it_better():
    features, texts, image_of = clusters(400, 0, noise=2.0)
    val, test = clusters(150, 1, noise=2.0), clusters(150, 2, noise=2.0)
    noisy = mismatch(image_of, 400, 0.6)
    wrong = noisy != image_of
    fitted = cf.fit(features, texts, noisy, *val)
    assert roc_auc_score(~wrong, fitted.clean_probability) > 0.95
    assert 0 <= fitted.clean_probability.min() and fitted.clean_probability.max() <= 1
    plain = cf.fit(features, texts, noisy, *val, rounds=0)
    truth = cf.fit(features, texts, noisy, *val, weights=~wrong)
    assert plain.val_r_mean < fitted.val_r_mean <= truth.val_r_mean + 0.5
    assert cf.r_mean(plain.form, *test) < cf.r_mean(fitted.form, *test)
    assert fitted.weights[wrong].mean() < 0.3 and (plain.weights == 1).all()


def test_given_weights_are_used_and_nothing_is_divided():
    features, texts, image_of = clusters(300, 0)
    noisy = mismatch(image_of, 300, 0.5)
    weights = (noisy == image_of).astype(np.float32)
    fitted = cf.fit(features, texts, noisy, *clusters(100, 1), weights=weights)
    np.testing.assert_array_equal(fitted.clean_probability, weights)
    assert {row.round for row in fitted.table} == {0}
    clean = cf.solve(cf.moments(features, texts, noisy, weights), fitted.ridge, fitted.rank)
    np.testing.assert_allclose(fitted.form.image_map, clean.image_map)


def test_clean_pairs_are_not_divided_where_val_likes_all_of_them_better(monkeypatch):
    monkeypatch.setattr(cf, "CHANCE", 0.1)  # of small data that are easy
    features, texts, image_of = clusters(300, 0, noise=2.0)
    fitted = cf.fit(features, texts, image_of, *clusters(100, 1, noise=2.0))
    assert cf.divide(fitted.form, features, texts, image_of).mean() < 0.9, "a mixture always finds two components"
    assert (fitted.clean_probability == 1).all() and (fitted.weights == 1).all()
    assert {row.round for row in fitted.table} == {0, 1, 2}
    best = [max(row.val_r_mean for row in fitted.table if row.round == n) for n in range(3)]
    assert fitted.dividing_costs == best[0] - max(best[1:]) > cf.CHANCE


def test_where_val_sees_no_more_than_chance_between_them_pairs_are_divided(monkeypatch):
    """Of a million pairs a solve averages mismatches away, and what it teaches needs to know them all the same."""
    monkeypatch.setattr(cf, "CHANCE", 100.0)
    features, texts, image_of = clusters(300, 0, noise=2.0)
    fitted = cf.fit(features, texts, image_of, *clusters(100, 1, noise=2.0))
    np.testing.assert_array_equal(fitted.clean_probability, cf.divide(fitted.form, features, texts, image_of))
    assert (fitted.weights == 1).all() and fitted.dividing_costs == 0


# ---- choices on val --------------------------------------------------------------------------------------------------


def test_fit_keeps_the_best_of_its_table():
    features, texts, image_of = clusters(200, 0)
    val = clusters(100, 1)
    fitted = cf.fit(features, texts, mismatch(image_of, 200, 0.3), *val, ridges=(1.0,), ranks=(4, 12, 500))
    assert fitted.val_r_mean == max(row.val_r_mean for row in fitted.table)
    assert {row.rank for row in fitted.table} == {4, 12, 30}, "ranks end at the smaller width"
    assert fitted.form.image_map.shape == (40, fitted.rank)
    similarity = cf.embed_images(fitted.form, val[0]) @ cf.embed_texts(fitted.form, val[1]).T
    assert float(recalls(similarity, val[2])[-1]) == pytest.approx(fitted.val_r_mean, abs=1e-4)


def test_grid_of_ridges_grows_past_an_edge_that_is_best():
    features, texts, image_of = clusters(200, 0)
    val = clusters(100, 1)
    for start in (1e3, 1e-3):
        fitted = cf.fit(features, texts, image_of, *val, rounds=0, ridges=(start,), ranks=(12,))
        tried = sorted({row.ridge for row in fitted.table})
        assert len(tried) > 1
        assert tried[0] < fitted.ridge < tried[-1] or fitted.ridge in (cf._LEAST_RIDGE, cf._LARGEST_RIDGE)


def test_planted_clusters_are_retrieved():
    features, texts, image_of = clusters(400, 0, noise=0.2)
    fitted = cf.fit(features, texts, image_of, *clusters(100, 1, noise=0.2))
    assert cf.r_mean(fitted.form, *clusters(100, 2, noise=0.2)) > 90


def test_calibrated_temperature_minimizes_the_cross_entropy():
    features, texts, image_of = clusters(300, 0, noise=2.0)
    val = clusters(80, 1, noise=2.0)
    form = cf.fit(features, texts, image_of, *val).form
    tau = cf.calibrated_tau(form, *val)
    s, own = (cf.embed_images(form, val[0]) @ cf.embed_texts(form, val[1]).T).astype(np.float64), val[2]

    def loss(tau):
        logits, total = s / tau, 0.0
        for k, image in enumerate(own):
            others = [j for j in range(len(own)) if own[j] != image or j == k]
            total += np.logaddexp.reduce(logits[:, k]) + np.logaddexp.reduce(logits[image, others]) - 2 * logits[image, k]
        return total

    assert loss(tau) < min(loss(0.97 * tau), loss(1.03 * tau))


def test_excess_cosines_do_not_depend_on_the_blocks(monkeypatch):
    features, texts, image_of, _ = random_pairs()
    form = cf.solve(cf.moments(features, texts, image_of), 1.0, 4)
    whole = cf.excess_cosine(form, features, texts, image_of)
    monkeypatch.setattr(cf, "_BLOCK", 17)  # fewer than images: their embeddings are made anew for each block
    np.testing.assert_allclose(cf.excess_cosine(form, features, texts, image_of), whole, atol=1e-6)
