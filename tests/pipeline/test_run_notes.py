"""What a run and a sweep note of natural noise: the estimate of the experts, for all presets that saw the same pairs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mdw_jax.data.noise import Noise
from mdw_jax.errors import UserError
from mdw_jax.pipeline.preset_run import Filter, StageFolder
from mdw_jax.pipeline.run_notes import noise_estimates, noise_summary
from mdw_jax.pipeline.sweep import _set_columns

ESTIMATE = {"eta": 0.125, "low": 0.1, "high": 0.15, "confidence": 0.95}


def noise(protocol="natural", rate=0.0):
    image_of = np.arange(4)
    return Noise(protocol, rate, 0, "f" * 64, image_of if protocol == "natural" else image_of[::-1].copy(), image_of)


def preset(folder, name, draw, estimate=None, *, needs_experts=True, scorer=None):
    """A preset whose experts lie in `folder` and have been trained, where it needs any."""
    if needs_experts:
        (folder / name).mkdir()
        (folder / name / "experts.json").write_text(
            json.dumps({"key": name, "rate": {"true": None, "estimated": estimate}}))
    config = SimpleNamespace(run=SimpleNamespace(seed=0), distill=SimpleNamespace(pairs=8))
    return SimpleNamespace(name=name, noise=draw, config=config, experts=StageFolder(folder / name, name),
                           spec=SimpleNamespace(needs_experts=needs_experts, has_sets=True),
                           filter=scorer and Filter(StageFolder(folder / "filter", "f"), scorer))


def test_presets_without_experts_share_the_estimate_of_the_same_pairs(tmp_path):
    natural, other = noise(), noise("image", 0.4)
    runs = [preset(tmp_path, "random", natural, needs_experts=False),
            preset(tmp_path, "vld", natural, ESTIMATE | {"eta": 0.5}),
            preset(tmp_path, "mdw", natural, ESTIMATE), preset(tmp_path, "full", other)]
    estimates = noise_estimates(runs)
    assert estimates == {natural.sha256: ESTIMATE}  # that of mdw, though vld comes first
    assert noise_summary(runs[0], estimates) == {
        "label": "natural", "protocol": "natural", "rate": None, "sha256": natural.sha256, "estimated": ESTIMATE,
        "assumed": None}
    drawn = noise_summary(runs[3], estimates)
    assert (drawn["rate"], drawn["estimated"], drawn["assumed"]) == (1.0, None, None)
    assert noise_summary(preset(tmp_path, "b", noise(rate=0.3), needs_experts=False), estimates)["assumed"] == 0.3


def test_the_experts_of_a_filter_estimate_for_its_preset(tmp_path):
    natural = noise()
    scorer = preset(tmp_path, "scorer", natural, ESTIMATE)
    filtered = preset(tmp_path, "filter_vld", natural, scorer=scorer)
    assert noise_estimates([filtered]) == {natural.sha256: ESTIMATE}
    assert noise_estimates([preset(tmp_path, "closed", natural, scorer=None, needs_experts=False)]) == {}


def test_what_is_not_trained_yet_has_no_estimate_and_what_is_damaged_is_refused(tmp_path):
    run = preset(tmp_path, "mdw", noise(), ESTIMATE)
    (tmp_path / "mdw" / "experts.json").write_text("{}")
    with pytest.raises(UserError):
        noise_estimates([run])
    (tmp_path / "mdw" / "experts.json").unlink()
    assert noise_estimates([run]) == {}


def test_a_sweep_leaves_an_unknown_rate_empty_and_notes_the_estimate(tmp_path):
    columns = _set_columns(preset(tmp_path, "mdw", noise(), ESTIMATE))
    assert (columns["noise.protocol"], columns["noise.rate"], columns["true_rate"]) == ("natural", "", None)
    assert [columns[f"estimated_{name}"] for name in ("rate", "low", "high")] == [0.125, 0.1, 0.15]
    drawn = _set_columns(preset(tmp_path, "vld", noise("image", 0.4)))
    assert drawn["noise.rate"] == "0.4" and "estimated_rate" not in drawn
    assert _set_columns(preset(tmp_path, "b", noise(rate=0.3), needs_experts=False))["noise.rate"] == "0.3"
