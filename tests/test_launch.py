"""The launch scripts say what they mean to: every command of theirs is one that `mdw` takes."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from mdw_jax.cli import main

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_shell(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_every_line_of_the_grid_is_a_sweep_that_resolves(tmp_path, capsys):
    commands = tmp_path / "commands"
    stub = tmp_path / "mdw"
    stub.write_text(f'#!/usr/bin/env bash\nprintf "%s\\t" "$@" >> {commands}\necho >> {commands}\n')
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    config = ROOT / "configs" / "quickstart.py"
    subprocess.run([ROOT / "launch" / "grid.sh", config, tmp_path / "run", "--config.distill.pairs=100"], check=True,
                   env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PART": "1/2"})
    lines = [line.rstrip("\t").split("\t") for line in commands.read_text().splitlines()]
    assert len(lines) >= 10
    for words in lines:
        assert main([*words, "--dry"]) == 0, (words, capsys.readouterr().err)
