import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.io.scores import METRICS
from mdw_jax.method import students as module
from mdw_jax.method.student_schedule import stops
from mdw_jax.method.students import Protocol, StudentData, evaluate
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.embedding import Inputs
from mdw_jax.models.image.tower import Tower
from mdw_jax.reporting.stats import summary

WIDTH, LATENT, COUNT = 16, 6, 60
MODEL = dual_encoder(Tower("stub", lambda key: {}, lambda params, x: x, WIDTH), {}, WIDTH, mode="projection", dim=8)
CHANCE = 100 * 16 / 3 / COUNT  # mean of 1, 5 and 10 out of COUNT


def planted():
    generator = np.random.default_rng(0)
    by_image, by_text = generator.normal(size=(2, LATENT, WIDTH))
    splits = []
    for _ in range(3):
        latent = generator.normal(size=(COUNT, LATENT))
        splits.append(Inputs(jnp.asarray(latent @ by_image, jnp.float32), jnp.asarray(latent @ by_text, jnp.float32),
                             jnp.arange(COUNT)))
    return splits


TRAIN, VAL, TEST = planted()
DATA = StudentData(TRAIN.images, TRAIN.texts, {}, {}, "nce", 1.0)


def protocol(kind="val", **changes):
    return Protocol(**{"select_on": kind, "students": 2, "steps": 60, "every": 20, "batch": 30, "momentum": 0.9,
                       "weight_decay": 1e-4, "lr_scales": (1e-6, 0.3, 1.0), "lr": 0.1, **changes})


@pytest.fixture
def reads(monkeypatch):
    """(split, scores) of each student whenever `scores` is called."""
    seen, scores = [], module.scores

    def counted(model, networks, data):
        result = scores(model, networks, data)
        seen.extend(("test" if data is TEST else "val", one) for one in result)
        return result

    monkeypatch.setattr(module, "scores", counted)
    return seen


def test_students_chosen_on_val_learn_and_test_is_read_once_at_the_end(reads):
    result = evaluate(MODEL, DATA, VAL, TEST, protocol(lr_scales=(1e-6, 0.3)), seed=1)
    assert result.scores.shape == result.val.shape == (2, 7) and result.select_on == "val"
    assert result.scores[:, -1].min() > 4 * CHANCE
    # 2 scales, the larger one first, 3 stops, 2 students on val; then each student once on test.
    assert [split for split, _ in reads] == ["val"] * 12 + ["test"] * 2
    on_val = np.stack([row for split, row in reads if split == "val"]).reshape(2, 3, 2, 7)
    means = on_val[..., -1].mean(-1)
    scale, stop = np.unravel_index(means.argmax(), means.shape)
    assert (result.lr_scale, result.steps) == ((0.3, 1e-6)[scale], (20, 40, 60)[stop])
    assert scale == 0  # a step size of nothing is not chosen
    np.testing.assert_array_equal(result.val, on_val[scale, stop])
    assert not np.array_equal(result.scores[0], result.scores[1])


def test_without_test_nothing_of_it_is_read(reads):
    result = evaluate(MODEL, DATA, VAL, None, protocol(), seed=1, students=1)
    assert {split for split, _ in reads} == {"val"} and result.scores.shape == (1, 7)
    np.testing.assert_array_equal(result.scores, result.val)


def test_choosing_on_test_is_optimistic_and_says_so(reads):
    result = evaluate(MODEL, DATA, VAL, TEST, protocol("test", lr_scales=(0.3,)), seed=1)
    assert result.select_on == "test" and result.lr_scale == 1.0
    on_test = np.stack([row for split, row in reads if split == "test"]).reshape(11, 2, 7)
    on_val = np.stack([row for split, row in reads if split == "val"]).reshape(11, 2, 7)
    best = on_test[..., -1].argmax(0)
    np.testing.assert_array_equal(result.scores, on_test[best, np.arange(2)])
    np.testing.assert_array_equal(result.val, on_val[best, np.arange(2)])
    chosen_on_val = evaluate(MODEL, DATA, VAL, TEST, protocol(lr_scales=(1.0,), schedule="lors"), seed=1)
    assert (result.scores[:, -1] >= chosen_on_val.scores[:, -1]).all()


def test_learned_step_sizes_are_used_instead_of_the_default():
    one = protocol(lr_scales=(1.0,), steps=20)
    learned = DATA._replace(step_sizes={"image": 0.2, "text": 0.2})
    as_default = evaluate(MODEL, DATA, VAL, None, protocol(lr_scales=(1.0,), steps=20, lr=0.2), seed=1)
    np.testing.assert_array_equal(evaluate(MODEL, learned, VAL, None, one, seed=1).val, as_default.val)


def test_trainer_is_plain_sgd_with_momentum():
    """Two steps on the full set, by hand."""
    from mdw_jax.method.losses import distillation_loss

    p = protocol(steps=2, every=2, batch=COUNT)
    start, advance = module.make_trainer(MODEL, p, "nce", 1.0)
    steps = {"image": jnp.float32(0.05), "text": jnp.float32(0.1)}
    student = start(jax.random.key(0))
    after = advance([student], TRAIN.images, TRAIN.texts, {}, steps)[0][0]
    params, velocity = student[0], jax.tree.map(jnp.zeros_like, student[0])
    for _ in range(2):
        loss = lambda w: distillation_loss("nce")(MODEL.logits(w, TRAIN.images, TRAIN.texts), jnp.eye(COUNT))
        grads = jax.grad(loss)(params)
        velocity = jax.tree.map(lambda v, g, w: 0.9 * v + g + 1e-4 * w, velocity, grads, params)
        params = {b: jax.tree.map(lambda w, v, b=b: w - steps[b] * v, params[b], velocity[b]) for b in params}
    chex.assert_trees_all_close(after, params, atol=1e-5)


@pytest.fixture
def scripted(monkeypatch):
    """Students whose r_mean on val is a function of scale and steps: (the script, [(scale, steps) evaluated])."""
    seen = []

    def use(script):
        def train(model, data, protocol, schedule, scale, *, seed, count):
            for stop in schedule.stops:
                seen.append((scale, stop))
                yield stop, [(scale, stop)] * count

        def scores(model, networks, split):
            return np.array([[0.0] * 6 + [script(*network)] for network in networks])

        monkeypatch.setattr(module, "trained", train)
        monkeypatch.setattr(module, "scores", scores)
        return seen

    return use


def chosen(select_on="val", **changes):
    searching = protocol(select_on, **{"steps": 2400, "patience": 4, "grow": 2, **changes})
    result = evaluate(MODEL, DATA, VAL, TEST, searching, seed=1)
    return result.lr_scale, result.steps, result.at_edge


def test_evaluations_are_ever_farther_apart_and_end_at_the_most_steps():
    assert stops(protocol(steps=60)) == [20, 40, 60]
    places = stops(protocol(steps=2400))
    assert places[:9] == [20, 40, 60, 80, 100, 120, 160, 200, 240] and places[-1] == 2400 and len(places) < 25
    assert all(stop % 20 == 0 for stop in places)
    assert max(b / a for a, b in zip(places[6:], places[7:], strict=False)) <= 1.25
    assert stops(protocol(steps=59))[-1] == 40


def test_students_stop_when_val_has_not_improved_for_so_many_evaluations(scripted):
    seen = scripted(lambda scale, stop: min(stop, 160))
    assert chosen(lr_scales=(1.0,)) == (1.0, 160, ())
    assert [stop for _, stop in seen] == stops(protocol(steps=2400))[:7 + 4]
    seen.clear()
    assert chosen(lr_scales=(1.0,), patience=0) == (1.0, 160, ())
    assert seen[-1] == (1.0, 2400)


def test_a_gain_of_less_than_a_hundredth_is_flat_but_counts(scripted):
    seen = scripted(lambda scale, stop: 10 + 1e-5 * stop)
    assert chosen(lr_scales=(1.0,)) == (1.0, 100, ()) and len(seen) == 5
    scripted(lambda scale, stop: 10 + 0.005 * stop)
    assert chosen(lr_scales=(1.0,), steps=200) == (1.0, 200, ("steps",))


def test_students_that_still_improve_do_all_steps_and_say_so(scripted):
    scripted(lambda scale, stop: stop)
    assert chosen(lr_scales=(1.0,), steps=400) == (1.0, 400, ("steps",))


def test_a_scale_that_is_behind_after_as_many_steps_as_the_best_is_given_up(scripted):
    seen = scripted(lambda scale, stop: {1.0: min(stop, 100), 0.3: stop / 30}[scale])
    assert chosen(lr_scales=(0.3, 1.0), grow=0) == (1.0, 100, ("lr_scale",))
    assert [stop for scale, stop in seen if scale == 0.3] == stops(protocol(steps=2400))[:5 + 4]
    scripted(lambda scale, stop: {1.0: min(stop, 100), 0.3: 0.9 * min(stop, 200)}[scale])
    assert chosen(lr_scales=(0.3, 1.0), grow=0) == (0.3, 200, ("lr_scale",))


@pytest.mark.parametrize("best, grid, expected, tried, edge", [
    (0.3, (0.1, 0.3, 1.0), 0.3, [0.3, 1.0, 0.1], ()),
    (2.9, (1.0, 0.1, 0.3), 3.33, [0.3, 1.0, 3.33, 11.1], ()),  # the grid grows; what lies downhill is not tried
    (99, (0.3, 1.0, 2.0), 8.0, [1.0, 2.0, 4.0, 8.0], ("lr_scale",)),
    (1e-9, (0.1, 0.3), 0.0111, [0.3, 0.9, 0.1, 0.0333, 0.0111], ("lr_scale",))])
def test_the_scale_is_climbed_to_and_the_grid_grows_at_its_ends(scripted, best, grid, expected, tried, edge):
    seen = scripted(lambda scale, stop: 100 - abs(np.log(scale / best)))
    assert chosen(lr_scales=grid) == (expected, 20, edge)
    assert list(dict.fromkeys(scale for scale, _ in seen)) == tried


def test_neither_a_single_scale_nor_one_chosen_on_test_grows(scripted):
    seen = scripted(lambda scale, stop: scale)
    assert chosen(lr_scales=(1.0,)) == (1.0, 20, ()) and {scale for scale, _ in seen} == {1.0}
    seen.clear()
    assert chosen(select_on="test") == (1.0, 2 * 101, ())
    assert seen == [(1.0, 2 * passes) for passes in range(1, 102, 10)]


def test_hard_targets_are_the_pairs_alone():
    soft = DATA._replace(correspondence={"matrix": jnp.eye(COUNT)}, step_sizes={"image": 1.0, "text": 1.0}, loss="kl")
    assert not soft.has_hard_targets and DATA.has_hard_targets
    assert soft.with_hard_targets() == DATA


def test_summary_by_hand():
    row = summary([[1.0] * 7, [3.0] * 7])
    assert set(row) == {f"{name}{part}" for name in METRICS for part in ("", "_std")}
    assert row["r_mean"] == 2 and row["r_mean_std"] == pytest.approx(2**0.5)
    assert summary([[5.0] * 7])["TR@5_std"] == 0
