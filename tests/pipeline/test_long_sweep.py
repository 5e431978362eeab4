"""A sweep of many cells in two parts, both killed again and again: one row for each cell at the end (slow).

MDW_CELLS=500 is days of sweeping in minutes; a fifth as many kills. MDW_SEED=1, 2, ...: at other moments.
"""

import collections
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from stubbed_sweep import FAILS_EVERY, command, score

from mdw_jax.cli import main
from mdw_jax.io.checksums import read_verified_json

CELLS, SEED = int(os.environ.get("MDW_CELLS", "40")), os.environ.get("MDW_SEED", "0")
PROGRAM = Path(__file__).parents[1] / "stubbed_sweep.py"


@pytest.mark.slow
def test_one_row_for_each_cell_however_often_the_parts_are_killed(tmp_path, capsys):
    folder, kills = tmp_path / "run", CELLS // 5
    Path(f"{folder}.py").write_text("from mdw_jax.config import base as get_config\n")
    done = subprocess.run([sys.executable, PROGRAM, folder, str(CELLS), str(kills), SEED], text=True, capture_output=True,
                          env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(PROGRAM.parents[1])})
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    with open(folder / "sweep.csv", newline="") as file:
        rows = [(int(row["run.seed"]), float(row["r_mean"])) for row in csv.DictReader(file)]
    assert rows == [(seed, score(seed)) for seed in range(CELLS)]
    assert sum(told["kills"].values()) == kills

    records = list(folder.glob("sweep/*.json"))
    assert sorted(read_verified_json(path)["rows"][0]["run.seed"] for path in records) == list(range(CELLS))
    listed = (folder / "sweep" / "SHA256SUMS").read_text()
    assert all(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" in listed for path in records)
    assert not list(folder.glob("sweep/*.failed.json")) and len(list(folder.glob("tried/*"))) == CELLS // FAILS_EVERY
    left = [path for path in folder.rglob("*") if re.search(r"part$|tmp", path.name)]
    assert not left, left
    worked = collections.Counter(map(int, (folder / "worked.txt").read_text().split()))
    again = sum(worked.values()) - CELLS  # at most the cell that a kill interrupts, after its stages
    assert set(worked) == set(range(CELLS)) and again <= kills

    whole = (folder / "sweep.csv").read_bytes()
    assert main(command(folder, CELLS, None)) == 0  # the same sweep, not in parts: nothing is to do
    out = capsys.readouterr().out
    assert out.count("done before") == CELLS and (folder / "sweep.csv").read_bytes() == whole
    with capsys.disabled():
        places = ", ".join(f"{count} {place}" for place, count in sorted(told["kills"].items()))
        print(f"\n{CELLS} cells in two parts, {kills} kills ({places}), {again} cells evaluated again, "
              f"{told['failed']} parts ended with failed cells: one row each")
