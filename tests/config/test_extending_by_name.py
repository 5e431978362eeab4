"""Options from outside the package: the code of docs/extending.md in one module, run from the data to the export."""

import copy
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from mdw_jax.analysis.certificate.command import certify_command
from mdw_jax.config import base, options
from mdw_jax.errors import UserError
from mdw_jax.export.command import export_command
from mdw_jax.io.distilled_set import load_for_display, save_distilled
from mdw_jax.pipeline.run import STAGES
from mdw_jax.reporting.run_files import open_run
from mdw_jax.reporting.run_report import write_report

ROOT = Path(__file__).parents[2]
GUIDE, CONTRIBUTING = ROOT / "docs" / "extending.md", ROOT / "CONTRIBUTING.md"
OWN = {
    "data.name": "addon:squares", "model.tower": "addon:blocks", "experts.augment": "addon:darken",
    "distill.augment": "addon:darken", "distill.init_augment": "addon:darken",
    "experts.clean_loss": "addon:focal", "experts.tolerant_loss": "addon:focal",
    "experts.clean_q": 0.5, "distill.loss": "addon:huber", "distill.inner_optimizer": "addon:clipped_momentum",
    "watch.writers": ("addon:JsonLines",), "run.presets": ("addon:detached", "addon:first"),
}
SMALL = {
    "data.size": 8, "noise.protocol": "image", "noise.rate": 0.2, "text.dim": 16, "model.mode": "full",
    "experts.count": 1, "experts.epochs": 2, "experts.recovery_start": 1, "experts.batch": 32,
    "distill.pairs": 4, "distill.steps": 2, "distill.inner_steps": 2, "distill.batch": 4, "distill.trajectories": 1,
    "distill.rank": 1, "evaluate.students": 1, "evaluate.steps": 2, "evaluate.every": 2, "evaluate.lr_scales": (1.0,),
    "certify.pairs": 20, "certify.candidates": 1, "export.license": "unknown",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory made with one option of every kind, all from the code of the guide in one module."""
    directory = tmp_path_factory.mktemp("own")
    code = "".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL))
    (directory / "addon.py").write_text(re.sub(r"my_\w+:", "addon:", code))
    config = base()
    config.update_from_flattened_dict(OWN | SMALL | {"run.dir": str(directory / "run")})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        STAGES["run"](config)
        yield config


def test_every_key_that_takes_a_function_is_in_the_guide():
    keys = {key for key, choice in options.CHOICES.items() if choice.plugin}
    assert keys <= set(re.findall(r"`(\w+\.\w+)`", GUIDE.read_text()))
    assert keys - {"evaluate.tower"} == set(OWN) - {"experts.clean_q"}


def test_the_table_of_what_can_be_added_names_files_that_exist():
    table = CONTRIBUTING.read_text().split("## Adding")[1].split("\n## ")[0]
    paths = set(re.findall(r"`((?:\w+/)+\w+\.py)`", table))
    assert len(paths) > 10
    assert all((ROOT / path).exists() or (ROOT / "mdw_jax" / path).exists() for path in paths)


def test_the_table_has_a_row_of_each_preset(run):
    table = (Path(run.run.dir) / "table.md").read_text()
    assert "MDW, detached gradients" in table and "the first pairs" in table
    directories = sorted(path.name.rpartition("-")[0] for path in (Path(run.run.dir) / "distilled").iterdir())
    assert directories == ["addon.detached", "addon.first"]


def test_the_metrics_writer_has_all_stages(run):
    rows = [json.loads(line) for line in (Path(run.run.dir) / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"].split("/")[0].split("-")[0] for row in rows} == {"experts", "distill", "scores"}


def test_a_second_run_finds_everything_done(run):
    sets = sorted((Path(run.run.dir) / "distilled").rglob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in sets]
    STAGES["run"](run)
    assert sets and [path.stat().st_mtime_ns for path in sets] == times


@pytest.mark.slow
def test_the_certificate_says_that_a_loss_without_bounds_has_none(run, capsys):
    certify_command(run)
    text = capsys.readouterr().out
    assert re.search(r"no certificate", text) and "addon:focal" in text


def test_the_export_says_that_the_loss_has_no_pytorch_twin(run):
    export_command(run)
    [card] = (Path(run.run.dir) / "export").rglob("addon.detached*/**/README.md")
    assert "addon:huber" in card.read_text() and re.search(r"no PyTorch", card.read_text())


def test_a_report_imports_nothing_that_a_run_names(run, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "addon")
    opened = open_run(run.run.dir)
    write_report([opened], tmp_path / "index.html")
    with pytest.raises(UserError, match="names the loss 'addon:huber' from outside"):
        _ = opened["addon:detached"].set
    assert "addon" not in sys.modules


@pytest.mark.parametrize("command", [STAGES["evaluate"], export_command])
def test_a_stored_set_cannot_name_another_loss(run, tmp_path, command):
    shutil.copytree(run.run.dir, tmp_path / "run")
    config = copy.deepcopy(run)
    config.run.dir = str(tmp_path / "run")
    [directory] = (tmp_path / "run" / "distilled").glob("addon.detached-*/set_0")
    distilled, card = load_for_display(directory)
    save_distilled(directory, dataclasses.replace(distilled, loss="evil_module:loss"), card)
    with pytest.raises(UserError, match="names the loss 'evil_module:loss' from outside"):
        command(config)
