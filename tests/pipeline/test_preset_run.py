"""Presets of a run: where their results lie, presets from outside the package, and mistakes that leave nothing behind."""

import json

import numpy as np
import pytest
from end_to_end.test_run import tiny

from mdw_jax.config import resolve
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.pipeline import run
from mdw_jax.pipeline.coreset import coreset_set
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset

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
    ({"distill__pairs": 3}, "distill.batch"),
    ({"run__presets": ("mdw",), "run__preset_overrides": ("mdw:distill.nothing=1",)}, "run.preset_overrides")])
def test_a_config_that_is_refused_leaves_no_directory_and_reads_no_data(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(run, "prepare", lambda config: pytest.fail("data were read"))
    for command in run.STAGES.values():
        with pytest.raises(UserError, match=message):
            command(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
