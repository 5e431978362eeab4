"""What students train and see when their tower is not the distilled one."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import jit, read
from goldens import OURS
from safetensors.numpy import save_file

from mdw_jax.config import base, resolve
from mdw_jax.config.sections import fields
from mdw_jax.data import stored_rows
from mdw_jax.data.stored_rows import stays_on_host
from mdw_jax.errors import UserError
from mdw_jax.io import row_cache
from mdw_jax.method.expert_step import Recipe
from mdw_jax.method.experts import train_experts
from mdw_jax.method.retrieval import scores
from mdw_jax.method.students import Protocol, StudentData, evaluate
from mdw_jax.models.embedding import to_float
from mdw_jax.models.image.pretrained import pretrained
from mdw_jax.pipeline.prepared import prepare, student_model
from mdw_jax.pipeline.preset_run import open_preset

TINY = {
    "data.size": 16, "data.train": 40, "data.val": 20, "data.test": 24, "text.dim": 24,
    "model.patches": (8,), "model.widths": (16,), "model.dim": 12,
}
VIT = {"model.vit_patch": 8, "model.vit_width": 20, "model.vit_depth": 1, "model.vit_heads": 2}


def config_of(folder, **changes):
    c = base()
    tower = changes.get("model__tower") or "convnet"
    own = {key: value for key, value in TINY.items() if tower == "convnet" or key not in ("model.patches", "model.widths")}
    c.update_from_flattened_dict(own | {"run.dir": str(folder)})
    if "vit" in (tower, changes.get("evaluate__tower")):  # others do not take its settings
        c.update_from_flattened_dict(VIT)
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return resolve(c)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def prepared(folder):
    return prepare(config_of(folder))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A MobileNet of one layer."""
    path = tmp_path_factory.mktemp("weights") / "tiny.q8.npz"
    ops = [{"op": "CONV_2D", "in": [0], "out": 1, "stride": 4, "pad": "SAME", "act": 3, "w": "conv00"},
           {"op": "AVERAGE_POOL_2D", "in": [1], "out": 2}]
    np.savez(path, ops_json=json.dumps({"input_tensor": 0, "ops": ops}), **{
        "conv00/kernel_q": np.random.default_rng(0).integers(0, 256, (3, 3, 3, 8)).astype(np.uint8),
        "conv00/scale": np.array([0.01], np.float32), "conv00/zero": np.array([128], np.int32),
        "conv00/bias": np.ones(8, np.float32)})
    return str(path)


def image_caches(folder):
    return set((folder / "cache").glob("images-*.npy"))


def test_students_have_the_distilled_tower_unless_told_otherwise(folder, prepared):
    model, val, test = student_model(config_of(folder), prepared)
    assert model is prepared.model and val is prepared.val and test is prepared.test


@pytest.mark.parametrize("tower, width", [("vit", 20), ("convnet", 16)])
def test_a_tower_in_full_mode_sees_pixels_and_learns(folder, prepared, tower, width):
    model, val, test = student_model(config_of(folder, evaluate__tower=tower, evaluate__mode="full"), prepared)
    assert model is not prepared.model and not image_caches(folder)
    for seen, split, own in ((val, prepared.pairs.val, prepared.val), (test, prepared.pairs.test, prepared.test)):
        np.testing.assert_array_equal(seen.images, split.images)
        assert seen.texts is own.texts and seen.image_of is own.image_of
    params = model.init(jax.random.key(0))
    assert model.embed_image(params["image"], to_float(val.images)).shape == (20, width)
    # A distilled set is pixels and text features: any model can be taught from it.
    images = model.inputs(to_float(prepared.train_images[:12]))
    lesson = StudentData(images, jnp.asarray(prepared.texts.train[:12]), {}, {"image": 0.05, "text": 0.05}, "nce", 1.0)
    outcome = evaluate(model, lesson, val, test, Protocol("val", 1, 2, 2, 12, 0.9, 5e-4, (1.0,), 0.1), seed=0)
    assert np.isfinite(outcome.scores).all() and outcome.scores.shape == (1, 7)


def test_a_frozen_tower_sees_features_kept_for_the_splits_asked_for(folder, prepared, weights):
    before = image_caches(folder)
    config = config_of(folder, evaluate__tower="mobilenet", evaluate__weights=weights)
    model, val, test = student_model(config, prepared)
    expected = model.inputs(to_float(jnp.asarray(prepared.pairs.test.images)))
    np.testing.assert_allclose(test.images, expected, rtol=1e-5, atol=1e-5)
    assert val.images.shape == (20, 8) and val.texts is prepared.val.texts
    assert np.isfinite(scores(model, [model.init(jax.random.key(0))], val)).all()

    paths = image_caches(folder) - before
    written = {path: path.stat().st_mtime_ns for path in paths}
    assert {path.stem.split("-")[2] for path in paths} == {"val", "test"}
    student_model(config, prepared)
    assert {path: path.stat().st_mtime_ns for path in paths} == written
    # Experts of the same tower want the training split as well: it is added.
    of_experts = prepare(config_of(folder, model__tower="mobilenet", model__mode="projection", model__weights=weights))
    train, = image_caches(folder) - before - paths
    assert train.stem.endswith("-train") and {path: path.stat().st_mtime_ns for path in paths} == written
    np.testing.assert_array_equal(of_experts.val.images, val.images)
    assert of_experts.train_images.shape == (40, 8)


def test_features_of_vits_that_differ_in_heads_only_are_kept_apart(folder, prepared):
    before = image_caches(folder)
    for heads in (2, 4):
        student_model(config_of(folder, evaluate__tower="vit", model__vit_heads=heads), prepared)
    assert len(image_caches(folder) - before) == 4  # val and test of each


def test_settings_of_the_vit_are_part_of_a_run_that_has_one_only(folder, prepared):
    assert prepare(config_of(folder, evaluate__tower="vit", model__vit_depth=2)).key == prepared.key
    vits = [prepare(config_of(folder, model__tower="vit", model__vit_heads=heads)) for heads in (2, 4)]
    assert len({vits[0].key, vits[1].key, prepared.key}) == 3
    params = vits[0].model.init(jax.random.key(0))
    assert vits[0].model.embed_image(params["image"], to_float(vits[0].val.images)).shape == (20, 20)


def test_user_errors(folder, prepared):
    with pytest.raises(UserError, match="at 'nowhere.npz'; set evaluate.weights"):
        student_model(config_of(folder, evaluate__tower="mobilenet", evaluate__weights="nowhere.npz"), prepared)
    with pytest.raises(UserError, match="at ''; set evaluate.weights"):
        student_model(config_of(folder, evaluate__tower="mobilenet"), prepared)
    with pytest.raises(UserError, match="images of 16 x 16 px"):
        student_model(config_of(folder, evaluate__tower="vit", model__vit_patch=5), prepared)
    with pytest.raises(UserError, match="'resnet18' needs weights; set evaluate.weights"):
        student_model(config_of(folder, evaluate__tower="resnet18"), prepared)


def test_a_tower_with_published_weights_is_read_from_a_file(folder, prepared, tmp_path):
    _, tensors = read(OURS / "resnet18_64x64.npz")
    save_file(tensors, tmp_path / "model.safetensors")
    model, val, _ = student_model(config_of(folder, evaluate__tower="resnet18", evaluate__weights=str(tmp_path)),
                                  prepared)
    tower = pretrained("resnet18", (16, 16, 3), tensors)
    expected = jit(tower.features)(tower.init(None), to_float(jnp.asarray(prepared.pairs.val.images[:4])))
    np.testing.assert_allclose(val.images[:4], expected, rtol=2e-3, atol=2e-3)
    assert model.mode == "projection" and set(model.init(jax.random.key(0))["image"]) == {"head"}


def on_host(monkeypatch):
    monkeypatch.setattr(row_cache, "IN_MEMORY", 0)
    monkeypatch.setattr(row_cache, "ON_DEVICES", 0)
    monkeypatch.setattr(stored_rows, "MAPPED", 0)


PROJECTION = {"model__mode": "projection", "data__train": 60, "noise__rate": 0.3, "distill__pairs": 8, "experts__count": 1,
              "experts__epochs": 2, "experts__recovery_start": 1, "experts__batch": 16}


def test_features_too_large_for_the_devices_stay_in_their_files(tmp_path, monkeypatch):
    config = config_of(tmp_path, **PROJECTION)
    for large in (False, True):
        prepared = prepare(config)
        train = prepared.train(open_preset(config, prepared, "mdw").noise)
        assert stays_on_host(train.images) == stays_on_host(train.texts) == large
        assert not stays_on_host(prepared.val.images) and not stays_on_host(prepared.texts.val)
        on_host(monkeypatch)


@pytest.mark.slow
def test_experts_learn_from_files_what_they_learn_from_memory(tmp_path, monkeypatch):
    config = config_of(tmp_path, **PROJECTION)

    def experts():
        prepared = prepare(config)
        run = open_preset(config, prepared, "mdw")
        return train_experts(prepared.model, prepared.train(run.noise), prepared.val, fields(Recipe, run.config.experts),
                             count=1, seed=0, keep=2, mismatched=run.noise.mismatched)

    in_memory = experts()
    on_host(monkeypatch)
    from_files = experts()
    chex.assert_trees_all_close(from_files.snapshots, in_memory.snapshots, atol=1e-3)
    np.testing.assert_array_equal(from_files.correct, in_memory.correct)
