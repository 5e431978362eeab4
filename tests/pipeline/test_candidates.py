"""P from the experts, and which of the candidates a set ends as."""

import json
import shutil

import numpy as np
import pytest
from tiny_config import tiny_config

from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.pipeline import candidates, distill_loop
from mdw_jax.pipeline.run import STAGES

TINY = {
    "run.presets": ("correspond", "mdw"), "data.size": 16, "data.train": 60, "data.val": 30, "data.test": 30,
    "noise.rate": 0.4, "text.dim": 24, "model.mode": "projection", "model.patches": (8,), "model.widths": (16,),
    "model.dim": 8, "experts.batch": 32, "experts.count": 1, "experts.epochs": 3, "distill.pairs": 8,
    "distill.batch": 4, "distill.steps": 4, "distill.inner_steps": 2, "distill.checkpoint_every": 2, "distill.ceo": False,
    "evaluate.students": 1, "evaluate.steps": 5, "evaluate.every": 5, "evaluate.batch": 8, "evaluate.lr_scales": (1.0,),
    "evaluate.grow": 0,
}


def run(folder, **changes):
    STAGES["run"](tiny_config(TINY, folder, **changes))
    return {path.parent.name.split("-")[0]: path for path in folder.glob("distilled/*/set_0")}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"))


def test_a_preset_without_outer_steps_keeps_real_pairs_and_gets_p_from_its_experts(sets):
    distilled, card = load_distilled(sets["correspond"])
    assert {row["step"] for row in card["candidates"]} == {0}
    assert [row["tau"] for row in card["candidates"]] == [0.07, 0.1, 0.14]
    assert card["chosen"].startswith("the start, P from its teachers at tau ")
    p = distilled.correspondence["matrix"]
    assert p.shape == (8, 8) and not np.allclose(p, np.eye(8), atol=0.1) and np.abs(p).max() <= 1 / 0.7 + 1e-6
    np.testing.assert_allclose(distilled.images * 255, np.round(distilled.images * 255), atol=1e-3)  # real pixels


def test_the_start_every_checkpoint_and_p_taken_anew_are_candidates_and_val_decides(sets):
    distilled, card = load_distilled(sets["mdw"])
    rows = [(row["step"], row["correspondence"]) for row in card["candidates"]]
    assert rows == [(0, "teachers")] * 3 + [(2, "learned"), (2, "teachers"), (4, "learned"), (4, "teachers")]
    best = max(card["candidates"], key=lambda row: row["val_r_mean"])
    words = "the start" if best["step"] == 0 else f"outer step {best['step']}"
    assert card["chosen"].startswith(words)
    # One temperature from the start on: the one that val preferred.
    starts = card["candidates"][:3]
    assert card["candidates"][-1]["tau"] == max(starts, key=lambda row: row["val_r_mean"])["tau"]


def test_what_wins_on_val_is_what_is_kept(tmp_path, monkeypatch):
    """With scores that are made up: a start, what was learned, and the last P taken anew are the best in turn."""
    kept = {}
    for best in (2, 3, 6):
        scores = iter(np.eye(7)[best])
        monkeypatch.setattr(distill_loop, "score_candidate", lambda *_: (float(next(scores)), 1.0))
        kept[best] = load_distilled(run(tmp_path, run__presets=("mdw",))["mdw"])
        shutil.rmtree(tmp_path / "distilled")
    assert [card["chosen"] for _, card in kept.values()] == [
        "the start, P from its teachers at tau 0.14", "outer step 2, P as learned",
        "outer step 4, P from its teachers at tau 0.07"]
    start, learned, taught = (distilled for distilled, _ in kept.values())
    np.testing.assert_allclose(start.images * 255, np.round(start.images * 255), atol=1e-3)  # real pixels
    assert (learned.images != start.images).any() and (taught.images != learned.images).any()
    assert np.abs(start.correspondence["matrix"]).max() <= 1 / 1.4 + 1e-3  # cosines over ten times the temperature
    assert (learned.correspondence["matrix"] != taught.correspondence["matrix"]).any()


@pytest.mark.slow
def test_an_interrupted_distillation_goes_on_with_its_candidates(tmp_path, monkeypatch):
    whole = json.loads((run(tmp_path / "whole", run__presets=("mdw",))["mdw"] / "card.json").read_text())
    original, calls = candidates.score_candidate, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(distill_loop, "score_candidate", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", run__presets=("mdw",))
    monkeypatch.setattr(distill_loop, "score_candidate", original)
    directory = run(tmp_path / "cut", run__presets=("mdw",))["mdw"]
    card = json.loads((directory / "card.json").read_text())
    assert card["candidates"] == whole["candidates"] and card["sha256"] == whole["sha256"]
    assert not (directory / candidates.CANDIDATES).exists()


def test_prototypes_are_a_start(tmp_path):
    sets = run(tmp_path, run__presets=("correspond",), distill__init="prototypes", distill__prototype_steps=5)
    distilled, card = load_distilled(sets["correspond"])
    assert 0 <= distilled.images.min() and distilled.images.max() <= 1
    assert not (sets["correspond"] / "start.safetensors").exists()
    assert distilled.images.shape == (8, 16, 16, 3) and distilled.texts.shape == (8, 24)
