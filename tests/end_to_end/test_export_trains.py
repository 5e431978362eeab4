"""A stranger's way: a whole run, its export, a PyTorch student on the exported set, a search with it."""

import re
import subprocess
import sys

import pytest

from mdw_jax.cli import main


@pytest.mark.slow
def test_quickstart_to_a_pytorch_student(tmp_path, capsys):
    """Five students of train.py score within the interval that the run's five leave for them."""
    pytest.importorskip("torch")
    run = tmp_path / "run"
    presets = "--config.run.presets=random,mdw"
    assert main(["run", "quickstart", f"--config.run.dir={run}", presets]) == 0
    assert main(["export", str(run), "--config.export.license=cc0-1.0", "--config.export.with_test=True"]) == 0
    scores = {}
    for preset in ("random", "mdw"):
        # Its own process, in its own directory, which knows nothing of this package.
        done = subprocess.run([sys.executable, "-c", _WITHOUT_US, str(run / "export" / f"{preset}-0" / "train.py"),
                               "--students", "5", "--out", str(tmp_path / preset)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "lies inside" in done.stdout, done.stdout
        scores[preset] = float(re.search(r"r_mean +([\d.]+)", done.stdout)[1])
    assert scores["mdw"] > scores["random"] + 30  # 60 and 3 when this was written
    photos = run / "export" / "mdw-0" / "images"
    capsys.readouterr()
    assert main(["search", str(tmp_path / "mdw"), "--images", str(photos), "a red circle", "--top", "3"]) == 0
    assert len(re.findall(r"^  -?0\.\d{3}  .*\.png$", capsys.readouterr().out, re.MULTILINE)) == 3


_WITHOUT_US = """
import runpy, sys
sys.modules["mdw_jax"] = sys.modules["jax"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
