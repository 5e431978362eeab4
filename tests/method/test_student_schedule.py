"""Published schedules of students, as their evaluation code counts passes."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.method import students
from mdw_jax.method.student_schedule import schedule_of
from mdw_jax.method.students import Protocol, StudentData, evaluate


def protocol(**changes):
    return Protocol(**{"select_on": "val", "students": 2, "steps": 60, "every": 20, "batch": 128, "momentum": 0.9,
                       "weight_decay": 5e-4, "lr_scales": (1.0,), "lr": 0.1, **changes})


def test_a_constant_schedule_is_that_of_the_config():
    schedule = schedule_of(protocol(), 100)
    assert (schedule.every, schedule.stops, schedule.searched) == (20, [20, 40, 60], True)
    sizes = {"image": 0.3, "text": 0.2}
    assert schedule.step_sizes(sizes, 0) == schedule.step_sizes(sizes, 10**6) == sizes


@pytest.mark.parametrize("pairs, steps", [(99, 1), (128, 1), (199, 2), (499, 4)])
def test_a_pass_has_as_many_steps_as_batches_hold_the_set(pairs, steps):
    schedule = schedule_of(protocol(schedule="lors"), pairs)
    assert schedule.every == steps and not schedule.searched
    assert schedule.stops == [steps * passes for passes in (1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101)]
    sizes = {"image": 0.3, "text": 0.2}
    # MultiStepLR's milestone of 100 // 2 + 1 epochs: epochs 0 to 50 are at the full rate, 51 to 100 at a tenth.
    assert schedule.step_sizes(sizes, 51 * steps - 1) == sizes
    assert schedule.step_sizes(sizes, 51 * steps) == pytest.approx({"image": 0.03, "text": 0.02})


def test_repblend_reads_six_times_and_vld_once_without_decay():
    assert schedule_of(protocol(schedule="repblend"), 99).stops == [1, 21, 41, 61, 81, 101]
    vld = schedule_of(protocol(schedule="vld", batch=64), 100)
    assert (vld.every, vld.stops) == (2, [102])
    assert vld.step_sizes({"image": 0.3, "text": 0.2}, 101) == {"image": 0.3, "text": 0.3}  # one rate for both


def test_test_chooses_on_a_published_schedule_alone():
    assert schedule_of(protocol(select_on="test"), 99, on_test=True) == schedule_of(protocol(schedule="lors"), 99)
    vld = protocol(select_on="test", schedule="vld")
    assert schedule_of(vld, 99, on_test=True) == schedule_of(vld, 99)
    assert schedule_of(protocol(select_on="test"), 99).searched  # candidates, which never read test


def test_unknown_schedule():
    with pytest.raises(UserError, match="no schedule 'cosine'; set evaluate.schedule to one of constant, lors"):
        schedule_of(protocol(schedule="cosine"), 99)


def test_students_are_trained_and_read_as_the_schedule_says(monkeypatch):
    """Every call of the trainer, and every reading, of one evaluation on val."""
    calls, read = [], []

    def make_trainer(model, protocol, loss, alpha):
        def advance(group, inputs, texts, p, sizes):
            calls.append((protocol.every, float(sizes["image"]), float(sizes["text"])))
            return [(done + protocol.every,) for done, in group]
        return lambda key: (0,), advance

    def scores(model, params, data):
        read.append(params[0])
        return np.full((len(params), 7), float(params[0] == 21))

    monkeypatch.setattr(students, "make_trainer", make_trainer)
    monkeypatch.setattr(students, "scores", scores)
    data = StudentData(jnp.zeros((99, 3)), jnp.zeros((99, 3)), {}, {"image": 0.5, "text": 0.25}, "nce", 1.0)
    result = evaluate(None, data, None, None, protocol(schedule="lors", patience=1, grow=3), seed=0)
    assert read == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101]  # no early stop
    assert (result.steps, result.lr_scale, result.at_edge) == (21, 1.0, ())
    assert calls == [(1, 0.5, 0.25)] * 51 + [(1, *map(float, np.float32([0.05, 0.025])))] * 50
