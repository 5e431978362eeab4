import csv
import time

import jax
import numpy as np
import pytest

from mdw_jax.analysis.benchmark.case import make_case
from mdw_jax.analysis.benchmark.command import bench_command
from mdw_jax.analysis.benchmark.compare import difference, outputs_match
from mdw_jax.analysis.benchmark.outer_step import outer_gradient, outer_gradient_by_loop, outer_step
from mdw_jax.analysis.benchmark.rows import COLUMNS
from mdw_jax.analysis.benchmark.timing import medians
from mdw_jax.config import base
from mdw_jax.config.overrides import preset_config
from mdw_jax.errors import UserError


@pytest.fixture(autouse=True)
def hasty_compiler():
    """Compiling is all the time that these take."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def config(**changes):
    c = base()
    c.update_from_flattened_dict({
        "data.size": 8, "model.patches": (4,), "model.widths": (12,), "model.mode": "projection", "model.dim": 8,
        "text.dim": 10, "experts.batch": 16, "experts.epochs": 2, "experts.recovery_start": 1, "distill.pairs": 8,
        "distill.inner_steps": 3, "distill.batch": 4, "distill.trajectories": 2, "distill.rank": 2, "distill.loss": "wbce"})
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return c


def test_every_row_of_a_tiny_config(tmp_path, capsys):
    bench_command(config(run__dir=str(tmp_path)), repeats=2)
    with open(tmp_path / "bench.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    named = {row["measure"]: row for row in rows}
    assert len(named) == len(rows)
    works = ("expert steps of one network", "outer gradient, exact", "outer gradient, detached", "outer step, exact",
             "training 5 students for 20 steps")
    naive = ", against the backbone in every inner step"
    for what in works:
        assert {what, f"compiling {what}", f"rate of {what}"} < named.keys()
        assert f"share of the matrix product's rate of {what}" in named
        assert "students" in what or f"memory beyond inputs of {what}" in named
    assert sum(what.startswith(("writing 3 snapshots", "reading one snapshot")) for what in named) == 2
    for what in works[1:3]:
        assert {what + naive, f"compiling {what}{naive}", f"memory beyond inputs of {what}{naive}"} < named.keys()
    # Less is better for seconds and memory, more for rates; ratios first.
    has_ratio = [row["ratio"] != "" for row in rows]
    assert has_ratio == sorted(has_ratio, reverse=True) and 6 <= sum(has_ratio) < len(rows)
    for row in rows:
        assert float(row["value"]) > 0 and row["device"] and int(row["threads"]) >= 1 and "jax" in row["versions"]
        if row["ratio"]:
            share = float(row["reference"]) / float(row["value"])
            wanted = share if row["unit"] in ("s", "MiB") else 1 / share
            assert float(row["ratio"]) == pytest.approx(wanted, rel=1e-2)
    seconds, rate = (float(named[what]["value"]) for what in (works[1], f"rate of {works[1]}"))
    longer = float(named["outer step, exact"]["value"]) * float(named["rate of outer step, exact"]["value"])
    assert seconds * rate == pytest.approx(longer, rel=5e-2)  # the optimizer has next to no products
    assert [path.name for path in tmp_path.iterdir()] == ["bench.csv"]
    printed = capsys.readouterr().out
    assert "projection mode, 8x8 px, M = 8, S = 3, b = 4, 2 trajectories, loss wbce; medians of 2" in printed
    assert printed.count("the backbone in every inner step match:") == 2 and "PyTorch" in printed


@pytest.mark.parametrize("gradient", ["exact", "detached"])
def test_unrolling_features_is_unrolling_images(gradient):
    case = make_case(preset_config(config(distill__gradient=gradient), "mdw"))
    (loss, gradients), (loop_loss, loop_gradients) = (
        make(case.model, case.method)(*case.outer_arguments) for make in (outer_gradient, outer_gradient_by_loop))
    assert float(loss) == pytest.approx(float(loop_loss), rel=1e-5)
    for found, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(loop_gradients), strict=True):
        size = float(np.abs(wanted).max())
        assert size > 0
        np.testing.assert_allclose(found / size, wanted / size, atol=1e-4)


def test_medians_of_turns_there_and_back():
    calls = []

    def run(name, seconds):
        calls.append(name)
        time.sleep(seconds)

    # The first call of each is slow and must not count.
    found = medians({"a": lambda: run("a", 0.0 if "a" in calls else 0.2), "b": lambda: run("b", 0.02)}, 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert found["a"] < 0.02 <= found["b"] < 0.2


def test_no_ratio_for_outputs_that_differ():
    wanted = {"loss": np.float32(2), "images": np.ones((3, 4))}
    close, off = ({**wanted, "images": wanted["images"] * factor} for factor in (1.002, 1.01))
    assert outputs_match("x", "y", close, wanted, 0)[0] and not outputs_match("x", "y", off, wanted, 0.001)[0]
    match, remark = outputs_match("x", "y", off, wanted, 0.004)
    assert match and "rounding changes outputs by 0.004" in remark
    match, remark = outputs_match("x", "y", off, wanted, 0.2)
    assert not match and "rounding alone changes outputs by 0.2" in remark
    assert difference(off, wanted) == (pytest.approx(0.01), "images")
    assert not outputs_match("x", "y", {**wanted, "loss": np.nan}, wanted, np.nan)[0]
    assert difference({"a": np.ones(2)}, {"a": np.zeros(2)})[0] > 1  # nothing to be relative to
    with pytest.raises(ValueError, match="not the same outputs"):
        difference({"loss": 2.0}, wanted)


def test_a_trained_text_encoder_is_not_measured():
    with pytest.raises(UserError, match="set text.train to false"):
        make_case(preset_config(config(text__train=True, text__encoder="transformer", text__dim=base().text.dim), "mdw"))


class Reference:
    """A PyTorch reference that knows no loss and no optimizer but these."""

    DISTILLATION_LOSSES, STUDENT_OPTIMIZERS = ("wbce",), ("sgd",)


@pytest.mark.parametrize("changes, missing", [({"distill__inner_optimizer": "adam"}, "student optimizer 'adam'"),
                                              pytest.param({"distill__loss": "kl"}, "loss 'kl'", marks=pytest.mark.slow)])
def test_what_the_pytorch_reference_does_not_have_gets_no_ratio(changes, missing):
    case = make_case(preset_config(config(distill__trajectories=1, **changes), "mdw"))
    measured = outer_step(case, Reference, 1)
    assert f"the PyTorch reference has no {missing}: no ratio for outer gradients." in measured.remarks
    assert not any("PyTorch" in row["measure"] for row in measured.rows)
    assert any("the backbone in every inner step" in row["measure"] for row in measured.rows)
