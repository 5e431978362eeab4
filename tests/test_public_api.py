"""`import mdw_jax` shows its public names, imports nothing slow, and opens results by one call each."""

import ast
import importlib
import inspect
import os
import pkgutil
import pydoc
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import mdw_jax
from mdw_jax.errors import UserError

SOURCE = Path(mdw_jax.__file__).read_text()


def test_every_public_name_is_there_and_stays_the_same_object():
    first = {name: getattr(mdw_jax, name) for name in mdw_jax.__all__}
    for module in pkgutil.walk_packages(mdw_jax.__path__, "mdw_jax."):
        if module.name.split(".")[-1] in mdw_jax.__all__:
            importlib.import_module(module.name)  # evaluate, scenes, ...: a module may have the name of a function
    for name, value in first.items():
        assert getattr(mdw_jax, name) is value is not None and not inspect.ismodule(value), name
    assert first["evaluate"] is importlib.import_module("mdw_jax.method.students").evaluate
    assert first["scenes"] is importlib.import_module("mdw_jax.data.synthetic.scenes").scenes
    assert not set(mdw_jax.__all__) & {module.name for module in pkgutil.iter_modules(mdw_jax.__path__)}


def test_dir_lists_the_public_names_and_the_version():
    names = dir(mdw_jax)
    assert set(mdw_jax.__all__) < set(names) and "__version__" in names
    assert not [name for name in names if name.startswith("_") and name != "__version__"]
    with pytest.raises(AttributeError, match="has no attribute 'evalute'"):
        mdw_jax.evalute  # noqa: B018


def test_the_version_is_that_of_the_installed_package(monkeypatch):
    assert mdw_jax.__version__ == metadata.version("mdw-jax")

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert mdw_jax._version() == "unknown"


def test_what_type_checkers_see_is_what_is_imported():
    [block] = [node for node in ast.parse(SOURCE).body
               if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.asname or alias.name: f"{node.module.removeprefix('mdw_jax.')}:{alias.name}"
            for node in block.body for alias in node.names}
    assert seen == mdw_jax._HOMES


def test_help_names_everything_in_its_group():
    text = pydoc.render_doc(mdw_jax, renderer=pydoc.plaintext)
    assert "open_run" in text and "torch_dataset" in text
    names = "data|models|experts|distillation|evaluation|files|settings|extending|utilities|errors"
    groups = re.findall(rf"^    (?:{names}) +(.*)$", mdw_jax.__doc__, re.MULTILINE)
    listed = [name for line in groups for name in line.split(", ")]
    assert len(groups) == 10 and len(listed) == len(set(listed)) and set(listed) >= set(mdw_jax.__all__)
    for name in mdw_jax.__all__:
        assert getattr(mdw_jax, name).__doc__, name


def test_nothing_slow_is_imported_before_it_is_needed():
    program = """
import sys
import mdw_jax
dir(mdw_jax), mdw_jax.__version__, mdw_jax.open_run, mdw_jax.load_distilled, mdw_jax.UserError, mdw_jax.base
slow = [name for name in ("jax", "matplotlib", "scipy", "flax", "torch", "orbax") if name in sys.modules]
from mdw_jax.reporting import result_table, run_list
print(slow, [name for name in ("jax", "matplotlib", "scipy") if name in sys.modules])
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                             env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}).stdout
    assert printed.split("\n")[0] == "[] []"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory of two runs, whose files are enough to tell what they are, and whose set and trajectory are real."""
    directory = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        run = directory / name
        (run / "cache").mkdir(parents=True)
        (run / "config.json").write_text("{}")
        for index in range(2):
            distilled = mdw_jax.DistilledSet(np.zeros((3, 4, 4, 3), np.float32), np.zeros((3, 8), np.float32),
                                             {"matrix": np.eye(3, dtype=np.float32)}, {"image": 0.1, "text": 0.1},
                                             1.0, "nce")
            mdw_jax.save_distilled(run / "distilled" / "mdw-1" / f"set_{index}", distilled, {})
        mdw_jax.save_trajectory(run / "experts" / "dtcl-2" / "net_00",
                                [{"image": {"w": np.zeros((2, 3), np.float32)}}] * 2, key="key")
    return directory


def refusal(function, path) -> str:
    with pytest.raises(UserError) as error:
        function(path)
    assert str(error.value).count("\n") == 0 and str(error.value).endswith(".")
    return str(error.value)


def test_a_set_opens_by_one_call_and_other_levels_name_it(runs):
    sets = [runs / "a" / "distilled" / "mdw-1" / f"set_{index}" for index in range(2)]
    distilled, card = mdw_jax.load_distilled(sets[0])
    assert repr(distilled) == ("DistilledSet(3 pairs: images 3x4x4x3, texts 3x8, correspondence.matrix 3x3; loss nce, "
                               "learned step sizes)")
    assert card["loss"] == "nce"
    assert refusal(mdw_jax.load_distilled, runs / "a") == (
        f"'{runs / 'a'}' is a run directory; its distilled sets are {sets[0]}, {sets[1]}: give one of them.")
    for above in (runs / "a" / "distilled", runs / "a" / "distilled" / "mdw-1"):
        assert refusal(mdw_jax.load_distilled, above) == (
            f"'{above}' is not a distilled set, but holds distilled sets: {sets[0]}, {sets[1]}; give one of them.")
    assert f"holds distilled sets: {sets[0]}, {sets[1]}, " in refusal(mdw_jax.load_distilled, runs)
    below = sets[0] / "card.json"
    assert refusal(mdw_jax.load_distilled, below) == f"'{below}' lies inside the distilled set '{sets[0]}'; give that."
    trajectory = runs / "a" / "experts" / "dtcl-2" / "net_00"
    assert refusal(mdw_jax.load_distilled, trajectory) == (
        f"'{trajectory}' is a trajectory, not a distilled set; check the path.")
    assert "there is no distilled set" in refusal(mdw_jax.load_distilled, runs / "c")


def test_a_trajectory_opens_by_one_call_and_other_levels_name_it(runs):
    path = runs / "a" / "experts" / "dtcl-2" / "net_00"
    trajectory = mdw_jax.open_trajectory(path)
    assert repr(trajectory) == f"Trajectory('{path}': 2 snapshots of 6 parameters in 1 arrays, float32)"
    assert mdw_jax.read_snapshot(trajectory, 1)["image"]["w"].shape == (2, 3)
    assert refusal(mdw_jax.open_trajectory, runs / "a") == (
        f"'{runs / 'a'}' is a run directory; its trajectories are {path}: give one of them.")
    for above in (runs / "a" / "experts", runs / "a" / "experts" / "dtcl-2"):
        assert f"holds trajectories: {path};" in refusal(mdw_jax.open_trajectory, above)
    for below in (path / "snapshots", path / "header" / "data.json"):
        assert refusal(mdw_jax.open_trajectory, below) == f"'{below}' lies inside the trajectory '{path}'; give that."
    assert "no finished trajectory" in refusal(mdw_jax.open_trajectory, runs / "c")


def test_a_run_opens_by_one_call_and_other_levels_name_it(runs):
    assert refusal(mdw_jax.open_run, runs) == (
        f"'{runs}' is not a run directory, but holds run directories: {runs / 'a'}, {runs / 'b'}; give one of them.")
    for below in (runs / "a" / "distilled", runs / "a" / "distilled" / "mdw-1" / "set_0", runs / "a" / "config.json"):
        assert refusal(mdw_jax.open_run, below) == f"'{below}' lies inside the run directory '{runs / 'a'}'; give that."
    assert "is not finished (environment.json is missing)" in refusal(mdw_jax.open_run, runs / "a")
    assert "there is no run directory" in refusal(mdw_jax.open_run, runs / "c")


def test_representations_show_shapes_and_no_arrays():
    pairs = mdw_jax.scenes(train=4, val=2, test=2, size=16, seed=0)
    assert repr(pairs) == "Pairs('scenes': train 4 images of 16x16x3 with 20 captions, val 2 with 10, test 2 with 10)"
    assert repr(pairs.val) == "Split(2 images of 16x16x3, 10 captions)"


def test_torch_is_needed_for_its_data_set_alone(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert callable(mdw_jax.torch_dataset)
    assert "needs torch: pip install" in refusal(mdw_jax.torch_dataset, runs / "a" / "distilled" / "mdw-1" / "set_0")
