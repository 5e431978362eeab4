"""Distilled images that are stored smaller than models see them, from the start to the report."""

import csv
import json

import jax
import numpy as np
import pytest
from tiny_config import tiny_config

from mdw_jax.config import resolve
from mdw_jax.data.resizing import shrunk
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import byte_budget, load_distilled
from mdw_jax.method.objective import method_of
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset
from mdw_jax.pipeline.run import STAGES
from mdw_jax.pipeline.sets import real_pairs, student_data
from mdw_jax.reporting.run_files import open_run

TINY = {
    "run.presets": ("random", "mdw"), "data.size": 16, "data.train": 60, "data.val": 30, "data.test": 30,
    "noise.rate": 0.4, "text.dim": 24, "model.mode": "projection", "model.patches": (8,), "model.widths": (16,),
    "model.dim": 8, "experts.count": 1, "experts.epochs": 2, "experts.recovery_start": 1, "experts.batch": 32,
    "distill.pairs": 8, "distill.steps": 2, "distill.inner_steps": 2, "distill.batch": 4, "distill.trajectories": 1,
    "distill.rank": 2, "distill.checkpoint_every": 2, "distill.image_size": 8, "evaluate.students": 1,
    "evaluate.steps": 5, "evaluate.every": 5, "evaluate.batch": 8, "evaluate.lr_scales": (1.0,), "evaluate.grow": 0,
}


def tiny(folder, **changes):
    return tiny_config(TINY, folder, **changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(resolve(tiny(tmp_path_factory.mktemp("data"))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    STAGES["run"](tiny(folder))
    return folder


def test_a_whole_run_stores_images_small_and_counts_their_bytes(finished):
    run = open_run(finished)
    for preset in ("random", "mdw"):
        distilled, card = load_distilled(run[preset].set_directories[0])
        assert distilled.images.shape == (8, 8, 8, 3) and distilled.seen_shape == (16, 16, 3)
        budget = byte_budget(distilled)
        assert card["byte_budget"] == budget == run[preset].byte_budget and budget["images"] == 8 * 8 * 8 * 3
        assert {row["bytes"] for row in run[preset].rows} == {budget["total"]}
    assert run["mdw"].image_history["images"].shape[1:] == (8, 16, 16, 3)  # as models see them
    assert run["mdw"].image_history["weights"].shape == (8, 16, 16)
    with open(finished / "scores.csv", newline="") as file:
        assert all(int(row["bytes"]) == run[row["preset"]].byte_budget["total"] for row in csv.DictReader(file))
    assert "8x8x3" in (finished / "index.html").read_text()


def test_the_start_is_real_images_shrunk_and_students_see_them_enlarged(finished, prepared):
    distilled, card = load_distilled(open_run(finished)["random"].set_directories[0])
    opened = open_preset(tiny(finished), prepared, "random")
    rows = np.arange(8)
    real, _ = real_pairs(prepared, opened.noise, rows)
    small, _ = real_pairs(prepared, opened.noise, rows, 8)
    np.testing.assert_array_equal(small, shrunk(real, 8))
    model = prepared.model
    wanted = model.inputs(jax.image.resize(distilled.images, (8, 16, 16, 3), "linear", antialias=False))
    np.testing.assert_allclose(student_data(model, distilled).inputs, wanted, rtol=1e-4, atol=1e-5)
    assert json.loads(json.dumps(card))["seen_size"] == 16


def test_zero_changes_nothing_and_another_size_is_another_set(tmp_path, prepared):
    keys = {size: open_preset(tiny(tmp_path, distill__image_size=size), prepared, "random").sets.key for size in (0, 4, 8)}
    assert len(set(keys.values())) == 3
    assert method_of(tiny(tmp_path, distill__image_size=0)).seen_size == 0
    assert method_of(tiny(tmp_path)).seen_size == 16


@pytest.mark.parametrize(("changes", "message"), [
    ({"distill__image_size": 17}, r"distill.image_size \(17\) exceeds data.size \(16\)"),
    ({"distill__image_size": -1}, "distill.image_size must be at least 0"),
    ({"data__name": "tones"}, "distill.image_size is of square images, and data.name=tones gives log-mels")])
def test_sizes_that_cannot_be_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        resolve(tiny(tmp_path, **changes))


def test_images_that_are_not_of_the_configured_size_are_refused(tmp_path, prepared):
    with pytest.raises(UserError, match=r"square images of data.size \(12\), and those .* \(16, 16, 3\)"):
        open_preset(tiny(tmp_path, data__size=12), prepared, "random")
