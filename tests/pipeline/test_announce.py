"""Drawn noise is in the first lines of every command that uses it, before any data are loaded."""

import pytest
from end_to_end.test_run import tiny

from mdw_jax.analysis.certificate import command as certify
from mdw_jax.analysis.fairness import command as fairness
from mdw_jax.errors import UserError
from mdw_jax.export import command as export
from mdw_jax.pipeline import run, sweep

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

    def prepare(config):
        raise LoadsDataError

    monkeypatch.setattr(module, "prepare", prepare)
    with pytest.raises(LoadsDataError):
        command(config)
    return capsys.readouterr().out.splitlines()


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
