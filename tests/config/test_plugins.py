"""What docs/extending.md says of adding one's own, done: the code is taken from there."""

import importlib
import logging
import re
import sys
from pathlib import Path

import pytest

from mdw_jax.config import base
from mdw_jax.config.plugin_values import plugin_sources, plugin_values
from mdw_jax.config.plugins import function_of, source_digest
from mdw_jax.data.registry import load
from mdw_jax.errors import UserError
from mdw_jax.pipeline.run import STAGES

GUIDE = Path(__file__).parents[2] / "docs" / "extending.md"
SMALL = {
    "run.presets": ("random", "mdw"), "data.size": 16, "noise.protocol": "image", "noise.rate": 0.2, "text.dim": 24,
    "model.mode": "projection",
    "experts.count": 1, "experts.epochs": 2, "experts.recovery_start": 1, "experts.batch": 32,
    "distill.pairs": 8, "distill.steps": 2, "distill.inner_steps": 2, "distill.batch": 4, "distill.trajectories": 1,
    "distill.rank": 2, "evaluate.students": 1, "evaluate.steps": 10, "evaluate.every": 10, "evaluate.lr_scales": (1.0,),
}


@pytest.fixture
def blocks(tmp_path, monkeypatch):
    """Every Python block of it that names its file on the first line, written there."""
    found = {}
    for code in re.findall(r"```python\n(# (?:\w+\.py)\n.*?)```", GUIDE.read_text(), re.DOTALL):
        name = code.split("\n")[0].removeprefix("# ")
        (tmp_path / name).write_text(code)
        found[name] = code
    monkeypatch.syspath_prepend(tmp_path)
    return found


@pytest.mark.slow
def test_a_data_set_and_a_tower_of_ones_own_in_thirty_lines_each(blocks, tmp_path):
    assert {"my_data.py", "my_tower.py"} <= set(blocks)
    assert all(len(code.strip().splitlines()) <= 30 for code in blocks.values())
    c = base()
    c.update_from_flattened_dict(SMALL | {"run.dir": str(tmp_path / "run"), "data.name": "my_data:squares",
                                          "model.tower": "my_tower:blocks"})
    STAGES["run"](c)
    assert "MDW" in (tmp_path / "run" / "table.md").read_text()


@pytest.mark.parametrize("name", ["nowhere_at_all:read", "json:nothing", "json:", ":load", "json:__name__"])
def test_what_cannot_be_imported_is_said(name):
    with pytest.raises(UserError, match="data.name names"):
        load(name)


def write_module(directory, name, text):
    """A module of that text, as a new process would import it."""
    sys.modules.pop(name, None)
    (directory / f"{name}.py").write_text(text)
    importlib.invalidate_caches()


def test_the_digest_of_a_function_follows_the_source_of_its_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it is told apart by seconds and size
    write_module(tmp_path, "my_part", "SCALE = 1\ndef f(x): return SCALE * x\n")
    first = source_digest("my_part:f")
    (tmp_path / "my_part.py").write_text("SCALE = 30\ndef f(x): return SCALE * x\n")
    assert source_digest("my_part:f") == first  # an edit while a run goes on does not count in this run
    write_module(tmp_path, "my_part", "SCALE = 2\ndef f(x): return SCALE * x\n")
    second = source_digest("my_part:f")
    assert second != first
    write_module(tmp_path, "my_list", "from my_part import f\n")
    listed = source_digest("my_list:f")
    write_module(tmp_path, "my_part", "SCALE = 1\ndef f(x): return SCALE * x\n")
    assert source_digest("my_part:f") == first
    write_module(tmp_path, "my_list", "from my_part import f\n")
    assert source_digest("my_list:f") != listed


def test_a_function_without_source_counts_by_its_name_and_is_reported_once(caplog):
    with caplog.at_level(logging.WARNING, "mdw_jax"):
        assert source_digest("math:sin") == source_digest("math:sin") != source_digest("math:cos")
    assert [record.getMessage().split(" cannot")[0] for record in caplog.records] == [
        "the source of 'math:sin'", "the source of 'math:cos'"]


def test_the_values_of_a_config_that_are_functions_from_outside():
    config = base()
    assert plugin_values(config) == {} and plugin_sources(config) == ()
    config.update_from_flattened_dict({"distill.loss": "math:sin", "watch.writers": ("wandb", "json:dumps"),
                                       "run.preset_overrides": ("mdw:distill.lr_images=1",)})
    assert plugin_values(config) == {"distill.loss": ("math:sin",), "watch.writers": ("json:dumps",)}
    assert plugin_sources(config, "distill", "experts") == (source_digest("math:sin"),)


def test_the_function_of_a_class():
    assert function_of("datetime:datetime.fromisoformat", "data.name")("2020-01-02").day == 2
    with pytest.raises(UserError, match="data.name names 'datetime:datetime.nothing'"):
        function_of("datetime:datetime.nothing", "data.name")
