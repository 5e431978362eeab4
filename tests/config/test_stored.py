"""Configs that runs store: read back, and harmless where they are a stranger's."""

import json
import sys

import pytest

from mdw_jax.config import base, frozen_backbone, resolve
from mdw_jax.config.loading import load_config
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.sections import flat
from mdw_jax.config.shipped import shipped_configs, summary_of
from mdw_jax.config.stored import AS_GIVEN, CONFIG
from mdw_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A run folder of a config whose recipe fills in keys."""
    c = frozen_backbone()  # with a closed form
    c.experts.recipe, c.distill.pairs = "infonce", 7
    (tmp_path / CONFIG).write_text(json.dumps(resolve(c).to_dict()))
    (tmp_path / AS_GIVEN).write_text(json.dumps(c.to_dict()))
    return tmp_path


def test_a_run_folder_is_a_config(folder):
    config = load_config(str(folder), [("distill.pairs", "8")])
    assert config.run.dir == str(folder) and config.distill.pairs == 8 and config.is_locked
    assert type(config.model.widths) is tuple and {type(value) for value in flat(config).values()} == {
        type(value) for value in flat(base()).values()}


def test_presets_are_made_from_the_config_as_it_was_given(folder):
    """The stored recipe set closed_form to False; a preset of another recipe must not inherit that."""
    assert json.loads((folder / CONFIG).read_text())["experts"]["closed_form"] is False
    assert preset_config(load_config(str(folder), [("experts.recipe", "dtcl")]), "mdw").experts.closed_form is True


def test_a_json_file_is_a_config(folder):
    assert load_config(str(folder / CONFIG)).run.dir == base().run.dir  # a config, not the run


def test_a_setting_that_an_older_file_lacks_has_its_default(folder):
    stored = json.loads((folder / AS_GIVEN).read_text())
    del stored["data"]["fit"]
    (folder / AS_GIVEN).write_text(json.dumps(stored))
    assert load_config(str(folder)).data.fit == base().data.fit


@pytest.mark.parametrize(("change", "says"), [
    ({"data": {"nmae": "x"}}, "sets config.data.nmae, which this version does not have"),
    ({"distill": {"pairs": "many"}}, "config.distill.pairs must be a whole number, not 'many'"),
    ({"experts": {"lr": 10**400}}, "config.experts.lr must be a number, not 1000"),
    ({"distill": 3}, "sets config.distill, which this version does not have"),
    ([], "cannot be read ("),
])
def test_what_is_no_config_is_refused(folder, change, says):
    (folder / AS_GIVEN).write_text(json.dumps(change))
    with pytest.raises(UserError) as error:
        load_config(str(folder))
    assert says in str(error.value)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(("key", "value"), [
    ("data.name", "stranger:read"), ("distill.loss", "stranger:loss"), ("run.presets", ["mdw", "stranger:preset"]),
    ("watch.writers", ["stranger:writer"]), ("run.preset_overrides", ["mdw:distill.loss=stranger:loss"]),
    ("run.preset_overrides", ["stranger:preset:distill.steps=3"])])
def test_nothing_that_a_run_names_is_imported(folder, tmp_path, monkeypatch, key, value):
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    stored = json.loads((folder / AS_GIVEN).read_text())
    section, _, name = key.partition(".")
    stored[section][name] = value
    (folder / AS_GIVEN).write_text(json.dumps(stored))
    with pytest.raises(UserError, match=f"for config.{key}, which is not part of mdw-jax"):
        load_config(str(folder))
    assert "stranger" not in sys.modules
    text = ",".join(value) if isinstance(value, list) else value
    assert flat(load_config(str(folder), [(key, text)]))[key] == (tuple(value) if isinstance(value, list) else value)


def test_configs_travel_with_the_package():
    names = shipped_configs()
    assert {"quickstart", "flickr8k", "flickr30k", "coco", "cc3m"} <= set(names)
    for name, path in names.items():
        assert load_config(name).run.dir and summary_of(path).endswith(".")


def test_a_folder_called_like_a_config_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert load_config("quickstart").run.dir == "runs/quickstart"
