import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_distill import METHOD, MODELS, ONES, SHAPE, WIDTH, start

from mdw_jax.method.covariance import (
    RealBatch,
    covariance_loss,
    cross_covariance,
    make_network_step,
    make_outer_step,
    objective,
)
from mdw_jax.method.distill import finite_checks

GENERATOR = np.random.default_rng(0)
V, T, REAL_V, REAL_T = (GENERATOR.normal(size=(n, 5)) for n in (7, 7, 11, 11))
MATCHING = dataclasses.replace(METHOD, objective="covariance", correspondence="identity", covariance_scale=2.0,
                               mean_weight=0.1)
MODEL = MODELS["full"]
BATCH = RealBatch(jnp.asarray(GENERATOR.integers(0, 256, (9, *SHAPE)), jnp.uint8),
                  jnp.asarray(GENERATOR.normal(size=(9, WIDTH)), jnp.float32))


def test_cross_covariance_is_that_of_numpy():
    expected = np.cov(V, T, rowvar=False, bias=True)[:5, 5:]
    np.testing.assert_allclose(cross_covariance(V, T), expected, atol=1e-6)


@pytest.mark.parametrize("scale, weight", [(1.0, 0.0), (2.0, 0.6)])
def test_the_loss_by_hand(scale, weight):
    real, own = (np.cov(v, t, rowvar=False, bias=True)[:5, 5:] for v, t in ((REAL_V, REAL_T), (V, T)))
    means = ((V.mean(0) - REAL_V.mean(0)) ** 2).sum() + ((T.mean(0) - REAL_T.mean(0)) ** 2).sum()
    expected = np.linalg.norm(scale * real - own, "fro") ** 2 + weight * means
    assert float(covariance_loss(V, T, REAL_V, REAL_T, scale, weight)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_vanishes_for_the_pairs_themselves_and_not_for_shuffled_texts():
    assert float(covariance_loss(V, T, V, T, 1.0, 0.5)) == pytest.approx(0, abs=1e-9)
    assert float(covariance_loss(V, T[::-1], V, T, 1.0, 0.5)) > 1


def test_outer_steps_bring_the_set_nearer_to_the_real_pairs_and_change_nothing_else():
    step, params = make_outer_step(MODEL, MATCHING), MODEL.init(jax.random.key(1))
    state, before = start(MATCHING), jax.tree.map(np.array, start(MATCHING).learned)
    expected = objective(MODEL, MATCHING, state.learned, params, BATCH, jax.random.key(2))
    losses = []
    for _ in range(12):
        state, metrics = step(state, params, BATCH, ONES, jax.random.key(2))
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(float(expected), rel=1e-5) and losses[-1] < 0.5 * losses[0]
    assert int(metrics["first_nonfinite"]) == -1 and int(state.step) == 12
    for name in ("images", "texts"):
        assert np.abs(state.learned[name] - before[name]).max() > 0.01
    chex.assert_trees_all_equal(state.learned["log_inner_lr"], before["log_inner_lr"])


def test_a_value_that_is_not_finite_is_named():
    step, params = make_outer_step(MODEL, MATCHING), MODEL.init(jax.random.key(1))
    broken = BATCH._replace(texts=BATCH.texts.at[0, 0].set(jnp.nan))
    state, metrics = step(start(MATCHING), params, broken, ONES, jax.random.key(2))
    assert finite_checks(state.learned, 0)[int(metrics["first_nonfinite"])] == "the matching loss"
    assert int(state.step) == 0


def test_the_network_learns_as_plain_sgd_by_hand():
    begin, step = make_network_step(MODEL, 0.1, 0.5, 1e-3)
    network = begin(jax.random.key(3))
    params, velocity = network[0], jax.tree.map(jnp.zeros_like, network[0])

    def loss(params):
        logits = MODEL.logits(params, BATCH.images.astype(jnp.float32) / 255, BATCH.texts)
        own = jnp.arange(9)
        return -(jax.nn.log_softmax(logits, 1)[own, own].mean() + jax.nn.log_softmax(logits, 0)[own, own].mean()) / 2

    for _ in range(2):
        network = step(network, BATCH)
        gradient = jax.grad(loss)(params)
        velocity = jax.tree.map(lambda v, g, w: 0.5 * v + g + 1e-3 * w, velocity, gradient, params)
        params = jax.tree.map(lambda w, v: w - 0.1 * v, params, velocity)
    chex.assert_trees_all_close(network[0], params, atol=2e-5)
