"""The stage of the closed form: what it keeps, when it solves again, its row, and full mode."""

import csv
import json

import numpy as np
import pytest
from tiny_config import prepared_run, tiny_config

from mdw_jax.analysis.fairness.recall import preset_hits
from mdw_jax.config import resolve
from mdw_jax.config.presets import PresetSpec
from mdw_jax.errors import UserError
from mdw_jax.io.scores import METRICS
from mdw_jax.method import closed_form as method
from mdw_jax.pipeline import closed_form as stage
from mdw_jax.pipeline import run as commands
from mdw_jax.pipeline.experts import experts_stage, kept_pairs
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset

TINY = {
    "run.presets": ("closed_form", "closed_form_full"), "data.size": 16, "data.train": 120, "data.val": 40,
    "data.test": 40, "noise.rate": 0.4, "text.dim": 24, "model.mode": "projection", "model.patches": (8,),
    "model.widths": (16,), "model.dim": 8, "experts.epochs": 3, "distill.pairs": 10, "distill.batch": 5,
    "distill.rank": 2, "experts.batch": 32,
}


def tiny(directory, **changes):
    return tiny_config(TINY, directory, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_run(tiny, tmp_path_factory)


def test_a_run_scores_both_presets_in_one_row_each(tmp_path):
    commands.run_command(tiny(tmp_path))
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["preset"] for row in rows] == ["closed_form", "closed_form_full"]
    records = [json.loads(path.read_text()) for path in tmp_path.glob("closed_form/*/closed_form.json")]
    assert {tuple(f"{float(row[name]):.4f}" for name in METRICS) for row in rows} == {
        tuple(f"{value:.4f}" for value in record["test"]) for record in records}
    table = (tmp_path / "table.md").read_text()
    assert "| closed form, before noise was drawn |" in table
    assert "Before noise was drawn: on the same training pairs, without the mismatches that this run made" in table
    assert not (tmp_path / "experts").exists()


def test_the_stage_keeps_what_fit_returns_and_solves_once(data, monkeypatch):
    directory, prepared = data
    run = open_preset(tiny(directory), prepared, "closed_form")
    texts, val = np.asarray(prepared.texts.train), prepared.val
    fitted = method.fit(np.asarray(prepared.train_images), texts, run.noise.image_of, np.asarray(val.images),
                        np.asarray(prepared.texts.val), np.asarray(val.image_of))
    rows = np.arange(len(texts))
    stored = stage.load_closed_form(run, prepared, rows)
    for name, array in stored.form._asdict().items():
        np.testing.assert_array_equal(array, getattr(fitted.form, name))
    np.testing.assert_array_equal(stored.clean_probability, fitted.clean_probability)
    assert stored.record["val"][-1] == pytest.approx(fitted.val_r_mean) and stored.tau == stored.record["tau"] > 0
    assert len(stored.record["tried"]) == len(fitted.table)
    assert set(stored.record["division"]) == {"precision", "recall", "share_clean"}
    monkeypatch.setattr(method, "fit", None)
    assert stage.closed_form_stage(run, prepared, rows) == stored.record


def test_noise_and_filter_change_the_key_and_experts_do_not(data):
    directory, prepared = data
    folder = lambda name, **changes: stage.closed_form_folder(
        open_preset(tiny(directory, **changes), prepared, name), prepared).path
    assert folder("closed_form") == folder("mdw", experts__lr=0.2, distill__steps=7)
    others = [folder("closed_form_full"), folder("closed_form", noise__seed=1),
              folder("closed_form", filter__score="closed_form")]
    assert len({folder("closed_form"), *others}) == 4


def test_pairs_that_a_filter_drops_are_not_seen(data):
    directory, prepared = data
    run = open_preset(tiny(directory, filter__score="closed_form", filter__drop=0.5), prepared, "closed_form")
    kept = kept_pairs(run, prepared)
    stored = stage.load_closed_form(run, prepared, kept)
    dropped = np.setdiff1d(np.arange(len(run.noise.image_of)), kept)
    assert len(dropped) > 0 and (stored.clean_probability[dropped] == 0).all()
    texts, val = np.asarray(prepared.texts.train), prepared.val
    fitted = method.fit(np.asarray(prepared.train_images), texts[kept], run.noise.image_of[kept], np.asarray(val.images),
                        np.asarray(prepared.texts.val), np.asarray(val.image_of))
    np.testing.assert_array_equal(stored.form.image_map, fitted.form.image_map)
    np.testing.assert_array_equal(stored.clean_probability[kept], fitted.clean_probability)


def test_a_damaged_form_is_an_error_that_says_what_to_delete(data):
    directory, prepared = data
    run = open_preset(tiny(directory, noise__seed=2), prepared, "closed_form")
    rows = np.arange(len(run.noise.image_of))
    stage.closed_form_stage(run, prepared, rows)
    path = stage.closed_form_folder(run, prepared).path / "form.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="delete the directory"):
        stage.load_closed_form(run, prepared, rows)


def test_fairness_counts_the_hits_of_the_closed_form(data):
    directory, prepared = data
    run = open_preset(tiny(directory), prepared, "closed_form")
    captions, images = preset_hits(run, prepared)
    expected = stage.closed_form_stage(run, prepared, kept_pairs(run, prepared))["test"]
    np.testing.assert_allclose(100 * np.concatenate([captions.mean(0), images.mean(0)]), expected[:6], rtol=1e-5)


def test_experts_that_end_below_it_are_said(data, capsys):
    directory, prepared = data
    run = open_preset(tiny(directory, experts__closed_form=True, experts__lr=1e-7), prepared, "experts")
    record = experts_stage(run, prepared)
    form = stage.closed_form_stage(run, prepared, kept_pairs(run, prepared))["val"][-1]
    reached = np.mean(record["val"], 0)[-1]
    assert (f"experts: the experts ended below the closed form, with {reached:.1f} % r_mean on val against {form:.1f}: "
            in capsys.readouterr().out)


def test_full_mode_takes_the_backbone_with_its_first_weights(tmp_path):
    config = tiny(tmp_path, model__mode="full")
    prepared = prepare(resolve(config))
    features = stage.frozen_features(prepared)
    assert [part.shape for part in features] == [(120, 16), (40, 16), (40, 16)]
    run = open_preset(config, prepared, "closed_form")
    record = stage.closed_form_stage(run, prepared, kept_pairs(run, prepared))
    assert 0 <= record["test"][-1] <= 100


@pytest.mark.parametrize(("fields", "match"), [
    ({"closed_form": True}, "closed_form is False"),
    ({"closed_form": 1, "kind": "reference"}, "closed_form is False"),
    ({"closed_form": True, "kind": "reference"}, "a closed form has no experts")])
def test_a_closed_form_is_a_reference_without_experts(fields, match):
    with pytest.raises(ValueError, match=match):
        PresetSpec(**fields)
