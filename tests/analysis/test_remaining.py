"""The time of a run that goes on is that of what is left."""

import pytest
from tiny_config import prepared_run, tiny_config

from mdw_jax.analysis.cost import announced_run
from mdw_jax.analysis.cost.counts import counts_of_pairs
from mdw_jax.analysis.cost.remaining import what_is_left
from mdw_jax.analysis.cost.work import run_work
from mdw_jax.io.checksums import write_listed_json
from mdw_jax.io.distilled_set import CARD
from mdw_jax.pipeline.closed_form import closed_form_folder
from mdw_jax.pipeline.evaluate import scores_place
from mdw_jax.pipeline.preset_run import open_preset
from mdw_jax.pipeline.sets import set_folder

TINY = {
    "run.presets": ("mdw",), "data.size": 16, "data.train": 60, "data.val": 20, "data.test": 20, "noise.rate": 0.4,
    "text.dim": 24, "model.mode": "projection", "model.patches": (8,), "model.widths": (16,), "model.dim": 8,
    "experts.epochs": 3, "experts.closed_form": True, "distill.pairs": 10, "distill.batch": 5, "distill.rank": 2,
    "distill.sets": 2, "experts.batch": 32, "noise.estimate": True,
}


def tiny(directory, **changes):
    return tiny_config(TINY, directory, **changes)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    directory, prepared = prepared_run(tiny, tmp_path_factory)
    return tiny(directory), prepared, open_preset(tiny(directory), prepared, "mdw")


def _write(path, value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_listed_json(path, value or {})


def test_each_stage_that_is_done_is_no_longer_counted(opened):
    config, prepared, run = opened
    counts = counts_of_pairs(prepared.pairs, 24)
    work = lambda: [(piece.stage, piece.operations) for piece in run_work(config, counts, what_is_left(prepared, [run]))]
    stages = lambda: [stage for stage, _ in work()]
    assert stages() == ["closed form", "experts", "experts", "distillation", "distillation", "students", "report"]
    assert len(run_work(config, counts)) == len(work()) + 1  # the features, which are there once presets are opened
    _write(closed_form_folder(run, prepared).path / "closed_form.json")
    assert "closed form" not in stages() and stages().count("experts") == 2
    _write(run.experts.path / "experts.json", {"rate": {"estimated": None}})
    assert stages().count("experts") == 1  # the noise rate
    _write(run.experts.path / "experts.json", {"rate": {"estimated": {"eta": 0.4}}})
    assert "experts" not in stages()
    before = dict(work())
    _write(set_folder(run, 0) / CARD)
    _write(scores_place(run, 0).path)
    after = dict(work())
    for stage in ("distillation", "students"):  # one set of two
        assert after[stage] == pytest.approx(before[stage] / 2)
    _write(set_folder(run, 1) / CARD)
    _write(scores_place(run, 1).path)
    assert stages() == ["report"]


def test_a_run_that_goes_on_says_the_time_of_what_is_left(tmp_path, capsys, monkeypatch):
    config = tiny(tmp_path, run__presets=("closed_form",))
    told = []

    def estimate(_, counts, left=None):
        told.append([piece.stage for piece in (run_work(config, counts, left) if left else run_work(config, counts))])
        return "about a minute"

    monkeypatch.setattr(announced_run, "estimate_in_words", estimate)
    announced_run.run_command(config)
    assert "time: about a minute\n" in capsys.readouterr().out
    announced_run.run_command(config)
    assert "time: about a minute; for what is left alone, of which parts that were begun" in capsys.readouterr().out
    assert told == [["features", "closed form", "report"], ["report"]]
