"""The tour runs to its end, and its steps say what they should."""

import re
import runpy
import sys
from pathlib import Path

import jax

TOUR = Path(__file__).parent.parent / "examples" / "tour.py"


def test_the_tour_goes_from_noisy_pairs_to_p(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tour.py", "--steps=3", "--epochs=2"])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # the tests have one already
    try:
        runpy.run_path(str(TOUR))
    finally:
        jax.config.update("jax_disable_most_optimizations", False)  # the tour's own wish
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"[a-zA-Z]+", line)[0] for line in lines] == [
        "pairs", "experts", "distillation", "students", "students", "P"]
    assert lines[0].startswith("pairs: 5000 such as ") and lines[0].endswith("; 40% are mismatched")
    assert "in 3 steps; 30 pairs stand for 5000" in lines[2]
    scores = [float(re.search(r"r_mean ([\d.]+)", line)[1]) for line in (lines[1], lines[3], lines[4])]
    assert min(scores) > 6  # chance is 5.3
