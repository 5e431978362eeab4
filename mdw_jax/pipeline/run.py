"""A run: the stages in order over the presets of the table, in one folder, and what it prints at the end."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config import resolve
from mdw_jax.config.presets import WITHOUT_EXPERTS
from mdw_jax.io.files import write_atomically, write_csv, write_json
from mdw_jax.method.retrieval import METRICS
from mdw_jax.pipeline import run_notes
from mdw_jax.pipeline.distill import distill_stage
from mdw_jax.pipeline.evaluate import evaluate_stage
from mdw_jax.pipeline.experts import experts_stage
from mdw_jax.pipeline.prepared import Prepared, prepare
from mdw_jax.pipeline.preset_run import Preset, open_preset
from mdw_jax.pipeline.run_folder import environment, run_folder
from mdw_jax.reporting import run_report
from mdw_jax.reporting.text import aligned, markdown_table
from mdw_jax.runtime.processes import is_main

# Of scores.csv: not read off the rows, whose keys have another order when they come from a file.
_COLUMNS = ("preset", "set", "student", "select_on", "lr_scale", "steps", "val_r_mean", *METRICS)


def _begin(config: ConfigDict) -> tuple[ConfigDict, Prepared, list[Preset]]:
    """Check the config, note it and the environment in the run folder, prepare the data, open the presets."""
    resolved = resolve(config)
    folder = run_folder(config)
    prepared = prepare(resolved)
    # Presets resolve for themselves: one recipe filled in on top of another would mix the two.
    presets = [open_preset(config, prepared, name) for name in config.run.presets]
    write_json(folder / "config.json", resolved.to_dict())
    write_json(folder / "environment.json", environment())
    return resolved, prepared, presets


def prepare_command(config: ConfigDict) -> None:
    """Data, noise draws and frozen features."""
    config, prepared, presets = _begin(config)
    for split in ("train", "val", "test"):
        data = getattr(prepared.pairs, split)
        print(f"{split:5}  {len(data.images)} images, {len(data.captions)} captions")
    for preset in presets:
        print(f"{preset.name:8}  noise {preset.noise.protocol}, asked {preset.noise.rate:.3f}, "
              f"really mismatched {preset.noise.label}, sha256 {preset.noise.sha256[:12]}")


def experts_command(config: ConfigDict) -> None:
    """Experts of every preset that has any."""
    _, prepared, presets = _begin(config)
    for preset in presets:
        if preset.name not in WITHOUT_EXPERTS:
            record = experts_stage(preset, prepared)
            print(f"{preset.name:8}  {record['recipe']}: test r_mean {np.mean(record['test'], 0)[-1]:.2f} at the best "
                  f"val epoch, mean of {record['networks']} networks; mismatched pairs {_rates(record['rate'])}  "
                  f"({preset.experts})")


def _rates(rate: dict) -> str:
    """As in: 38.9% [38.1%, 39.6%] estimated, 40.0% true."""
    found, true = rate["estimated"], rate["true"]
    said = [f"{found['eta']:.1%} [{found['low']:.1%}, {found['high']:.1%}] estimated"] if found else []
    return ", ".join(said + ([] if true is None else [f"{true:.1%} true"]))


def distill_command(config: ConfigDict) -> None:
    """Distilled sets of every preset that has any."""
    _, prepared, presets = _begin(config)
    for preset in presets:
        for folder in distill_stage(preset, prepared):
            print(f"{preset.name:8}  {folder}")


def evaluate_command(config: ConfigDict) -> None:
    """Scores of every preset: scores.csv, one row a student, and the table."""
    config, prepared, presets = _begin(config)
    rows = [row for preset in presets for row in evaluate_stage(preset, prepared)]
    folder = Path(config.run.dir)
    write_csv(folder / "scores.csv", [name for name in _COLUMNS if any(name in row for row in rows)], rows)
    run_notes.note(folder, config, prepared, presets)
    if not is_main():  # what it would read back may not be there yet, and is not its to write
        return
    run = run_report.Run(folder)
    table = run_report.table(run)
    write_atomically(folder / "table.md", markdown_table(table).encode())
    print(aligned(table))
    print(f"\nscores: {folder / 'scores.csv'}")
    run_report.write_report([run], folder / "index.html")
    run_notes.write_sounds(folder, prepared, presets)
    print(f"page:   {folder / 'index.html'}")


STAGES = {"prepare": prepare_command, "experts": experts_command, "distill": distill_command,
          "evaluate": evaluate_command, "run": evaluate_command}  # evaluating asks for all that comes before it
