"""Distillation that diverges: it names the first tensor that is not finite, keeps the last good state, and restarts."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_distill import METHOD, MODELS, ONES, ends, start

from mdw_jax.config import base, resolve
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.method import distill
from mdw_jax.method.distill import finite_checks, make_outer_step
from mdw_jax.method.objective import objective, overshooting
from mdw_jax.pipeline import distill_loop
from mdw_jax.pipeline.distill import distill_stage
from mdw_jax.pipeline.experts import experts_stage
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset
from mdw_jax.pipeline.sets import set_folder
from mdw_jax.runtime import preemption

TINY = {
    "run.presets": ("mdw",), "data.size": 16, "data.train": 60, "data.val": 30, "data.test": 30, "noise.rate": 0.4,
    "text.dim": 24, "model.mode": "projection", "model.patches": (8,), "model.widths": (16,), "model.dim": 8,
    "experts.count": 1, "experts.epochs": 2, "experts.recovery_start": 1, "experts.batch": 32,
    "distill.pairs": 8, "distill.steps": 6, "distill.inner_steps": 2, "distill.batch": 4, "distill.trajectories": 1,
    "distill.rank": 2, "distill.max_start_epoch": 1, "distill.checkpoint_every": 2, "distill.ceo": False,
    "evaluate.students": 2, "evaluate.steps": 5, "evaluate.every": 5, "evaluate.batch": 8,
    "evaluate.lr_scales": (1.0,),
}


def nan_at(tree, *path):
    """`tree` with one NaN in the leaf at `path`."""
    if not path:
        return tree.at[(0,) * tree.ndim].set(jnp.nan)
    return {**tree, path[0]: nan_at(tree[path[0]], *path[1:])}


def first_nonfinite(method=METHOD, learned=lambda tree: tree, starts=lambda tree: tree, targets=lambda tree: tree,
               step=None):
    """What one outer step names as the first value that is not finite (None: all are); such a step changes nothing."""
    begin, target = ends(MODELS["projection"])
    state = start(method)
    state = state._replace(learned=learned(state.learned))
    before = jax.tree.map(np.array, state)
    step = step or make_outer_step(MODELS["projection"], method)
    after, measured = step(state, starts(begin), targets(target), ONES, jax.random.key(4))
    place = int(measured["first_nonfinite"])
    if place < 0:
        assert int(after.step) == 1
        return None
    chex.assert_trees_all_equal(before, jax.tree.map(np.array, after))
    return finite_checks(after.learned, method.inner_steps)[place]


def test_the_first_value_that_is_not_finite_is_named_and_changes_nothing():
    step = make_outer_step(MODELS["projection"], METHOD)
    assert first_nonfinite(step=step) is None
    for path in (("texts",), ("images",), ("correspondence", "left"), ("log_inner_lr", "text")):
        name = ".".join(path)
        assert first_nonfinite(step=step, learned=lambda tree, path=path: nan_at(tree, *path)) == f"{name}, before the step"
    assert first_nonfinite(step=step, starts=lambda tree: jax.tree.map(lambda x: x * jnp.nan, tree)
                      ) == "a student's loss at inner step 0"
    assert first_nonfinite(step=step, targets=lambda tree: jax.tree.map(lambda x: x * jnp.nan, tree)) == "the matching loss"


def test_a_gradient_and_an_update_that_are_not_finite_are_named(monkeypatch):
    absurd = dataclasses.replace(METHOD, lr_inner_lr=1e39)  # infinite in float32
    assert first_nonfinite(absurd) == "log_inner_lr.image, after the step"

    def spoiled(model, method, learned, *rest):
        loss, inner = objective(model, method, learned, *rest)
        texts = learned["texts"]
        return loss + jnp.sqrt(texts - jax.lax.stop_gradient(texts)).sum(), inner  # 0, with an infinite slope

    monkeypatch.setattr(distill, "objective", spoiled)
    assert first_nonfinite() == "the gradient of texts"


def test_overshooting_is_told_under_sgd_alone():
    sgd = dataclasses.replace(METHOD, optimizer="sgd")
    assert overshooting(sgd, 4.0) is None and overshooting(sgd, 8.0) == 2.0
    merged = dataclasses.replace(sgd, loss_merge="merged_data")
    assert overshooting(merged, 2.0) is None and overshooting(merged, 4.0) == 2.0
    assert overshooting(dataclasses.replace(sgd, objective="covariance"), 8.0) is None
    assert overshooting(METHOD, 8.0) is None  # Adam


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run folder with its experts, the config that made it, and what was prepared."""
    config = base()
    config.update_from_flattened_dict(TINY | {"run.dir": str(tmp_path_factory.mktemp("run") / "run")})
    prepared = prepare(resolve(config))
    experts_stage(open_preset(config, prepared, "mdw"), prepared)
    return config, prepared


@pytest.fixture
def distilled(shared, tmp_path):
    """distilled(name, **settings) distils in a copy of the run folder, `name`; returns the set's folder."""

    def make(name="run", **settings):
        config, prepared = shared
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(config.run.dir, folder)
        config = config.copy_and_resolve_references()
        config.update_from_flattened_dict({f"distill.{key}": value for key, value in settings.items()}
                                          | {"run.dir": str(folder)})
        preset = open_preset(config, prepared, "mdw")
        make.folder = set_folder(preset, 0)
        distill_stage(preset, prepared)
        return make.folder

    return make


@pytest.fixture
def planted(monkeypatch):
    """planted(k): texts become NaN at outer step k, where their learning rate is at least `above`."""
    make = distill_loop.compiled_outer_step

    def plant(at, above=0.0):
        def made(model, method):
            step = make(model, method)

            def spoiled(state, *rest):
                if int(state.step) == at and method.lr_texts >= above:
                    state = state._replace(learned=nan_at(state.learned, "texts"))
                return step(state, *rest)

            spoiled.lower = step.lower
            return spoiled
        monkeypatch.setattr(distill_loop, "compiled_outer_step", made)

    return plant


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("card.json", "SHA256SUMS")}


def test_a_set_that_diverges_stops_with_its_last_good_state_and_goes_on_from_it(distilled, planted):
    planted(3)
    message = r"outer step 3: the first value that was not finite is texts, before the step .*distill.restarts=1 the same"
    with pytest.raises(UserError, match=message) as error:
        distilled()
    folder = distilled.folder
    assert str(folder) in str(error.value)
    assert {path.name for path in folder.iterdir()} == {
        "SHA256SUMS", "checkpoint.safetensors", "history.jsonl", "candidates.jsonl"}
    assert [row["step"] for row in rows(folder / "history.jsonl")] == [0, 1, 2, 3]
    checkpoint = load_file(folder / "checkpoint.safetensors")
    assert checkpoint[".distillation.step"] == 2
    assert all(np.isfinite(value).all() for value in checkpoint.values())
    planted(-1)
    same = distilled(restarts=1)  # allowed more, it is the same folder, and what was good is not done again
    assert same == folder and files(folder) == files(distilled("undisturbed"))


@pytest.mark.parametrize("at", [1, 3])  # before the first checkpoint, and after it
def test_a_set_that_diverges_can_end_with_its_best_candidate(distilled, planted, caplog, at):
    planted(at)
    folder = distilled(on_divergence="keep")
    assert f"set 0 diverged at outer step {at}: the first value that was not finite is texts" in caplog.text
    assert [row["step"] for row in rows(folder / "metrics.jsonl")] == list(range(at))
    tensors = load_file(folder / "distilled.safetensors")
    assert all(np.isfinite(value).all() for value in tensors.values())


def test_a_short_segment_is_warned_of_once(distilled, caplog):
    still = {f"lr_{name}": 0.0 for name in ("images", "texts", "correspondence", "inner_lr")}
    distilled(optimizer="sgd", inner_lr_image=4.0, inner_lr_text=4.0, **still)
    losses = [row["loss"] for row in rows(distilled.folder / "metrics.jsonl")]
    assert sum(loss > 4 for loss in losses) > 1
    assert caplog.text.count("the experts' segment is short for their steps") == 1
    assert f"set 0, outer step {next(n for n, loss in enumerate(losses) if loss > 4)}: students end " in caplog.text


@pytest.mark.slow
def test_before_the_first_checkpoint_the_start_is_kept(distilled, planted):
    planted(1)
    with pytest.raises(UserError, match="outer step 1"):
        distilled()
    planted(-1)
    assert files(distilled()) == files(distilled("undisturbed"))


def test_a_restart_takes_smaller_steps_and_survives_interruptions(distilled, planted, monkeypatch, caplog):
    rate = base().distill.lr_texts
    planted(5, above=rate / 2)  # gone with smaller steps
    whole = distilled(restarts=2)
    assert ("diverged at outer step 5: the first value that was not finite is texts, before the step; restart 1 of 2 "
            "goes back to step 4") in caplog.text
    metrics = rows(whole / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(6)) and [row.get("restart") for row in metrics] == [
        None, None, None, None, 1, None]
    assert np.isfinite(load_distilled(whole)[0].texts).all()
    calls = []

    def stop():
        calls.append(None)
        if len(calls) in (4, 8):  # in the middle of the way to the divergence, and right after the restart
            raise preemption.Interrupted(15)

    monkeypatch.setattr(preemption, "raise_if_interrupted", lambda **_: stop())
    attempts = 0
    while not attempts or not (distilled.folder / "card.json").exists():
        attempts += 1
        try:
            distilled("interrupted", restarts=2)
        except preemption.Interrupted:
            assert (distilled.folder / "checkpoint-good.safetensors").exists()
    assert attempts == 3 and files(distilled.folder) == files(whole)


@pytest.mark.slow
def test_restarts_that_do_not_help_come_to_an_end(distilled, planted):
    planted(3)
    with pytest.raises(UserError, match=r"outer step 3 after 1 restart: .*distill.restarts=2"):
        distilled(restarts=1)


@pytest.mark.slow
def test_an_absurd_learning_rate_is_brought_down(distilled):
    """Texts of 1e32 overflow in the next step; those that are left after the restart do not."""
    result, _ = load_distilled(distilled(lr_texts=1e32, restarts=1, restart_factor=1e-33))
    assert np.abs(result.texts).max() < 100 and max(result.step_sizes.values()) < 1
    assert [row.get("restart") for row in rows(distilled.folder / "metrics.jsonl")] == [1, *[None] * 5]
