"""The stages of a run, in order, over the presets of its config, and what they print."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config.overrides import preset_config
from mdw_jax.config.presets import preset_spec
from mdw_jax.config.stored import AS_GIVEN, CONFIG
from mdw_jax.data.pairs import Pairs
from mdw_jax.io.checksums import write_all_listed, write_listed
from mdw_jax.io.files import csv_bytes, json_bytes, write_atomically
from mdw_jax.io.scores import METRICS, SCORES
from mdw_jax.pipeline import run_notes
from mdw_jax.pipeline.announce import announce_data, announce_noise, announce_run
from mdw_jax.pipeline.distill import distill_stage
from mdw_jax.pipeline.earlier_presets import EarlierPresets, earlier_presets, keep_other_scores
from mdw_jax.pipeline.evaluate import evaluate_stage
from mdw_jax.pipeline.experts import experts_stage
from mdw_jax.pipeline.inputs import load_pairs
from mdw_jax.pipeline.outer_step import compile_in_background
from mdw_jax.pipeline.prepared import SPLITS, Prepared, prepare
from mdw_jax.pipeline.preset_run import PresetRun, check_enough_data, open_preset, resolve_run
from mdw_jax.pipeline.run_folder import environment, run_folder
from mdw_jax.reporting.noise_text import estimate_in_words
from mdw_jax.reporting.run_files import Run
from mdw_jax.reporting.run_report import write_report
from mdw_jax.reporting.run_table import footnotes, table
from mdw_jax.reporting.text import aligned, markdown_table
from mdw_jax.reporting.verdict import verdict_of
from mdw_jax.runtime.may_train import training_allowed
from mdw_jax.runtime.processes import is_main

# Of a config, not resolved, and its data; of a run that goes on also what is prepared and its presets, else None and ().
Estimate = Callable[[ConfigDict, Pairs, Prepared | None, Sequence[PresetRun]], str]
# Columns of scores.csv. Not read off the rows: the keys of rows that come from a file have another order.
_COLUMNS = ("preset", "set", "student", "select_on", "lr_scale", "steps", "at_edge", "val_r_mean", *METRICS,
            "hard_r_mean", "bytes")


class _Begun(NamedTuple):
    """A run that begins.

    Attributes:
        config: as given, and with the earlier presets.
        resolved: the same, resolved.
        prepared: its data.
        runs: its presets.
        earlier: presets that an earlier command scored, whose rows stay.
    """

    config: ConfigDict
    resolved: ConfigDict
    prepared: Prepared
    runs: list[PresetRun]
    earlier: EarlierPresets


def _begin(config: ConfigDict, estimate: Estimate | None = None) -> _Begun:
    """Resolve the config, say what will be done, prepare the data, open the presets, write config and environment.

    The config and all presets are checked before the run directory is made or any data are read. A command that may not
    train writes nothing here: it may still be refused, and the folder is to stay as it was.
    """
    resolved = resolve_run(config)
    goes_on = (Path(config.run.dir) / CONFIG).exists()
    announce_run(resolved, goes_on)
    announce_noise(config)
    directory = run_folder(config)
    pairs = load_pairs(resolved.data, directory / "cache")
    announce_data(resolved, pairs)
    if estimate is not None and is_main() and not goes_on:
        print(f"time: {estimate(config, pairs, None, ())}", flush=True)
    for name in config.run.presets:
        check_enough_data(preset_config(config, name), pairs, preset_spec(name))
    prepared = prepare(resolved)
    runs = [open_preset(config, prepared, name) for name in config.run.presets]
    if estimate is not None and is_main() and goes_on:  # only now it is known which results these presets have
        print(f"time: {estimate(config, pairs, prepared, runs)}", flush=True)
    earlier = earlier_presets(config, prepared)
    whole, whole_resolved = config.copy_and_resolve_references().unlock(), ConfigDict(resolved.to_dict())
    for one in (whole, whole_resolved):
        one.run.presets = (*config.run.presets, *earlier.names)
    begun = _Begun(whole, whole_resolved, prepared, runs, earlier)
    if training_allowed():
        _write_config(begun)
    return begun


def _write_config(begun: _Begun) -> None:
    directory = Path(begun.config.run.dir)
    described = {AS_GIVEN: begun.config.to_dict(), CONFIG: begun.resolved.to_dict(), "environment.json": environment()}
    write_all_listed(directory, {name: json_bytes(value) for name, value in described.items()})


def prepare_command(config: ConfigDict) -> None:
    """Prepare the data, the noise draws and the frozen features."""
    _, _, prepared, runs, _ = _begin(config)
    for split in SPLITS:
        data = getattr(prepared.pairs, split)
        print(f"{split:5}  {len(data.images)} images, {len(data.captions)} captions")
    for run in runs:
        drawn = "pairs as they come" if run.noise.true_rate is None else (
            f"requested {run.noise.rate:.3f}, actually mismatched {run.noise.label}")
        print(f"{run.name:8}  noise {run.noise.protocol}, {drawn}, sha256 {run.noise.sha256[:12]}")


def experts_command(config: ConfigDict) -> None:
    """Train the experts of every preset that needs them."""
    _, _, prepared, runs, _ = _begin(config)
    for run in runs:
        if run.spec.needs_experts:
            record = experts_stage(run, prepared)
            print(f"{run.name:8}  {record['recipe']}: test r_mean {np.mean(record['test'], 0)[-1]:.2f} at the best "
                  f"val epoch, mean of {record['networks']} networks; mismatched pairs {_rates(record['rate'])}  "
                  f"({run.experts.path})")


def _rates(rate: dict) -> str:
    """The noise rate of a record of experts in words: "38.9% [38.1%, 39.6%] estimated, 40.0% true"."""
    words, true = estimate_in_words(rate["estimated"]), rate["true"]
    return ", ".join([f"{words} estimated"] * bool(words) + ([] if true is None else [f"{true:.1%} true"])) or "unknown"


def distill_command(config: ConfigDict) -> None:
    """Distill or choose the sets of every preset that has any."""
    _, _, prepared, runs, _ = _begin(config)
    for run in runs:
        for directory in distill_stage(run, prepared):
            print(f"{run.name:8}  {directory}")


def run_command(config: ConfigDict, estimate: Estimate | None = None) -> None:
    """Do all stages of every preset, one preset after another; then write the scores, the table and the report.

    Args:
        config: the run's config, not resolved.
        estimate: how long that takes, in words; None: it is not said.

    A stage skips what is complete, and makes what it needs of the stages before it: `distill_stage` trains experts that
    are missing, `evaluate_stage` also distills. So an interrupted run goes on where it stopped, and each stage can be
    called alone.
    """
    begun, rows = _begin(config, estimate), []
    prepared = begun.prepared
    for run in begun.runs:
        if run.spec.needs_experts:
            with compile_in_background(run, prepared):
                experts_stage(run, prepared)
        distill_stage(run, prepared)
        rows += evaluate_stage(run, prepared)
    _write_results(begun, rows)


def evaluate_command(config: ConfigDict) -> None:
    """Score every preset, by training students on its sets; those and the experts are there, or `--train` makes them."""
    run_command(config)


def _write_results(begun: _Begun, rows: list[dict]) -> None:
    """Write scores.csv with one row per student, report.json, the table and the report; print the table."""
    directory, rows = Path(begun.config.run.dir), [*rows, *begun.earlier.rows]
    if is_main():
        keep_other_scores(directory, begun.resolved, begun.prepared.key)
    _write_config(begun)
    columns = [name for name in _COLUMNS if any(name in row for row in rows)]
    write_listed(directory / SCORES, csv_bytes(columns, rows))
    run_notes.write_run_summary(directory, begun.prepared, begun.runs, begun.earlier.summaries)
    if not is_main():  # other processes must not read what the first may not have written yet
        return
    run = Run(directory)
    rows_of_table = table(run)
    notes = "".join(f"\n{note}\n" for note in [*footnotes(run), "\n".join(verdict_of(run))])
    write_atomically(directory / "table.md", (markdown_table(rows_of_table) + notes).encode())
    print(aligned(rows_of_table))
    print(notes, end="")
    print(f"\nscores: {directory / SCORES}")
    write_report([run], directory / "index.html")
    run_notes.write_audio_files(directory, begun.prepared, begun.runs)
    print(f"page:   {directory / 'index.html'}")
    if begun.resolved.noise.protocol == "natural":
        print(f"next:   mdw mismatches {directory} (suspected mismatches); mdw export {directory} (the set, with train.py, "
              "whose student mdw search finds photos with)")


STAGES = {"prepare": prepare_command, "experts": experts_command, "distill": distill_command,
          "evaluate": evaluate_command, "run": run_command}
