"""The preset covmatch as a run: no experts, networks that are functions of the step, resuming, what it refuses."""

import chex
import jax
import numpy as np
import pytest
from tiny_config import tiny_config

from mdw_jax.config import base
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.presets import PresetSpec
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.pipeline.online_network import OnlineNetwork
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset
from mdw_jax.pipeline.run import STAGES
from mdw_jax.reporting.run_files import open_run

TINY = {
    "run.presets": ("covmatch",), "data.size": 16, "data.train": 60, "data.val": 30, "data.test": 30, "noise.rate": 0.4,
    "text.dim": 24, "model.mode": "projection", "model.patches": (8,), "model.widths": (16,), "model.dim": 8,
    "experts.batch": 32, "distill.pairs": 8, "distill.batch": 4, "distill.steps": 6, "distill.checkpoint_every": 4,
    "evaluate.students": 2, "evaluate.steps": 5, "evaluate.every": 5, "evaluate.batch": 8, "evaluate.lr_scales": (1.0,),
}


def tiny(folder, **changes):
    c = tiny_config(TINY, folder, **changes)
    c.run.preset_overrides = ("covmatch:distill.network_steps=3",)
    return c


def the_set(folder):
    [card] = folder.glob("distilled/covmatch-*/set_0/card.json")
    return load_distilled(card.parent)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    STAGES["run"](tiny(folder))
    return folder


def test_a_run_without_experts_ends_in_a_table(finished):
    assert not (finished / "experts").exists()
    preset = open_run(finished)["covmatch"]
    assert preset.label == "CovMatch" and len(preset.rows) == 2 and "CovMatch" in (finished / "table.md").read_text()
    assert [row["step"] for row in preset.metrics] == list(range(6))
    assert all(np.isfinite(row["loss"]) for row in preset.metrics)
    distilled, card = the_set(finished)
    assert distilled.correspondence == {} and card["config"]["distill"]["covariance_scale"] == 2.0


def test_a_run_that_was_interrupted_in_the_life_of_a_network_ends_the_same(finished, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    arguments = OnlineNetwork.arguments

    def stop_at_step_five(network, step):
        if step == 5:  # the checkpoint is of step 4, one after its network began
            raise Stop
        return arguments(network, step)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineNetwork, "arguments", stop_at_step_five)
        with pytest.raises(Stop):
            STAGES["run"](tiny(tmp_path))
    STAGES["run"](tiny(tmp_path))
    for of in (lambda it: it.images, lambda it: it.texts):
        np.testing.assert_array_equal(of(the_set(tmp_path)[0]), of(the_set(finished)[0]))


def test_networks_and_batches_are_functions_of_the_step(finished):
    config = tiny(finished)
    prepared = prepare(preset_config(config, "covmatch"))
    run = open_preset(config, prepared, "covmatch")
    one = OnlineNetwork(run, prepared, 0)
    in_order = [one.arguments(step) for step in range(5)]
    for step in (4, 1, 3):
        chex.assert_trees_all_equal(OnlineNetwork(run, prepared, 0).arguments(step), in_order[step])
        chex.assert_trees_all_equal(one.arguments(step), in_order[step])
    weights = [np.asarray(jax.tree.leaves(params)[0]) for params, _ in in_order]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(weights, weights[1:], strict=False))
    batch = in_order[0][1]
    assert len(batch.images) == 32 and len(np.unique(np.asarray(batch.texts), axis=0)) > 16
    assert not np.array_equal(batch.texts, OnlineNetwork(run, prepared, 1).arguments(0)[1].texts)


def test_a_batch_of_more_pairs_than_there_are_is_refused(finished):
    config = tiny(finished, experts__batch=1000)
    prepared = prepare(preset_config(config, "covmatch"))
    with pytest.raises(UserError, match="experts.batch is 1000 but there are only 300 training pairs"):
        OnlineNetwork(open_preset(config, prepared, "covmatch"), prepared, 0)


def test_the_constants_by_the_number_of_pairs():
    config = base()
    for pairs, scale, weight in ((100, 2.0, 0.1), (199, 1.0, 0.1), (200, 1.0, 0.1), (499, 1.0, 0.6), (500, 1.0, 0.6)):
        config.distill.pairs = pairs
        settings = preset_config(config, "covmatch").distill
        assert (settings.covariance_scale, settings.mean_weight) == (scale, weight)


@pytest.mark.parametrize("preset, changes, match", [
    ("mdw", {"mean_weight": 0.5}, "distill.mean_weight is set, but the objective 'trajectories' does not take it"),
    ("mdw", {"objective": "covariance"}, "trains no student, which distill.correspondence"),
    ("infonce", {"objective": "covariance"}, "'infonce' trains experts, and distill.objective covariance reads none"),
    ("covmatch", {"override": "objective=trajectories"}, "distill.covariance_scale is set"),
    ("covmatch", {"override": "init=division"}, "trains no experts, and distill.init division asks them"),
    ("covmatch", {"override": "ceo=true"}, "trains no student, which distill.ceo"),
    ("covmatch", {"override": "network_steps=0"}, "distill.network_steps must be at least 1"),
    ("covmatch", {"override": "mean_weight=-1"}, "distill.mean_weight must be at least 0"),
    ("covmatch", {"override": "covariance_scale=0"}, "distill.covariance_scale must exceed 0")])
def test_what_cannot_take_effect_is_refused(preset, changes, match):
    config = base()
    if "override" in changes:
        config.run.preset_overrides = (f"{preset}:distill.{changes['override']}",)
    else:
        config.distill.update(changes)
    with pytest.raises(UserError, match=match):
        preset_config(config, preset)


def test_only_covariance_does_without_experts():
    assert not PresetSpec({"distill.objective": "covariance"}, needs_experts=False).needs_experts
    with pytest.raises(ValueError, match="needs_experts is True, or, of a preset of kind 'coreset', of a closed form or"):
        PresetSpec({"distill.objective": "trajectories"}, needs_experts=False)
