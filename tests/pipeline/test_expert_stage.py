"""What the stage of the experts stores, against what coresets, fairness and reports read."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.analysis.fairness.recall import preset_hits
from mdw_jax.config import base, resolve
from mdw_jax.config.sections import fields
from mdw_jax.io.checksums import write_listed_json
from mdw_jax.io.records import stored_array
from mdw_jax.io.trajectory import open_trajectory, read_snapshot
from mdw_jax.method.certificate import NO_CERTIFICATE, excess_risk_bound
from mdw_jax.method.expert_step import Recipe
from mdw_jax.method.retrieval import scores
from mdw_jax.pipeline.experts import _certificate_inputs, experts_stage
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset

TINY = {
    "run.presets": ("experts",), "data.size": 16, "data.train": 60, "data.val": 30, "data.test": 30, "noise.rate": 0.4,
    "text.dim": 24, "model.mode": "projection", "model.patches": (8,), "model.widths": (16,), "model.dim": 8,
    "experts.count": 1, "experts.epochs": 4, "experts.batch": 32, "experts.teacher_count": 1,
    "experts.teacher_epochs": 2, "experts.store_dtype": "bfloat16", "distill.pairs": 10, "distill.batch": 5,
    "distill.max_start_epoch": 1, "distill.match_epochs": 1,
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """The preset `experts` after its stage, its record, and what was prepared."""
    config = base()
    config.update_from_flattened_dict(TINY | {"run.dir": str(tmp_path_factory.mktemp("run") / "run")})
    prepared = prepare(resolve(config))
    run = open_preset(config, prepared, "experts")
    return run, experts_stage(run, prepared), prepared


def test_the_networks_that_are_scored_are_stored(stage):
    run, record, prepared = stage
    trajectories = [open_trajectory(run.experts.path / f"best_{n:02d}", key=run.experts.key) for n in range(2)]
    assert [trajectory.length for trajectory in trajectories] == [1, 1]
    networks = [jax.tree.map(jnp.asarray, read_snapshot(trajectory, 0)) for trajectory in trajectories]
    np.testing.assert_array_equal(scores(prepared.model, networks, prepared.test), record["test"])
    np.testing.assert_array_equal(scores(prepared.model, networks, prepared.val), record["val"])


def test_recalls_of_fairness_are_those_of_the_record(stage, caplog):
    run, record, prepared = stage
    recalls = [100 * hits.mean(0) for hits in preset_hits(run, prepared)]
    np.testing.assert_allclose(np.concatenate(recalls), np.mean(record["test"], axis=0)[:6], rtol=1e-5)
    assert not caplog.records  # no word of snapshots in place of the best networks


def test_the_log_the_metrics_and_the_history_of_pairs(stage):
    run, record, _ = stage
    log = [json.loads(line) for line in (run.experts.path / "log.jsonl").read_text().splitlines()]
    assert [row["generation"] for row in log] == ["teachers"] * 4 + ["experts"] * 8
    metrics = (run.experts.path.parents[1] / "metrics.csv").read_text()
    assert "\nteachers/0A," in metrics and "\nexperts/0B," in metrics and "scouts" not in metrics
    pairs = len(run.noise.image_of)
    correct = np.unpackbits(stored_array(run.experts.path / "correct.npy", (2, 4, None)), axis=-1, count=pairs)
    assert 0 < correct.mean() < 1
    best = [max(row["val_r_mean"] for row in log if (row["generation"], row["network"]) == ("experts", network))
            for network in "AB"]
    np.testing.assert_allclose([network[-1] for network in record["val"]], best, rtol=1e-6)
    assert not list(run.experts.path.glob("state-*"))


@pytest.mark.parametrize("estimated", [None, {"eta": 0.4}])
def test_what_a_kill_after_the_record_left_is_removed(stage, estimated):
    """The record is written, and then the states go: a kill in between, also of one of several processes."""
    run, record, prepared = stage
    path = run.experts.path
    left = ["teachers-0/peers-0-image.npy", "teachers-1/closed-form-text.npy", "state-experts.safetensors"]
    kept = ["teachers-0/notes.txt", "state-of-affairs.txt"]
    of_the_rate = ["state-rate-a.safetensors"]  # an estimation goes on from it
    for name in (*left, *kept, *of_the_rate):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).touch()
    write_listed_json(path / "experts.json", {**record, "rate": {**record["rate"], "estimated": estimated}})
    assert experts_stage(run, prepared)["rate"]["estimated"] == estimated
    assert [name for name in (*left, *kept, *of_the_rate) if (path / name).exists()] == kept + of_the_rate * (not estimated)
    assert not (path / "teachers-1").exists()
    for name in (*kept, *of_the_rate):
        (path / name).unlink(missing_ok=True)
    (path / "teachers-0").rmdir()
    write_listed_json(path / "experts.json", record)


def squared(logits):
    return jax.nn.softmax(-logits) ** 2


def test_a_loss_without_bounds_has_no_certificate(stage):
    run, record, _ = stage
    recipe = dataclasses.replace(fields(Recipe, run.config.experts), clean_loss=f"{__name__}:squared")
    tracks = _certificate_inputs(recipe, 0.4, 0.07)["tracks"]
    assert tracks["clean"]["certificate"] == NO_CERTIFICATE and "excess_risk_bound" not in tracks["clean"]
    bound = excess_risk_bound(recipe.tolerant_loss, recipe.batch, 0.4, recipe.tolerant_q, 0.07)
    assert tracks["tolerant"]["excess_risk_bound"] == bound and "certificate" not in tracks["tolerant"]
    assert record["certificate_inputs"]["tracks"]["clean"]["loss"] == run.config.experts.clean_loss
