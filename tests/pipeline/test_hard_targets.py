"""The column that shows what soft targets carry, and the mark of a search that ended at its edge."""

import csv

import pytest

from mdw_jax.config import base
from mdw_jax.pipeline import evaluate
from mdw_jax.pipeline.run import STAGES

TINY = {
    "run.presets": ("random", "covmatch"), "data.size": 16, "data.train": 60, "data.val": 30, "data.test": 30,
    "noise.rate": 0.4, "text.dim": 24, "model.mode": "projection", "model.patches": (8,), "model.widths": (16,),
    "model.dim": 8, "experts.batch": 32, "distill.pairs": 8, "distill.batch": 4, "distill.steps": 2,
    "evaluate.students": 2, "evaluate.steps": 5, "evaluate.every": 5, "evaluate.batch": 8, "evaluate.lr_scales": (1.0,),
    "evaluate.hard_targets": True,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    c = base()
    c.update_from_flattened_dict(TINY | {"run.dir": str(folder)})
    trained, original = [], evaluate.evaluate

    def noted(model, data, *arguments, **options):
        trained.append(data)
        return original(model, data, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "evaluate", noted)
        STAGES["run"](c)
    return folder, trained


def test_students_of_hard_targets_are_a_column_of_scores_and_table(finished):
    folder, trained = finished
    with open(folder / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["preset"] for row in rows] == ["random", "random", "covmatch", "covmatch"]
    assert all(row["hard_r_mean"] == row["r_mean"] for row in rows[:2])  # nothing but hard targets in a coreset
    # Random pairs once, the distilled set with and without what it learned.
    assert [data.has_hard_targets for data in trained] == [True, False, True]
    assert trained[1].step_sizes and (trained[2].inputs == trained[1].inputs).all()
    table = (folder / "table.md").read_text()
    assert "r_mean, hard targets |" in table and "\nr_mean, hard targets: of students of the same images" in table


def test_the_edge_of_a_search_is_marked_and_explained(finished):
    folder, _ = finished
    with open(folder / "scores.csv", newline="") as file:
        assert {row["at_edge"] for row in csv.DictReader(file)} == {"steps"}
    table = (folder / "table.md").read_text()
    assert table.count("(edge) |") == 2 and "\n(edge): the best number of steps" in table
    assert "(edge): the best number of steps" in (folder / "index.html").read_text()
