"""The certificate against brute force, published numbers, exact enumeration and a planted problem.

The planted problem: images and captions are noisy linear views of one hidden vector, the model is a pair of linear
maps. Noise permutes a random subset of the captions.
"""

import functools
import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdw_jax.errors import UserError
from mdw_jax.method import certificate, losses
from mdw_jax.method.certificate import (
    chance_gap,
    excess_risk_bound,
    has_certificate,
    loss_range,
    max_informative_rate,
    memory_cost,
    sum_bounds,
    tracks_bound,
)
from mdw_jax.method.losses import debiased
from mdw_jax.runtime.rng import named_key

TAU = 0.07
CASES = [("infonce", None), ("gce", 0.7), ("gce", 0.3), ("gce", 1.0), ("mae", None), ("rince", 0.5), ("rince", 0.2),
         ("rince", 1.0), ("ccl_tan", None), ("acl", 1.0), ("acl", 0.5), ("acl", 0.0)]
SYMMETRIC = [("mae", None), ("acl", 1.0), ("rince", 1.0), ("gce", 1.0)]


# ---- bounds of the row sum -------------------------------------------------------------------------------------------


def row_sums(name, q, rows):
    """Sums over candidates of rows of logits, and how large rounding errors of float32 can be in them."""
    values = losses.expert_loss(name, q)(jnp.asarray(rows, jnp.float32))
    size = jnp.exp((q or 1) * jnp.abs(rows).max()) if name == "rince" else 1.0
    return np.asarray(values.sum(-1)), 1e-5 * float(jnp.abs(values).sum(-1).max() + size * rows.shape[-1])


def corners(batch, tau):
    return (2 * np.tri(batch + 1, batch, -1) - 1) / tau  # 0 .. B logits at +1/tau, the rest at -1/tau


@pytest.mark.parametrize("batch, tau", [(2, TAU), (8, TAU), (33, TAU), (33, 0.5)])
@pytest.mark.parametrize("name, q", CASES)
def test_sums_of_random_and_extreme_rows_stay_within_the_bounds_and_reach_them(name, q, batch, tau):
    generator = np.random.default_rng(batch)
    box = generator.uniform(-1, 1, (300, batch)) / tau
    signs = generator.choice([-1.0, 1.0], (300, batch)) / tau
    small = box * generator.uniform(0, 1, (300, 1)) ** 3
    sums, slack = row_sums(name, q, np.concatenate([box, signs, small, corners(batch, tau), np.zeros((1, batch))]))
    lo, hi = sum_bounds(name, batch, q, tau)
    assert lo - slack <= sums.min() and sums.max() <= hi + slack
    assert sums.min() <= lo + slack
    if tau == TAU or name in ("infonce", "rince"):  # elsewhere p cannot become one-hot at a high temperature
        assert sums.max() >= hi - slack - 1e-3 * (hi - lo)


@pytest.mark.parametrize("name, q", CASES)
def test_no_row_on_a_fine_grid_of_three_logits_leaves_the_bounds(name, q):
    side = np.linspace(-2, 2, 41)
    sums, slack = row_sums(name, q, np.stack(np.meshgrid(side, side, side), -1).reshape(-1, 3))
    lo, hi = sum_bounds(name, 3, q, tau=0.5)
    assert lo - slack <= sums.min() and sums.max() <= hi + slack


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name, q", [("infonce", None), ("gce", 0.7), ("rince", 0.5), ("ccl_tan", None), ("acl", 0.5)])
def test_gradient_ascent_and_descent_on_the_sum_do_not_leave_the_bounds(name, q, sign):
    loss, (lo, hi), reach = losses.expert_loss(name, q), sum_bounds(name, 8, q, tau=0.2), 5.0

    @jax.jit
    def climb(rows):
        gradient = jax.grad(lambda z: loss(z).sum())
        uphill = lambda z, _: (jnp.clip(z + sign * 0.2 * jnp.sign(gradient(z)), -reach, reach), None)
        return jax.lax.scan(uphill, rows, None, 100)[0]

    start = jnp.asarray(np.random.default_rng(0).normal(size=(50, 8)), jnp.float32)
    before, slack = row_sums(name, q, start)
    after, _ = row_sums(name, q, climb(start))
    assert (sign * after.mean() > sign * before.mean()) and lo - slack <= after.min() and after.max() <= hi + slack


@pytest.mark.parametrize("name, q", SYMMETRIC)
def test_symmetric_losses_have_no_width(name, q):
    lo, hi = sum_bounds(name, 50, q)
    assert hi == pytest.approx(lo, abs=1e-9)


@pytest.mark.parametrize("batch, tau", [(2, TAU), (9, TAU), (9, 0.5)])
@pytest.mark.parametrize("name, q", CASES)
def test_no_loss_leaves_its_range_and_most_reach_both_ends(name, q, batch, tau):
    generator = np.random.default_rng(batch)
    rows = np.concatenate([generator.uniform(-1, 1, (500, batch)) / tau,
                           generator.choice([-1.0, 1.0], (300, batch)) / tau, corners(batch, tau)])
    values = np.asarray(losses.expert_loss(name, q)(jnp.asarray(rows, jnp.float32)))
    low, high = loss_range(name, batch, q, tau)
    slack = 1e-5 * (np.abs(values).max() + 1)
    assert low - slack <= values.min() and values.max() <= high + slack
    if tau == TAU or name in ("infonce", "rince"):
        assert values.min() <= low + slack and values.max() >= high - slack - 1e-3 * (high - low)


# ---- the bound, and up to which rate it is informative --------------------------------------------------------------


@pytest.mark.parametrize("name, q, batch, form, expected", [  # rates .2, .4, .6, .8; computed independently
    ("mae", None, 128, "finite_batch", (0, 0, 0, 0)),
    ("acl", 1.0, 128, "finite_batch", (0, 0, 0, 0)),
    ("gce", 0.7, 128, "finite_batch", (0.0093, 0.0248, 0.0561, 0.153)),
    ("gce", 0.3, 128, "finite_batch", (0.19, 0.51, 1.15, 3.13)),
    ("acl", 0.5, 128, "finite_batch", (0.062, 0.166, 0.376, 1.02)),
    ("ccl_tan", None, 128, "finite_batch", (0.140, 0.374, 0.846, 2.30)),
    ("infonce", None, 128, "large_n", (6.05, 16.1, 36.3, 96.9)),
    ("gce", 0.7, 20, "finite_batch", (0.028, 0.076, 0.178, 0.555)),
])
def test_known_certificates_are_reproduced(name, q, batch, form, expected):
    bounds = [excess_risk_bound(name, batch, rate, q, form=form) for rate in (0.2, 0.4, 0.6, 0.8)]
    np.testing.assert_allclose(bounds, expected, rtol=0.02, atol=1e-9)


def test_the_large_n_form_is_below_the_finite_batch_one_and_they_meet_in_large_batches():
    ratio = lambda batch: excess_risk_bound("gce", batch, 0.4) / excess_risk_bound("gce", batch, 0.4, form="finite_batch")
    assert ratio(8) < ratio(128) < 1 and ratio(10**5) == pytest.approx(1, abs=1e-4)


def test_the_bound_is_infinite_where_no_information_is_left_and_zero_without_noise():
    for name, q in CASES:
        assert excess_risk_bound(name, 10, 0.0, q) == 0
        assert excess_risk_bound(name, 10, 1.0, q) == math.inf
        assert excess_risk_bound(name, 10, 0.9, q, form="finite_batch") == math.inf
        assert excess_risk_bound(name, 10, 0.89, q, form="finite_batch") < math.inf


@pytest.mark.parametrize("name, q", CASES)
def test_the_chance_gap_is_equal_logits_against_one_sure_and_right_candidate(name, q):
    loss, sure = losses.expert_loss(name, q), 2 * np.eye(1, 20) - 1
    expected = float(loss(jnp.zeros((1, 20)))[0, 0] - loss(jnp.asarray(sure, jnp.float32) / TAU)[0, 0])
    assert chance_gap(name, 20, q) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", certificate.FORMS)
@pytest.mark.parametrize("name, q", CASES)
def test_the_bound_crosses_the_chance_gap_at_the_largest_informative_rate(name, q, form):
    point, gap = max_informative_rate(name, 20, q, form=form), chance_gap(name, 20, q)
    assert excess_risk_bound(name, 20, point - 1e-6, q, form=form) < gap
    assert excess_risk_bound(name, 20, min(point + 1e-6, 1.0), q, form=form) > gap
    if (name, q) in SYMMETRIC:
        assert point == pytest.approx(1 if form == "large_n" else 19 / 20)


def test_tracks_share_the_bound():
    one = excess_risk_bound("gce", 128, 0.4)
    assert tracks_bound([(0.3, 0.4, "gce", None)], 128) == pytest.approx(one)
    assert tracks_bound([(0.5, 0.1, "gce", 0.7), (0.5, 0.7, "gce", 0.7)], 128) == pytest.approx(one)
    # A track of wrong pairs alone teaches nothing, and costs what its loss allows.
    lo, hi = sum_bounds("gce", 128)
    assert tracks_bound([(0.8, 0.0, "infonce", None), (0.2, 1.0, "gce", None)], 128) == pytest.approx(
        0.2 * (hi - lo) / 128 / 0.8)
    assert tracks_bound([(1.0, 1.0, "gce", None)], 128) == math.inf


def test_memory_costs_what_it_hides():
    assert memory_cost(0.03, 0.4) == pytest.approx(0.02) and memory_cost(-0.1, 0.4) == 0
    assert memory_cost(0.1, 1.0) == math.inf


def test_tolerant_losses_stay_informative_up_to_higher_rates():
    order = [("infonce", None), ("ccl_tan", None), ("gce", 0.3), ("gce", 0.7), ("mae", None)]
    points = [max_informative_rate(name, 128, q) for name, q in order]
    assert points == sorted(points) and points[0] < 0.2 and points[3] > 0.95


# ---- Propositions 1, 2 and 3, exactly: every permutation and every batch of a tiny data set --------------------------

N_TINY, B_TINY = 5, 3


@functools.cache
def tiny_risks(name, q):
    """Risks of 300 arbitrary models (5 x 5 logits) for each count of mismatched rows: {0: (300,), 2: ..., 5: ...}."""
    logits = np.random.default_rng(1).normal(size=(300, N_TINY, N_TINY)) * 4
    logits[:, range(N_TINY), range(N_TINY)] += np.random.default_rng(2).uniform(0, 6, (300, 1))
    orders = np.array(list(itertools.permutations(range(N_TINY))))
    rows = np.array(list(itertools.combinations(range(N_TINY), B_TINY)))
    blocks = logits[:, rows[None, :, :, None], orders[:, rows][:, :, None, :]]
    paid = jnp.diagonal(losses.expert_loss(name, q)(jnp.asarray(blocks)), axis1=-2, axis2=-1).mean((-1, -2))
    mismatched = (orders != np.arange(N_TINY)).sum(1)
    return {k: np.asarray(paid[:, mismatched == k].mean(1)) for k in (0, 2, 3, 4, 5)}


@pytest.mark.parametrize("name, q", [("infonce", None), ("gce", 0.7), ("mae", None)])
def test_proposition_1_is_exact_for_deranged_captions(name, q):
    risks = tiny_risks(name, q)
    for k in (2, 3, 4):
        rate = k / N_TINY
        np.testing.assert_allclose(risks[k], (1 - rate) * risks[0] + rate * risks[5], rtol=1e-5)


@pytest.mark.parametrize("name, q", [("mae", None), ("acl", 1.0)])
def test_proposition_2_slope_of_a_symmetric_loss_at_finite_size(name, q):
    risks = tiny_risks(name, q)
    for k in (2, 3, 4):
        rate = k / N_TINY
        slope, _ = np.polyfit(risks[0], risks[k], 1)
        assert slope == pytest.approx(1 - rate - rate / (N_TINY - 1), abs=1e-4)


@pytest.mark.parametrize("name, q", [("gce", 0.7), ("gce", 0.3), ("ccl_tan", None), ("acl", 0.5), ("mae", None)])
def test_proposition_3_finite_batch_form_holds_for_any_set_of_models(name, q):
    risks = tiny_risks(name, q)
    for k in (2, 3):
        bound = excess_risk_bound(name, B_TINY, k / N_TINY, q, form="finite_batch")
        for start in range(0, 300, 3):  # small sets of models, where the two minimizers often differ
            clean, noisy = risks[0][start : start + 3], risks[k][start : start + 3]
            assert clean[noisy.argmin()] - clean.min() <= bound + 1e-6


# ---- the planted problem ---------------------------------------------------------------------------------------------

M, B, HIDDEN, WIDTH, OUT = 3000, 32, 16, 24, 16


def views(name, size):
    """`size` clean pairs: images (size, WIDTH), captions (size, WIDTH), and the two maps that made them."""
    maps = [jax.random.normal(named_key(0, "map", side), (HIDDEN, WIDTH)) / HIDDEN**0.5 for side in ("x", "t")]
    hidden = jax.random.normal(named_key(0, name, "hidden"), (size, HIDDEN))
    noise = [0.35 * jax.random.normal(named_key(0, name, side), (size, WIDTH)) for side in ("x", "t")]
    return hidden @ maps[0] + noise[0], hidden @ maps[1] + noise[1], maps


@functools.cache
def planted():
    """Training images and captions, and parameters near the planted maps: they have seen no permutation."""
    images, captions, maps = views("train", M)
    inverses = [jnp.linalg.pinv(m) for m in maps]
    blur = [0.2 * w.std() * jax.random.normal(named_key(1, "blur", i), w.shape) for i, w in enumerate(inverses)]
    return images, captions, jax.tree.map(jnp.add, inverses, blur)


def logits_of(theta, images, captions):
    unit = lambda z: z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    return unit(images @ theta[0]) @ unit(captions @ theta[1]).T / TAU


def risk(theta, images, captions, batches, name):
    """Mean loss over batches, (K, B) rows."""
    loss = losses.expert_loss(name)
    one = lambda rows: losses.pair_losses(loss, logits_of(theta, images[rows], captions[rows])).mean()
    return jax.vmap(one)(batches).mean()


def row_mean_risk(theta, images, captions, batches, name, shift):
    """Mean row mean; images meet the captions of the batch `shift` places away (0: their own batch)."""
    loss = losses.expert_loss(name)
    one = lambda a, b: losses.shuffled_losses(loss, logits_of(theta, images[a], captions[b])).mean()
    return jax.vmap(one)(batches, jnp.roll(batches, shift, axis=0)).mean()


def corrupted(key, captions, rate):
    """Captions with a random subset of round(rate * M) permuted (rate may be traced: one compilation for all)."""
    first, second = jax.random.split(key)
    order, place = jax.random.permutation(first, M), jnp.arange(M)
    moved = jnp.argsort(jnp.where(place < jnp.round(rate * M), jax.random.uniform(second, (M,)), 1.0 + place))
    return captions.at[order].set(captions[order[moved]])


@functools.partial(jax.jit, static_argnums=0)
def one_draw(name, rate, key):
    """{kind: (risk, its gradient)} of one noise draw, on the same batches of images for every `kind`."""
    images, captions, theta = planted()
    noise, shuffle, order = jax.random.split(key, 3)
    batches = jax.random.permutation(order, M)[: M // B * B].reshape(-1, B)
    noisy = corrupted(noise, captions, rate)
    both = lambda f, *args: jax.value_and_grad(f)(theta, images, *args)
    return {"clean": both(risk, captions, batches, name), "noisy": both(risk, noisy, batches, name),
            "shuffled": both(risk, corrupted(shuffle, captions, 1.0), batches, name),
            "other batch": both(row_mean_risk, noisy, batches, name, 1),
            "own batch": both(row_mean_risk, noisy, batches, name, 0)}


@functools.cache
def measured(name, rate, draws=30):
    """{kind: (risks (draws,), mean gradient (P,))} over noise draws."""
    planted()  # outside of any trace
    draws_measured = [one_draw(name, rate, key) for key in jax.random.split(named_key(0, "draws", name), draws)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *draws_measured)
    flat = lambda tree: np.concatenate([leaf.mean(0).ravel() for leaf in jax.tree.leaves(tree)])
    return {kind: (value, flat(grads)) for kind, (value, grads) in stacked.items()}


def mean_and_error(values):
    return values.mean(), values.std(ddof=1) / len(values) ** 0.5


def cosine_and_slope(gradient, clean):
    return gradient @ clean / np.linalg.norm(gradient) / np.linalg.norm(clean), gradient @ clean / (clean @ clean)


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6])
@pytest.mark.parametrize("name", ["infonce", "mae"])
def test_proposition_1_on_the_planted_problem(name, rate):
    risks = {kind: value for kind, (value, _) in measured(name, rate).items()}
    mixture = (1 - rate) * risks["clean"] + rate * risks["shuffled"]
    gap, error = mean_and_error(risks["noisy"] - mixture)
    assert abs(gap) < 4 * error
    assert 4 * error < 0.1 * (risks["noisy"] - risks["clean"]).mean()  # or the line above would say nothing


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6, 0.8])
def test_proposition_2_a_symmetric_loss_keeps_the_direction_of_the_gradient(rate):
    measurement = measured("mae", rate)
    cosine, slope = cosine_and_slope(measurement["noisy"][1], measurement["clean"][1])
    assert cosine > 0.99 and slope == pytest.approx(1 - rate, abs=0.02)


def test_proposition_2_fails_for_infonce():
    measurement = measured("infonce", 0.6)
    assert cosine_and_slope(measurement["noisy"][1], measurement["clean"][1])[0] < 0.7


@functools.partial(jax.jit, static_argnums=0)
def fit(name, captions, images):
    """A pair of linear maps from small random weights: 30 epochs of Adam on the mean loss of eight batches a step."""
    start = [0.2 * jax.random.normal(named_key(0, "start", i), (WIDTH, OUT)) for i in range(2)]
    orders = jax.vmap(lambda key: jax.random.permutation(key, M))(jax.random.split(named_key(0, "fit"), 30))
    plan = orders[:, : M // (8 * B) * 8 * B].reshape(-1, 8, B)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, len(plan)))

    def step(carry, batches):
        theta, state = carry
        updates, state = optimizer.update(jax.grad(risk)(theta, images, captions, batches, name), state)
        return (optax.apply_updates(theta, updates), state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), plan)[0][0]


@functools.cache
def fresh_risk(name, rate, draw=0):
    """Clean GCE risk, on pairs never trained on, of a minimizer of the noisy risk of `name`."""
    images, captions, _ = planted()
    fresh_images, fresh_captions, _ = views("fresh", 100 * B)
    theta = fit(name, corrupted(named_key(draw, "fit noise"), captions, rate), images)
    return float(jax.jit(risk, static_argnums=4)(
        theta, fresh_images, fresh_captions, jnp.arange(100 * B).reshape(-1, B), "gce"))


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6, 0.8])
def test_proposition_3_bounds_the_measured_excess_risk(rate):
    best, bound = fresh_risk("gce", 0.0), excess_risk_bound("gce", B, rate)
    assert best < 0.1  # the clean minimizer is good: chance is 1.30
    for draw in range(2):
        excess = fresh_risk("gce", rate, draw) - best
        assert bound / 20 < excess <= bound  # neither broken nor empty


def test_proposition_3_is_about_the_loss_infonce_exceeds_the_bound_of_gce():
    assert fresh_risk("infonce", 0.4) - fresh_risk("gce", 0.0) > 2 * excess_risk_bound("gce", B, 0.4)


@pytest.mark.parametrize("source", ["shuffled", "other batch"])
def test_proposition_4_removes_the_noise_from_the_risk_and_the_gradient_of_infonce(source):
    measurement, rate = measured("infonce", 0.4), 0.4
    risk_, gradient = debiased(measurement["noisy"], measurement[source], rate)
    gap, error = mean_and_error(risk_ - measurement["clean"][0])
    assert abs(gap) < 4 * error and 4 * error < 0.05 * (measurement["noisy"][0] - measurement["clean"][0]).mean()
    cosine, slope = cosine_and_slope(gradient, measurement["clean"][1])
    assert cosine > 0.9 and slope == pytest.approx(1, abs=0.1)
    assert cosine > cosine_and_slope(measurement["noisy"][1], measurement["clean"][1])[0] + 0.2


def test_proposition_4_needs_captions_from_outside_the_batch():
    measurement = measured("infonce", 0.4)
    risk_, gradient = debiased(measurement["noisy"], measurement["own batch"], 0.4)
    gap, error = mean_and_error(risk_ - measurement["clean"][0])
    assert gap < -10 * error and cosine_and_slope(gradient, measurement["clean"][1])[1] > 1.5


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_default_exponents_are_those_of_the_losses():
    for name in ("gce", "rince", "acl"):
        entry = losses.EXPERT_LOSSES[name]
        default = inspect.signature(entry.function).parameters["q"].default
        assert entry.q == default
        assert sum_bounds(name, 16) == sum_bounds(name, 16, default) != sum_bounds(name, 16, 0.9)


def test_a_loss_without_bounds_has_no_certificate_and_one_with_bounds_has(tmp_path, monkeypatch):
    (tmp_path / "certified_losses.py").write_text(
        "import dataclasses\n"
        "from mdw_jax.method.losses import EXPERT_LOSSES, ExpertLoss, gce\n"
        "def plain(logits):\n    return gce(logits)\n"
        "partly = ExpertLoss(gce, 0.7, sum_bounds=EXPERT_LOSSES['gce'].sum_bounds)\n"
        "bounded = dataclasses.replace(EXPERT_LOSSES['gce'], q=0.3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    plain, partly, bounded = (f"certified_losses:{name}" for name in ("plain", "partly", "bounded"))
    assert [has_certificate(name) for name in ("gce", plain, partly, bounded)] == [True, False, False, True]
    for call in (sum_bounds, loss_range, chance_gap, max_informative_rate):
        with pytest.raises(UserError, match="there is no certificate for the loss 'certified_losses:plain': "):
            call(plain, 8)
        assert call(bounded, 8) == call("gce", 8, 0.3)
    with pytest.raises(UserError, match="there is no certificate for the loss"):
        excess_risk_bound(plain, 8, 0.2)
    with pytest.raises(UserError, match="there is no certificate for the loss"):
        max_informative_rate(partly, 8)


@pytest.mark.parametrize("call, match", [
    (lambda: sum_bounds("gcee", 8), "gce"),
    (lambda: sum_bounds("foo", 8), "there is no loss 'foo'"),
    (lambda: has_certificate("foo"), "there is no loss 'foo'"),
    (lambda: sum_bounds("gce", 1), "at least 2"),
    (lambda: sum_bounds("gce", 8, q=1.5), "exponent q"),
    (lambda: sum_bounds("rince", 8, q=0.0), "exponent q"),
    (lambda: sum_bounds("infonce", 8, tau=0.0), "temperature"),
    (lambda: excess_risk_bound("gce", 8, 1.2), "between 0 and 1"),
    (lambda: excess_risk_bound("gce", 8, 0.2, form="half"), "large_n, finite_batch"),
    (lambda: max_informative_rate("gce", 8, form="half"), "large_n, finite_batch"),
    (lambda: debiased(1.0, 2.0, 1.0), "below 1"),
])
def test_mistakes_are_explained(call, match):
    with pytest.raises(UserError, match=match):
        call()
