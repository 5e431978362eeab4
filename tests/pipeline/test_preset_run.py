"""Presets of a run: where their results lie, presets from outside the package, and mistakes that leave nothing behind."""

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from end_to_end.test_run import NO_CONVNET, tiny

from mdw_jax.config import resolve
from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.pipeline import prepared as prepared_module
from mdw_jax.pipeline import run
from mdw_jax.pipeline.coreset import coreset_set
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset
from mdw_jax.pipeline.sweep import grid

MODULE = """
import numpy as np
from mdw_jax.config.presets import PresetSpec
from mdw_jax.method.coresets import one_caption_each

def first_images():
    return PresetSpec(label="the first images", kind="coreset", coreset="my_presets:choose_first", needs_experts=False)

def choose_first(inputs):
    return np.sort(one_caption_each(inputs.generator, inputs.image_of))[:inputs.count]

def same_pair():
    return PresetSpec(kind="coreset", coreset="my_presets:choose_same", needs_experts=False)

def choose_same(inputs):
    return np.zeros(inputs.count, int)

def asks_experts():
    return PresetSpec(kind="coreset", coreset="my_presets:choose_similar", needs_experts=False)

def choose_similar(inputs):
    return np.argsort(-inputs.similarity())[:inputs.count]

def small_steps():
    return PresetSpec({"distill.lr_images": 1e-3}, "small steps")
"""


@pytest.fixture
def my_presets(tmp_path, monkeypatch):
    (tmp_path / "my_presets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(resolve(tiny(tmp_path_factory.mktemp("data"))))


def test_a_coreset_from_outside_the_package_runs_like_the_others(tmp_path, my_presets):
    names = ("random", "my_presets:first_images")
    run.STAGES["run"](tiny(tmp_path / "run", run__presets=names))
    [directory] = (tmp_path / "run" / "distilled").glob("my_presets.first_images-*")
    distilled, card = load_distilled(directory / "set_0")
    assert card["preset"] == "my_presets:first_images" and distilled.images.shape == (8, 16, 16, 3)
    assert "the first images" in (tmp_path / "run" / "table.md").read_text()
    presets = json.loads((tmp_path / "run" / "report.json").read_text())["presets"]
    assert [(preset["name"], preset["kind"]) for preset in presets] == [(name, "coreset") for name in names]
    assert not (tmp_path / "run" / "experts").exists()


@pytest.mark.parametrize(("name", "message"), [
    ("same_pair", "chose no 8 different pairs"), ("asks_experts", "asks for experts; set needs_experts")])
def test_a_coreset_that_cannot_be_is_refused(tmp_path, my_presets, prepared, name, message):
    opened = open_preset(tiny(tmp_path), prepared, f"my_presets:{name}")
    with pytest.raises(UserError, match=message):
        coreset_set(opened, prepared, 0)


def test_a_preset_from_outside_the_package_has_its_overrides_and_its_directories(tmp_path, my_presets, prepared):
    opened, mdw = (open_preset(tiny(tmp_path), prepared, name) for name in ("my_presets:small_steps", "mdw"))
    assert opened.config.distill.lr_images == 1e-3 and opened.spec.label == "small steps"
    assert opened.experts == mdw.experts  # they are the same, and trained once
    assert opened.sets.path.name.startswith("my_presets.small_steps-") and opened.sets.key != mdw.sets.key


def test_sets_are_told_apart_by_what_makes_them_and_not_by_what_scores_them(tmp_path, prepared):
    def keys(name="mdw", **changes):
        opened = open_preset(tiny(tmp_path, **changes), prepared, name)
        return opened.experts.key, opened.sets.key

    assert keys(evaluate__students=5, distill__restarts=2) == keys()
    assert keys(distill__lr_images=1.0)[0] == keys()[0] and keys(distill__lr_images=1.0)[1] != keys()[1]
    assert np.all([a != b for a, b in zip(keys(experts__lr=1.0), keys(), strict=True)])
    assert keys("random", experts__lr=1.0)[1] == keys("random")[1]  # no experts, so the same pairs


@pytest.mark.parametrize(("changes", "message"), [
    ({"run__presets": ("random", "nothing")}, "there is no preset 'nothing'"),
    ({"distill__pairs": 0}, "distill.pairs must be at least 1"),
    ({"run__presets": ("mdw",), "run__preset_overrides": ("mdw:distill.nothing=1",)}, "run.preset_overrides")])
def test_a_config_that_is_refused_leaves_no_directory_and_reads_no_data(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(run, "prepare", lambda config: pytest.fail("data were read"))
    for command in run.STAGES.values():
        with pytest.raises(UserError, match=message):
            command(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


PARTS = """
import jax.numpy as jnp
import optax
from mdw_jax.config.presets import PresetSpec
from mdw_jax.method import losses

def expert(logits): return losses.mae(logits)
def loss(logits, target): return losses.mse(logits, target)
def darker(key, images): return images * 0.9
def optimizer(): return optax.trace(0.5)
def preset(): return PresetSpec({"distill.lr_images": 0.5})
def chosen(): return PresetSpec(kind="coreset", coreset="my_parts:choose", needs_experts=False)
def choose(inputs): return jnp.arange(inputs.count)
"""


def forget_module():
    """What a new process would import is what stands in the file."""
    sys.modules.pop("my_parts", None)
    importlib.invalidate_caches()


@pytest.mark.parametrize(("changes", "name", "experts", "sets"), [
    ({"experts__clean_loss": "my_parts:expert"}, "mdw", True, True),
    ({"experts__augment": "my_parts:darker"}, "mdw", True, True),
    ({"distill__loss": "my_parts:loss"}, "mdw", False, True),
    ({"distill__inner_optimizer": "my_parts:optimizer"}, "mdw", False, True),
    ({"distill__augment": "my_parts:darker"}, "mdw", False, True),
    ({}, "my_parts:chosen", False, True),
    ({}, "my_parts:preset", False, False),  # what it returns is the same
    ({}, "mdw", False, False)])
def test_an_edited_function_gives_new_directories(tmp_path, monkeypatch, prepared, changes, name, experts, sets):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    config = tiny(tmp_path / "run", **changes, run__presets=(name,))

    def keys(text):
        (tmp_path / "my_parts.py").write_text(text)
        forget_module()
        opened = open_preset(config, prepared, name)
        [cell] = grid(config, {"noise.rate": (0.4,)})
        return opened.experts.key, opened.sets.key, cell.key

    first, edited, undone = keys(PARTS), keys(PARTS + "# edited\n"), keys(PARTS)
    assert undone == first
    assert [a != b for a, b in zip(first, edited, strict=True)] == [experts, sets, sets]


def test_an_edited_preset_that_returns_other_values_gives_new_directories(tmp_path, monkeypatch, prepared):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    keys = []
    for value in ("0.5", "0.6"):
        (tmp_path / "my_parts.py").write_text(PARTS.replace("0.5})", f"{value}}})"))
        forget_module()
        keys.append(open_preset(tiny(tmp_path / "run"), prepared, "my_parts:preset").sets.key)
    assert keys[0] != keys[1]


@pytest.mark.slow
def test_an_edited_loss_is_trained_with_in_the_same_run_directory(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sets = []
    for factor in (1, 100):
        (tmp_path / "my_parts.py").write_text(PARTS.replace("return losses.mse", f"return {factor} * losses.mse"))
        forget_module()
        run.STAGES["distill"](tiny(tmp_path / "run", run__presets=("mdw",), distill__loss="my_parts:loss"))
        sets.append(set((tmp_path / "run" / "distilled").glob("mdw-*/set_0")))
    assert len(sets[0]) == 1 and len(sets[1]) == 2
    assert len(list((tmp_path / "run" / "experts").glob("*/experts.json"))) == 1  # these do not depend on it
    [images, others] = (load_distilled(directory, allow_loss="my_parts:loss")[0].images for directory in sets[1])
    assert not np.array_equal(images, others)


TOWER = """
import jax.numpy as jnp
from mdw_jax.models.image.tower import Tower

def tower(shape):
    return Tower("mean", lambda key: {"w": jnp.ones((3, 4))}, lambda params, images: images @ params["w"] * 1.0, width=4)
"""


@pytest.mark.parametrize("mode", ["full", "projection"])
def test_an_edited_tower_is_another_model_and_scores_anew(tmp_path, monkeypatch, mode):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    keys, features, scores = [], [], []
    for text in (TOWER, TOWER.replace("1.0", "jnp.arange(4.0)")):  # the weights are the same
        (tmp_path / "my_parts.py").write_text(text)
        forget_module()
        config = tiny(tmp_path / "run", model__tower="my_parts:tower", model__mode=mode, run__presets=("random",),
                      **NO_CONVNET)
        own = prepare(resolve(config))
        keys.append(own.key)
        features.append(np.asarray(own.train_images))
        run.STAGES["run"](tiny(tmp_path / "students", evaluate__tower="my_parts:tower", evaluate__mode=mode,
                               run__presets=("random",)))
        scores.append(len(list((tmp_path / "students").rglob("scores-*.json"))))
    assert keys[0] != keys[1] and scores == [1, 2]
    assert np.array_equal(*features) == (mode == "full")
    assert len(list((tmp_path / "students" / "distilled").glob("random-*/set_0"))) == 1


def test_an_edited_reader_counts_only_where_its_images_are_decoded_later(tmp_path, monkeypatch, prepared):
    monkeypatch.setattr(prepared_module, "plugin_sources", lambda config, section: (section,))
    config, pairs = tiny(tmp_path), prepared.pairs
    assert prepared_module._reader_sources(config, pairs) == ()  # all of it is in the fingerprint
    streamed = SimpleNamespace(train=pairs.train, test=pairs.test,
                               val=SimpleNamespace(images=LazyImages.__new__(LazyImages)))
    assert prepared_module._reader_sources(config, streamed) == ("data",)
