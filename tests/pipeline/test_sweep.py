"""Sweeps at the smallest size: what is done, what is not done twice, and the CSV at the end."""

import csv
import json
from types import SimpleNamespace

import pytest
from end_to_end.test_run import TINY

from mdw_jax.config import base
from mdw_jax.config.presets import PRESETS
from mdw_jax.errors import UserError
from mdw_jax.io.scores import METRICS
from mdw_jax.pipeline import sweep as module
from mdw_jax.pipeline.sweep import grid, sweep_command
from mdw_jax.runtime.agreement import Disagreement

AXES = {"noise.rate": (0.2, 0.4), "preset": ("random", "infonce")}


def tiny(folder, **changes):
    c = base()
    c.update_from_flattened_dict(TINY | {"run.dir": str(folder), "distill.sets": 2}
                                 | {name.replace("__", "."): value for name, value in changes.items()})
    return c


def rows_of(folder):
    """The rows of sweep.csv, without how long they took."""
    with open(folder / "sweep.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture
def worked(monkeypatch):
    """Notes the (preset, true rate) of every cell that asks for its stages, and how often data are prepared."""
    noted = []
    stage, prepare = module.evaluate_stage, module.prepare
    monkeypatch.setattr(module, "evaluate_stage", lambda preset, prepared: noted.append(
        (preset.name, preset.config.noise.rate)) or stage(preset, prepared))
    monkeypatch.setattr(module, "prepare", lambda config: noted.append("prepare") or prepare(config))
    return noted


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep in one process, killed in the middle of its third cell and started again."""
    folder = tmp_path_factory.mktemp("sweep")
    stage, begun = module.evaluate_stage, []

    def killed(preset, prepared):
        begun.append(preset.name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return stage(preset, prepared)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "evaluate_stage", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep_command(tiny(folder), AXES)
    assert [(row["preset"], row["noise.rate"]) for row in rows_of(folder)] == [
        ("random", "0.2")] * 4 + [("infonce", "0.2")] * 4
    before = {path: path.stat().st_mtime_ns for path in folder.glob("sweep/*.json")}
    assert len(before) == 2
    sweep_command(tiny(folder), AXES)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in folder.glob("sweep/*.json")}.items()
    return folder


def test_the_grid_is_the_product_with_the_last_axis_fastest(tmp_path):
    cells = grid(tiny(tmp_path), {"noise.rate": (0.0, 0.2), "preset": ("random", "mdw"), "distill.pairs": (8, 9)})
    assert [str(cell) for cell in cells[:5]] == [
        "preset=random noise.rate=0 distill.pairs=8", "preset=random noise.rate=0 distill.pairs=9",
        "preset=mdw noise.rate=0 distill.pairs=8", "preset=mdw noise.rate=0 distill.pairs=9",
        "preset=random noise.rate=0.2 distill.pairs=8"]
    assert [cell.number for cell in cells] == list(range(1, 9)) and len({cell.key for cell in cells}) == 8
    assert (cells[7].resolved.noise.rate, cells[7].resolved.distill.pairs) == (0.2, 9)
    assert [cell.preset for cell in grid(tiny(tmp_path), {"noise.rate": (0.0,)})] == list(TINY["run.presets"])


def test_a_cell_is_known_by_what_it_does(tmp_path):
    def keys(config):
        return [cell.key for cell in grid(config, {"preset": tuple(PRESETS)})]

    features = {"model__mode": "projection", "model__dim": 8}  # repblend wants them
    config = tiny(tmp_path, **features)
    assert keys(config) == keys(tiny(tmp_path / "moved", run__presets=("mdw",), **features))
    assert not set(keys(config)) & set(keys(tiny(tmp_path, run__seed=1, **features)))
    full = grid(config, {"noise.rate": (0.0, 0.2), "preset": ("full",)})
    assert full[0].key == full[1].key and full[0].values != full[1].values


def test_a_reference_follows_an_axis(tmp_path):
    config = tiny(tmp_path)
    config.noise.seed = config.run.get_ref("seed")
    cells = grid(config.lock(), {"run.seed": (3, 4), "preset": ("mdw",)})
    assert [cell.resolved.noise.seed for cell in cells] == [3, 4]
    assert config.noise.seed == 0


def test_an_impossible_cell_stops_the_sweep_before_it_starts(tmp_path):
    with pytest.raises(UserError, match=r"cell 2 of 2 \(preset=random distill.pairs=0\) .*distill.pairs must be"):
        sweep_command(tiny(tmp_path / "run"), {"distill.pairs": (8, 0), "preset": ("random",)})
    assert not (tmp_path / "run").exists()


def test_a_killed_sweep_ends_with_one_row_a_student(finished):
    rows = rows_of(finished)
    assert [tuple(row[name] for name in ("preset", "noise.rate", "set", "student")) for row in rows] == [
        (preset, rate, index, student) for rate in ("0.2", "0.4") for preset in ("random", "infonce")
        for index in "01" for student in "01"]
    assert list(rows[0])[:5] == ["preset", "noise.rate", "noise.protocol", "true_rate", "distill.pairs"]
    assert {"lr_scale", "steps", "val_r_mean", *METRICS, "bytes", "commit", "run.seed"} <= set(rows[0])
    for row in rows:
        assert abs(float(row["true_rate"]) - float(row["noise.rate"])) < 0.1 and row["distill.pairs"] == "8"
        # pixels (8 bits) and features (half precision) of 8 pairs; nothing learned besides, or two step sizes
        assert int(row["bytes"]) == 8 * (16 * 16 * 3 + 24 * 2) + (8 if row["preset"] == "infonce" else 0)
    cards = {json.loads(path.read_text())["noise"]["rate"] for path in finished.glob("distilled/*/*/card.json")}
    assert {float(row["true_rate"]) for row in rows} == cards


def test_a_finished_sweep_loads_nothing(finished, worked, capsys):
    before = rows_of(finished)
    sweep_command(tiny(finished), AXES)
    assert not worked and rows_of(finished) == before
    assert capsys.readouterr().out.count("done before") == 4
    sweep_command(tiny(finished), AXES, dry_run=True)
    assert "[4/4] preset=infonce noise.rate=0.4: done\n4 of 4 cells are done" in capsys.readouterr().out


@pytest.mark.slow
def test_two_shards_make_what_one_process_makes(finished, tmp_path, worked, capsys):
    for shard in ((1, 2), (0, 2)):
        sweep_command(tiny(tmp_path), AXES, shard)
    # each shard: its own cells in order, prepared once, for the first of them
    assert worked == ["prepare", ("infonce", 0.2), ("infonce", 0.4), "prepare", ("random", 0.2), ("random", 0.4)]
    assert rows_of(tmp_path) == rows_of(finished)
    out = capsys.readouterr().out
    assert "[4/4] preset=infonce noise.rate=0.4: r_mean " in out and "(2 x 2), " in out
    assert "2 of 4 cells are done" in out and "4 of 4 cells are done" in out


def test_cells_that_the_preset_makes_equal_are_done_once(finished, worked):
    rates = {"noise.rate": (0.2, 0.4), "preset": ("full", "random")}
    sweep_command(tiny(finished), rates)
    assert worked == ["prepare", ("full", 0.0)]
    rows = [row for row in rows_of(finished) if row["preset"] == "full"]
    assert [(row["noise.rate"], row["true_rate"], row["student"]) for row in rows] == [
        (rate, "0.0", student) for rate in ("0.2", "0.4") for student in "01"]
    assert {(row["bytes"], row["lr_scale"], row["distill.pairs"]) for row in rows} == {("", "", "")}
    assert len(rows_of(finished)) == 2 * (2 + 4)  # of this grid: no infonce


def test_a_failed_cell_is_noted_passed_over_and_tried_again(tmp_path, worked, capsys):
    axes = {"distill.pairs": (9, 8), "preset": ("random",)}
    stage = module.evaluate_stage

    def diverging(preset, prepared):
        if preset.config.distill.pairs == 9:
            raise UserError("it diverged.")
        return stage(preset, prepared)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="^1 of 2 cells failed"):
        patch.setattr(module, "evaluate_stage", diverging)
        sweep_command(tiny(tmp_path), axes)
    assert "[1/2] preset=random distill.pairs=9: failed: it diverged.\n[2/2] " in capsys.readouterr().out
    note, = tmp_path.glob("sweep/*.failed.json")
    assert json.loads(note.read_text())["message"] == "it diverged."
    assert {row["distill.pairs"] for row in rows_of(tmp_path)} == {"8"}
    sweep_command(tiny(tmp_path), axes, dry_run=True)
    assert "pairs=9: failed before" in capsys.readouterr().out
    worked.clear()
    sweep_command(tiny(tmp_path), axes)
    assert worked == ["prepare", ("random", 0.4)]  # that cell alone
    assert not note.exists() and [row["distill.pairs"] for row in rows_of(tmp_path)] == ["9"] * 4 + ["8"] * 4


def test_a_damaged_record_is_made_again(finished, worked):
    before = rows_of(finished)
    for path in finished.glob("sweep/*.json"):
        path.write_text("{")
    sweep_command(tiny(finished), AXES)
    assert len(worked) == 1 + 4 and {tuple(row.items()) for row in before if row["preset"] == "random"} <= {
        tuple(row.items()) for row in rows_of(finished)}


def test_data_are_held_for_one_section_at_a_time(tmp_path, monkeypatch):
    cells = grid(tiny(tmp_path), {"run.seed": (0, 1), "distill.pairs": (8, 9), "evaluate.tower": ("", "mobilenet"),
                                  "preset": ("random", "mdw")})
    made = []
    monkeypatch.setattr(module, "prepare", lambda config: made.append(
        (config.run.seed, config.evaluate.tower)) or SimpleNamespace(pairs=None))
    monkeypatch.setattr(module, "announce_source", lambda pairs: None)
    prepared_for = module._LatestData().prepare
    for cell in sorted(cells, key=lambda cell: (cell.values["run.seed"], cell.values["evaluate.tower"])):
        assert prepared_for(cell.resolved) is prepared_for(cell.resolved)
    assert made == [(0, ""), (0, "mobilenet"), (1, ""), (1, "mobilenet")]
    prepared_for(cells[0].resolved)
    assert len(made) == 5  # only the last is kept


@pytest.mark.parametrize(("others", "goes_on"), [
    (None, True), (Disagreement("they are done"), False), (TimeoutError(), False)])
def test_with_several_processes_a_sweep_goes_on_only_where_all_fail(monkeypatch, others, goes_on):
    def agree(facts, within):
        assert facts == {"outcome of a cell": {"preset=mdw": "failed"}} and within > 0
        if others is not None:
            raise others

    monkeypatch.setattr(module, "agree", agree)
    cell, error = module.Cell(1, "mdw", {}, None, None, ""), UserError("an image cannot be read.")
    if goes_on:
        module._failed_everywhere(cell, error)
        return
    with pytest.raises(UserError, match="an image cannot be read"):
        module._failed_everywhere(cell, error)


def test_processes_that_differ_end_a_sweep(monkeypatch):
    monkeypatch.setattr(module, "agree", lambda *_, **__: pytest.fail("all know already"))
    with pytest.raises(Disagreement, match="their data"):
        module._failed_everywhere(module.Cell(1, "mdw", {}, None, None, ""), Disagreement("they differ in their data"))
