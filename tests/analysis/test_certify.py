"""The upper bound against a planted truth over many noise draws; its parts against brute force; the command end to end.

The planted problem: images and captions are noisy linear views of one hidden vector, and the network is a pair of
linear maps that saw none of the pairs it is certified on.
"""

import csv
import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import binom

from mdw_jax.analysis.certificate import estimate, report
from mdw_jax.analysis.certificate.case import UNKNOWN_RATE, Case
from mdw_jax.analysis.certificate.command import certify_command
from mdw_jax.config import base
from mdw_jax.errors import UserError
from mdw_jax.method import certificate, losses
from mdw_jax.method.losses import expert_loss, pair_losses
from mdw_jax.runtime.rng import named_generator

TAU, B, ITEMS, DRAWS, DELTA = 0.07, 32, 200, 250, 0.1
GCE = ("gce", 0.7)
TRIVIAL = certificate.sum_bounds("gce", B)[0] / B
SPAN = certificate.loss_range("gce", B)


# The planted problem


def views(generator, size):
    """Unit embeddings of `size` images and of their captions."""
    hidden = generator.normal(size=(size, 12))
    unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    return tuple(unit(hidden + 0.7 * generator.normal(size=hidden.shape)) for _ in range(2))


@functools.cache
def candidates():
    return tuple(views(named_generator(0, name), B - 1)[side][None] for side, name in enumerate(("images", "texts")))


def pair_loss(v, t, losses=(GCE,)):
    return estimate.losses_among(losses, v, t, candidates(), TAU)


@functools.cache
def truth():
    """The clean risk and the risk at random partners, given the candidates."""
    v, t = views(named_generator(0, "truth"), 40_000)
    return float(pair_loss(v, t).mean()), float(pair_loss(v, np.roll(t, 1, 0)).mean())


@functools.cache
def draws(rate, items=ITEMS):
    """[(losses of the units as given, losses at random partners, matchings' units, true rate)] of many data sets."""
    found = []
    for draw in range(DRAWS):
        generator = named_generator(draw, "draw", items)
        v, t = views(generator, items)
        noisy = estimate.with_noise(generator, np.arange(items), rate)
        shuffled = estimate.matchings(generator, np.arange(items), 2)
        at = lambda units, v=v, t=t: estimate.by_unit(pair_loss(v[units.images], t[units.captions])[0], units)
        found.append((at(noisy), np.concatenate([at(units) for units in shuffled]), shuffled[0].count,
                      noisy.mismatched / noisy.count))
    return found


def bounds(rate, items=ITEMS, claimed=None):
    """(DRAWS,) upper bounds, eta being known unless another is claimed."""
    return np.array([estimate.upper_bound(noisy, shuffled, count, claimed or (known, known), SPAN, DELTA).bound
                     for noisy, shuffled, count, known in draws(rate, items)])


@pytest.mark.parametrize("rate", [0.0, 0.4, 0.6])
def test_the_upper_bound_fails_no_more_often_than_it_may(rate):
    # 40 of 250 is what a bound that fails as often as it may, one time in ten, exceeds once in a thousand.
    assert (bounds(rate) < truth()[0]).sum() <= binom.ppf(0.999, DRAWS, DELTA)


@pytest.mark.parametrize("rate, items, factor", [(0.4, ITEMS, 1.9), (0.6, ITEMS, 2.3), (0.4, 1000, 1.4)])
def test_the_upper_bound_is_not_vacuous(rate, items, factor):
    found = bounds(rate, items)
    assert found.mean() < TRIVIAL and found.mean() < factor * truth()[0]


def test_bounds_that_leave_something_out_fail_too_often():
    clean, shuffled = truth()
    point = np.array([losses.debiased(noisy.mean(), others.mean(), rate) for noisy, others, _, rate in draws(0.4)])
    most = binom.ppf(0.999, DRAWS, DELTA)
    assert (point < clean).sum() > 2 * most  # no allowance for chance
    assert (bounds(0.4, 1000, claimed=(0.6, 0.6)) < clean).sum() > 2 * most  # an eta too large
    # The clean risk from the pairs as given, eta ignored: it cannot fall short, but as an interval it misses.
    noisy = [values for values, _, _, _ in draws(0.4, 1000)]
    low = np.array([estimate.hoeffding(values.mean(), len(values), SPAN, DELTA / 2, upper=False) for values in noisy])
    assert (low > clean).sum() > 2 * most and clean < shuffled


def test_eta_pays_for_itself_on_enough_images():
    ignoring = np.mean([estimate.upper_mean(noisy, SPAN, DELTA / 2) for noisy, _, _, _ in draws(0.4, 1000)])
    assert bounds(0.4, 1000).mean() < ignoring - 0.1


def test_the_noisy_risk_is_the_mixture_that_proposition_4_inverts():
    clean, shuffled = truth()
    means = np.array([noisy.mean() - (1 - rate) * clean - rate * shuffled for noisy, _, _, rate in draws(0.4)])
    error = means.std() / DRAWS**0.5
    assert abs(means.mean()) < 4 * error and error < 0.01


def test_the_rate_of_noisy_training_pairs_says_nothing_of_clean_val_pairs():
    """Planted: 40 % of the training pairs are mismatched, and no pair of val."""
    clean, most = truth()[0], binom.ppf(0.999, DRAWS, DELTA)
    assert (bounds(0.0, claimed=(0.4, 0.4)) < clean).mean() > 0.5
    rate = UNKNOWN_RATE
    for planted in (0.0, 0.4, 0.6):  # of val, whatever that of train is
        assert (bounds(planted, claimed=(rate.low, rate.high)) < clean).sum() <= most


def test_of_an_interval_of_eta_the_worse_end_counts():
    low_noise, high_noise, wide = (estimate.upper_bound(*draws(0.4)[0][:3], eta, SPAN, DELTA).bound
                                   for eta in ((0.3, 0.3), (0.5, 0.5), (0.3, 0.5)))
    assert high_noise < low_noise == wide  # less noise to blame: more of the loss is the network's own
    guessing = np.full(100, 1.42)
    assert (estimate.upper_bound(guessing, guessing - 0.3, 100, (0.1, 0.3), SPAN, DELTA).bound
            == estimate.upper_bound(guessing, guessing - 0.3, 100, (0.3, 0.3), SPAN, DELTA).bound)
    assert estimate.upper_bound(guessing, guessing - 0.3, 100, (0.0, 1.0), SPAN, DELTA).bound == SPAN[1]


# Inequalities


@pytest.mark.parametrize("mean", [0.02, 0.3, 0.98])
def test_hoeffding_is_inverted_exactly_and_beats_its_simpler_form(mean):
    bound = estimate.hoeffding(mean, 80, (0, 1), 0.05)
    kl = mean * np.log(mean / bound) + (1 - mean) * np.log((1 - mean) / (1 - bound))
    assert kl == pytest.approx(np.log(20) / 80) and mean < bound <= mean + np.sqrt(np.log(20) / 160)
    assert estimate.hoeffding(1 - mean, 80, (0, 1), 0.05, upper=False) == pytest.approx(1 - bound)
    assert estimate.hoeffding(3 + 2 * mean, 80, (3, 5), 0.05) == pytest.approx(3 + 2 * bound)


def test_hoeffding_at_zero_has_a_closed_form():
    assert estimate.hoeffding(0.0, 10, (0, 1), 0.1) == pytest.approx(1 - 0.1**0.1)


@pytest.mark.parametrize("chance", [0.01, 0.2, 0.5])
def test_both_inequalities_hold_for_coins(chance):
    flips = np.random.default_rng(0).random((2000, 60)) < chance
    for bound in (lambda x: estimate.hoeffding(x.mean(), 60, (0, 1), 0.1),
                  lambda x: estimate.empirical_bernstein(x, (0, 1), 0.1), lambda x: estimate.upper_mean(x, (0, 1), 0.1)):
        assert np.mean([bound(x) < chance for x in flips.astype(float)]) < 0.12


def test_empirical_bernstein_wins_where_the_variance_is_small():
    values = 0.5 + 0.01 * np.random.default_rng(0).normal(size=3000)
    assert estimate.empirical_bernstein(values, (0, 1), 0.1) < estimate.hoeffding(0.5, 3000, (0, 1), 0.1) - 0.01
    assert estimate.upper_mean(values, (0, 1), 0.1) < 0.51


def test_the_rate_up_to_which_the_bound_informs_solves_its_equation():
    rate = estimate.largest_informative_rate(0.6, 1.3, 0.1, 0.05)
    assert 0.6 + (0.1 + rate * 0.05) / (1 - rate) == pytest.approx(1.3)
    assert estimate.largest_informative_rate(1.25, 1.3, 0.1, 0.05) == 0
    assert estimate.largest_holding([0.4, 0.0, 0.2, 0.6], [True, True, True, False]) == 0.4
    assert estimate.largest_holding([0.0, 0.2, 0.4], [True, False, True]) == 0.0
    assert estimate.largest_holding([0.2], [False]) is None


# Pairs and losses


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.55, 1.0])
def test_no_image_or_caption_is_in_two_units(rate):
    image_of = np.repeat(np.arange(0, 120, 2), 3)[np.random.default_rng(0).permutation(180)]  # odd images have none
    units = estimate.with_noise(np.random.default_rng(1), image_of, rate)
    donors = image_of[units.captions]
    assert units.count == int(60 / (1 + rate)) and len(units.images) == 3 * units.count
    assert len(np.unique(units.captions)) == len(units.captions)
    wrong = donors != units.images
    assert wrong.sum() == 3 * units.mismatched and 0 <= units.mismatched / units.count - rate < 1 / units.count
    assert not np.intersect1d(donors[wrong], units.images).size
    for n in range(units.count):
        own = units.unit == n
        assert len(np.unique(units.images[own])) == len(np.unique(donors[own])) == 1


def test_matchings_pair_each_image_at_most_once_and_never_with_its_own():
    image_of = np.repeat(np.arange(11), 2)
    for units in estimate.matchings(np.random.default_rng(0), image_of, 5):
        assert units.count == 5
        assert not np.intersect1d(image_of[units.captions], units.images).size
        assert len(np.unique(units.images)) == 5 and len(np.unique(units.captions)) == 10


def test_losses_among_candidates_are_those_of_a_batch_made_of_them():
    v, t = views(np.random.default_rng(0), 7)
    sets = [views(np.random.default_rng(n), 5) for n in (1, 2)]
    found = estimate.losses_among((GCE, ("infonce", None)), v, t, tuple(map(np.stack, zip(*sets, strict=True))), TAU,
                                 rows=3)
    for n, loss in enumerate((expert_loss(*GCE), expert_loss("infonce"))):
        for pair in range(7):
            batches = [np.vstack([v[pair], images]) @ np.vstack([t[pair], captions]).T / TAU
                       for images, captions in sets]
            expected = np.mean([pair_losses(loss, jnp.asarray(logits))[0] for logits in batches])
            assert found[n, pair] == pytest.approx(expected, rel=1e-4)


def test_a_unit_is_the_mean_of_its_pairs():
    units = estimate.Units(np.zeros(3), np.zeros(3), np.array([1, 0, 1]), 2, None)
    np.testing.assert_allclose(estimate.by_unit([[1.0, 2.0, 5.0]], units), [[2, 3]])


# Tracks and memory


def test_residual_noise_is_weighted():
    probability, mismatched = [0.9, 0.6, 0.1], [False, True, True]
    assert estimate.residual_noise(probability, [0.9, 0.6, 0], mismatched) == pytest.approx(0.4)
    assert estimate.residual_noise(probability, [0.9, 0.6, 0]) == pytest.approx((0.9 * 0.1 + 0.6 * 0.4) / 1.5)
    assert np.isnan(estimate.residual_noise(probability, [0, 0, 0]))


def test_a_network_that_memorized_mismatched_pairs_is_told_from_one_that_did_not():
    generator = np.random.default_rng(0)
    v, t = views(generator, 96)
    seen = np.roll(np.arange(96), 1)  # all pairs wrong
    wrong = np.roll(np.arange(96), 7)
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    lift = generator.normal(size=(12, 300)).astype(np.float32)
    features = [np.maximum(x @ lift, 0) for x in (v, t)]  # enough to memorize anything
    heads = tuple(0.05 * jnp.asarray(generator.normal(size=(300, 16)), jnp.float32) for _ in range(2))
    embed = lambda heads: [unit(x @ head) for x, head in zip(features, heads, strict=True)]

    def loss(heads):
        v, t = embed(heads)
        return pair_losses(expert_loss("infonce"), v @ t[seen].T / 0.2).mean()

    optimizer = optax.adam(0.01)
    step = jax.jit(lambda heads, state: optimizer.update(jax.grad(loss)(heads), state))
    state, gaps = optimizer.init(heads), []
    for _ in range(4):
        v_, t_ = (np.asarray(x) for x in embed(heads))
        at = lambda rows, v_=v_, t_=t_: losses_of(v_, t_[rows])
        gaps.append(estimate.memorized(at(seen), at(wrong), matched=0.0))
        for _ in range(40):
            updates, state = step(heads, state)
            heads = optax.apply_updates(heads, updates)
    assert abs(gaps[0].gap) < 3 * gaps[0].error and gaps[-1].gap > 0.5 and gaps[-1].share > 0.4
    assert estimate.first_memorized(gaps) == 1 and estimate.first_memorized(gaps[:1]) is None


def losses_of(v, t):
    others = np.random.default_rng(5).normal(size=(2, 1, 15, v.shape[1])).astype(np.float32)
    others /= np.linalg.norm(others, axis=-1, keepdims=True)
    return estimate.losses_among((GCE,), v, t, tuple(others), TAU)[0]


def test_memory_that_comes_and_goes_counts_from_where_it_stays():
    memory = lambda gap: estimate.Memory(gap, 1.0, 0.0)
    assert estimate.first_memorized([memory(0), memory(5), memory(0), memory(4), memory(9)]) == 3
    assert estimate.first_memorized([memory(5), memory(0)]) is None


def case_of(gaps, **changes):
    """A case with nothing but what the sentences on memorization read."""
    memory = [estimate.Memory(gap, 1.0, share) for gap, share in gaps]
    case = Case(*[None] * len(Case._fields))._replace(
        preset=SimpleNamespace(noise=SimpleNamespace(label="40%", true_rate=None)), names="mdw", memory=memory,
        by_epoch=memory, memorized_from=estimate.first_memorized(memory))
    return case._replace(**changes)


@pytest.mark.parametrize("gaps, sentence", [
    ([(0, 0.0), (1, 0.0)], "mismatched pairs are not memorized at any stored epoch (the last is 1)."),
    ([(0, 0.0), (5, 0.2), (1, 0.1)],
     "mismatched pairs are not memorized at the last stored epoch, 2 (they were at epoch 1)."),
    ([(5, 0.2), (0, 0.0), (5, 0.2), (1, 0.1)],
     "mismatched pairs are not memorized at the last stored epoch, 3 (they were at 2 of the epochs 0 to 2)."),
    ([(0, 0.0), (5, 0.2), (5, 0.25)], "mismatched pairs are memorized from epoch 1 through the last stored one, where the "
     "assumption of Proposition 3 fails; 25.0% of the way to right pairs by the last one, 2."),
    ([(0, 0.0), (5, math.nan)], "mismatched pairs are memorized from epoch 1 through the last stored one, where the "
     "assumption of Proposition 3 fails."),
])
def test_the_sentence_on_memorization_agrees_with_the_table(gaps, sentence):
    assert report.summary_lines([case_of(gaps)]) == [f"* mdw, 40% mismatched: {sentence}"]


def test_where_a_bound_holds_is_said_of_every_rate():
    assert report._where([0.4, 0.0, 0.2], [False, True, True]) == "up to 20%"
    assert report._where([0.0, 0.2], [False, False]) == "at no rate"
    assert report._where([0.0, 0.2, 0.2, 0.4], [False, True, False, True]) == "only at 40%"


# The command

TINY = {
    "run.presets": ("random", "experts"), "certify.rates": (0.0, 0.4), "model.mode": "projection", "data.size": 16,
    "data.train": 80, "data.val": 40, "data.test": 40, "text.dim": 24, "model.patches": (8,), "model.widths": (16,),
    "experts.count": 1, "experts.epochs": 2, "experts.batch": 32, "experts.recovery_start": 1, "distill.pairs": 8,
    "distill.batch": 4, "distill.rank": 2, "distill.match_epochs": 2, "evaluate.steps": 10, "evaluate.every": 5,
}


def tiny(folder, **changes):
    c = base()
    c.update_from_flattened_dict(TINY | {"run.dir": str(folder)})
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return c


def rows_of(folder):
    with open(folder / "certificate.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_command_certifies_every_rate_and_says_what_it_does_not_promise(tmp_path, capsys):
    certify_command(tiny(tmp_path))
    printed, rows = capsys.readouterr().out, rows_of(tmp_path)
    assert (tmp_path / "figures" / "certificate.png").stat().st_size > 10_000
    assert "does not promise" in printed and "Memorization" in printed and "random" not in {row["preset"] for row in rows}
    pick = lambda measure, **where: [row for row in rows if row["measure"] == measure
                                     and all(row[name] == value for name, value in where.items())]
    noisy = max(row["eta"] for row in rows)
    assert {row["eta"] for row in pick("upper_bound")} == {"0.0", noisy} and 0.3 < float(noisy) <= 0.4
    for row in pick("excess_bound_large_n"):
        name, _, q = row["loss"].partition(" ")
        assert float(row["value"]) == pytest.approx(
            certificate.excess_risk_bound(name, 32, float(row["eta"]), float(q) if q else None))
    for row in pick("clean_risk"):
        [upper] = pick("upper_bound", preset=row["preset"], eta=row["eta"], loss=row["loss"])
        assert float(row["value"]) <= float(upper["value"])
    [excess] = pick("excess")
    assert excess["reference"] == "clean pairs, the same recipe" and excess["eta"] == noisy
    clean = [float(pick("clean_risk", loss="gce 0.7", eta=eta)[0]["value"]) for eta in (noisy, "0.0")]
    assert float(excess["value"]) == pytest.approx(clean[0] - clean[1], abs=1e-6)
    assert {row["track"] for row in pick("residual", eta=noisy, source="known")} == {"clean", "recovered", "all"}
    assert {row["epoch"] for row in pick("memory", eta=noisy)} == {"0", "1", "2"}
    assert "Noise edge of the training pairs" in printed and "proved edge" in printed
    clean_top, noisy_top = (float(pick("noise_edge_top", eta=eta)[0]["value"]) for eta in ("0.0", noisy))
    assert clean_top > noisy_top
    for row in pick("noise_edge_directions"):
        [top] = pick("noise_edge_top", eta=row["eta"])
        assert (float(row["value"]) > 0) == (float(top["value"]) > float(top["bound"]))


def test_natural_noise_is_certified_at_the_rate_that_is_believed_and_at_that_estimated(tmp_path):
    certify_command(tiny(tmp_path, noise__protocol="natural", noise__rate=0.3, certify__rates=(),
                         experts__recipe="tolerant", data__train=20))
    rows = rows_of(tmp_path)
    # So few pairs say nothing of eta, and a network that does no better than guessing could be as bad as can be.
    value = lambda measure: {(row["source"], row["loss"]): float(row["value"]) for row in rows
                             if row["measure"] == measure}
    bound, ignoring = value("upper_bound"), value("noisy_upper_bound")
    assert bound["given", "gce 0.7"] == bound["estimated", "gce 0.7"] == 1 / 0.7 >= ignoring["given", "gce 0.7"]
    assert {row["source"] for row in rows if row["measure"] == "upper_bound"} == {"given", "estimated"}
    assert not {"clean_risk", "excess", "memory"} & {row["measure"] for row in rows}
    assert {"train_given", "val_given"} <= {row["measure"] for row in rows}


def test_a_loss_without_bounds_is_measured_but_not_certified(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_losses.py").write_text(
        "import jax\n\n\ndef half_mae(logits):\n    return (1 - jax.nn.softmax(logits, axis=-1)) / 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = "own_losses:half_mae"
    certify_command(tiny(tmp_path / "run", run__presets=("mdw",), experts__recipe="tolerant", experts__epochs=1,
                         experts__recovery_start=0, experts__tolerant_loss=own, distill__match_epochs=1))
    printed, rows = capsys.readouterr().out, rows_of(tmp_path / "run")
    assert printed.count("no certificate for this loss") >= 4 and "its risks are measured only" in printed
    measures = {row["measure"] for row in rows if row["loss"] == own}
    assert {"certificate", "clean_risk", "noisy_risk", "shuffled_risk", "excess", "residual", "memory"} <= measures
    assert not {measure for measure in measures if "bound" in measure or "informative" in measure}
    value = lambda measure, loss, column="value": [row[column] for row in rows if row["measure"] == measure
                                                   and row["loss"] == loss]
    assert set(value("certificate", own)) == {certificate.NO_CERTIFICATE}
    assert set(value("excess", own, "bound")) == set(value("residual", own, "bound")) == {""}
    # Half of MAE in everything that is measured, chance included.
    for column in ("value", "low", "high", "trivial"):
        np.testing.assert_allclose(2 * np.array(value("clean_risk", own, column), float),
                                   np.array(value("clean_risk", "mae", column), float), rtol=1e-4)
    assert len(value("upper_bound", "mae")) == 2


def test_every_loss_trained_under_has_its_sentences(tmp_path, capsys):
    certify_command(tiny(tmp_path, run__presets=("mdw",), experts__clean_loss="infonce"))
    printed, rows = capsys.readouterr().out, rows_of(tmp_path)
    assert "nan" not in printed and "up to none" not in printed
    for loss in ("gce 0.7", "infonce"):
        sentences = [line for line in printed.splitlines() if line.startswith(f"* dtcl ({loss}): ")]
        assert len(sentences) == 2 and "Proposition 3 is informative below eta" in sentences[0]
        assert "the excess measured was within Proposition 3" in sentences[1]
    assert {row["loss"] for row in rows if row["measure"] == "excess"} == {"gce 0.7"}


@pytest.mark.parametrize("changes, match", [
    ({"certify__rates": ("a",)}, "numbers"), ({"certify__rates": (1.0,)}, r"\[0, 1\)"),
    ({"noise__protocol": "natural"}, "several rates"), ({"certify__confidence": 1.0}, "confidence"),
    ({"run__presets": ("random",)}, "experts of unfiltered pairs to certify"),
])
def test_mistakes_are_explained(tmp_path, changes, match):
    with pytest.raises(UserError, match=match):
        certify_command(tiny(tmp_path, **changes))


@pytest.mark.parametrize("call, match", [
    (lambda: estimate.with_noise(np.random.default_rng(0), np.arange(4), 1.2), "between 0 and 1"),
    (lambda: estimate.matchings(np.random.default_rng(0), np.zeros(3, int), 1), "at least two"),
    (lambda: estimate.upper_bound([0.1], [0.2], 1, (0.5, 0.4), SPAN, 0.1), "between 0 and 1"),
])
def test_mistakes_of_callers_are_explained(call, match):
    with pytest.raises(UserError, match=match):
        call()
