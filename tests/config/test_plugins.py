"""What docs/extending.md says of adding one's own, done: the code is taken from there."""

import re
from pathlib import Path

import pytest

from mdw_jax.config import base
from mdw_jax.data.registry import load
from mdw_jax.errors import UserError
from mdw_jax.pipeline.run import STAGES

GUIDE = Path(__file__).parents[2] / "docs" / "extending.md"
SMALL = {
    "run.presets": ("random", "mdw"), "data.size": 16, "noise.rate": 0.2, "text.dim": 24, "model.mode": "projection",
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
