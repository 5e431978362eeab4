"""A long sweep whose parts are killed at random moments: `mdw sweep` itself, with stages that take milliseconds.

    python tests/stubbed_sweep.py FOLDER CELLS KILLS SEED

Parts 0 and 1 of 2 run at once, each in a fork of this process, for most of the time would else go into imports. A part
that is killed is begun again, and after KILLS kills both go to their end. Everything but the stages of a cell is the
program's own: command line, locks, records of cells, sweep.csv; the grid is resolved once for all parts. Some cells
fail when they are first tried. Prints a JSON of where the kills landed; exits with 1 where a file is not what it must be
after a kill.
"""

import collections
import contextlib
import csv
import io
import json
import mmap
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from mdw_jax.cli import main
from mdw_jax.config.presets import preset_spec
from mdw_jax.errors import UserError
from mdw_jax.io import files
from mdw_jax.io.checksums import read_verified, write_listed_json
from mdw_jax.io.scores import METRICS
from mdw_jax.pipeline import sweep

PARTS = 2
MOST_CELLS, MOST_SECONDS = 5, 0.2  # a part is killed after so many cells, and so much time after the last began, at most
PLACES = ("between cells", "in a stage", "writing a record", "writing sweep.csv")
FAILS_EVERY = 25  # a cell of this many fails when it is first tried


def score(seed: int) -> float:
    """What the student of a cell scores: no two of 1000 cells alike."""
    return (seed * 37 % 1000) / 10


def command(folder: Path, cells: int, part: int | None) -> list[str]:
    """The command line of one part, or of the whole sweep."""
    shard = [] if part is None else [f"--shard={part}/{PARTS}"]
    return ["sweep", f"--config={folder}.py", f"--config.run.dir={folder}",
            "--grid", f"run.seed={','.join(map(str, range(cells)))}", "--grid", "preset=random", *shard]


def stub(folder: Path, at: mmap.mmap, part: int, ready: int) -> None:
    """Replace the stages of a cell, and note in `at[part]` where the process is."""

    def evaluate_stage(run, prepared):
        seed = run.config.run.seed
        tried = folder / "tried" / str(seed)
        if seed % FAILS_EVERY == FAILS_EVERY - 1 and not tried.exists():
            tried.parent.mkdir(exist_ok=True)
            tried.touch()
            raise UserError("it failed, once.")
        time.sleep(random.Random(seed).uniform(0, 0.05))
        row = {"preset": run.name, "set": 0, "student": 0, "select_on": "val", "lr_scale": 1.0, "steps": 10, "at_edge": "",
               "val_r_mean": score(seed), **dict.fromkeys(METRICS, score(seed)), "bytes": 8}
        write_listed_json(run.sets.path / "scores.json", {"rows": [row]})
        with open(folder / "worked.txt", "a") as file:
            file.write(f"{seed}\n")
        return [row]

    def open_preset(config, prepared, name):
        noise = SimpleNamespace(protocol="image", rate=0.4, true_rate=0.4, sha256="0" * 64)
        path = folder / "distilled" / f"{name}-{config.run.seed:016x}"
        return SimpleNamespace(name=name, config=config, noise=noise, spec=preset_spec(name),
                               sets=SimpleNamespace(path=path))

    def csv_bytes(columns, rows):  # as slow as of large records: parts meet where nothing kept them apart
        time.sleep(0.03)
        return files.csv_bytes(columns, rows)

    def noted(function, place):
        def call(*args, **named):
            before, at[part] = at[part], PLACES.index(place)
            if place == "in a stage":
                os.write(ready, b".")
            try:
                return function(*args, **named)
            finally:
                at[part] = before

        return call

    sweep.prepare = lambda config: SimpleNamespace(pairs=None)
    sweep.announce_source = lambda pairs: None
    sweep.noise_estimates = lambda runs: {}
    sweep.csv_bytes = csv_bytes
    sweep.open_preset = open_preset
    sweep.evaluate_stage = noted(evaluate_stage, "in a stage")
    sweep.write_listed_json = noted(write_listed_json, "writing a record")
    sweep._collect = noted(sweep._collect, "writing sweep.csv")


class Part:
    """One part of the sweep, in a process that may be killed.

    Attributes:
        begun: how many cells it has begun.
        kill_at: when it is killed, by the clock; None: not yet known.
    """

    def __init__(self, folder: Path, cells: int, number: int, at: mmap.mmap):
        self.begun, self.kill_at = 0, None
        self.ready, ready = os.pipe()
        self.log = folder.with_name(f"part{number}.log")
        self.process = os.fork()
        if not self.process:
            os.dup2(os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
            os.dup2(1, 2)
            stub(folder, at, number, ready)
            code = 1
            try:
                code = main(command(folder, cells, number))
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.close(ready)

    def look(self) -> None:
        """Count the cells that it has begun."""
        while select.select([self.ready], [], [], 0)[0] and (found := os.read(self.ready, 4096)):
            self.begun += len(found)

    def ended(self, wait: bool = False) -> int | None:
        """Its exit status; None while it goes on."""
        process, status = os.waitpid(self.process, 0 if wait else os.WNOHANG)
        if process:
            os.close(self.ready)
        return os.waitstatus_to_exitcode(status) if process else None


class Watch:
    """Looks at sweep.csv whenever it has changed: no row may go, or be there twice, or be of another cell."""

    def __init__(self, folder: Path):
        self.path, self.changed, self.seeds = folder / "sweep.csv", 0, set[int]()

    def look(self) -> None:
        if not self.path.exists() or self.path.stat().st_mtime_ns == self.changed:
            return
        self.changed = self.path.stat().st_mtime_ns
        rows = list(csv.DictReader(read_verified(self.path).decode().splitlines()))
        assert all(float(row["r_mean"]) == score(int(row["run.seed"])) for row in rows), "a row of another cell"
        seeds = {int(row["run.seed"]) for row in rows}
        assert len(rows) == len(seeds), "a row is there twice"
        assert self.seeds <= seeds, f"rows are lost: {self.seeds - seeds}"
        self.seeds = seeds


def resolve_once(folder: Path, cells: int) -> None:
    """Resolve the grid, which takes seconds for hundreds of cells, before the forks."""
    function, found = sweep.grid, []
    sweep.grid = lambda config, axes: found[0] if found else found.append(function(config, axes)) or found[0]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*command(folder, cells, None), "--dry-run"]) == 0 and len(found[0]) == cells


def work(folder: Path, cells: int, kills: int, seed: int) -> dict:
    """Both parts, to their end; where kills landed, and how often a part ended because cells failed."""
    resolve_once(folder, cells)
    draw, landed, failed = random.Random(seed), collections.Counter(), 0
    at = mmap.mmap(-1, PARTS)
    parts: list[Part | None] = [Part(folder, cells, number, at) for number in range(PARTS)]
    watch = Watch(folder)
    until = [draw.randint(1, MOST_CELLS) for _ in parts]
    while any(parts):
        time.sleep(0.005)
        watch.look()
        for number, part in enumerate(parts):
            if part is None:
                continue
            part.look()
            if part.kill_at is None and part.begun >= until[number]:
                part.kill_at = time.monotonic() + draw.uniform(0, MOST_SECONDS)
            code = part.ended()
            due = part.kill_at is not None and time.monotonic() > part.kill_at
            if code is None and due and sum(landed.values()) < kills:
                os.kill(part.process, signal.SIGKILL)
                code, until[number] = part.ended(wait=True), draw.randint(1, MOST_CELLS)
                landed[PLACES[at[number]]] += 1
                at[number] = 0
            if code is None:
                continue
            failed += code == 2
            assert code in (0, 2, -signal.SIGKILL), f"status {code}: {part.log.read_text()[-2000:]}"
            parts[number] = None if code == 0 else Part(folder, cells, number, at)
    return {"kills": dict(landed), "failed": failed}


if __name__ == "__main__":
    where = Path(sys.argv[1])
    print(json.dumps(work(where, *map(int, sys.argv[2:]))))
