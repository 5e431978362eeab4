"""Experts of a preset: train them, store what distillation, coresets and reports read."""

import contextlib
import time
from pathlib import Path

import jax
import numpy as np

from mdw_jax.config.sections import fields
from mdw_jax.data.noise import Noise
from mdw_jax.errors import UserError
from mdw_jax.io.checkpoint import read_checkpoint, save_checkpoint
from mdw_jax.io.files import locked, write_json
from mdw_jax.io.metrics import writers
from mdw_jax.io.records import _write_array, complete, write_lines
from mdw_jax.io.trajectory import save_trajectory
from mdw_jax.method import certificate
from mdw_jax.method.expert_step import Recipe
from mdw_jax.method.experts import Checkpointer, train_experts
from mdw_jax.method.noise_rate import noise_rate
from mdw_jax.method.retrieval import METRICS, scores
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import Preset, snapshots_kept
from mdw_jax.runtime.processes import barrier, is_main
from mdw_jax.runtime.progress import progress

_NO_METRICS = ("generation", "epoch", "expert", "network")  # of a row of the log: what it is of
_FIELDS = ("recipe", "networks", "snapshots", "val", "test", "rate", "certificate_inputs")
SAVE_EVERY = 300.0  # seconds between states of the training; a kill without warning costs that much, and its epoch


def experts_stage(preset: Preset, prepared: Prepared) -> dict:
    """Train the experts of a preset; returns their record (`experts.json`)."""
    with locked(preset.experts.with_suffix(".lock")):  # processes of one sweep may want the same experts
        record = complete(preset.experts / "experts.json", preset.experts_key, *_FIELDS) or _train(preset, prepared)
        asked = preset.noise.true_rate is None or preset.config.noise.estimate
        if asked and record["rate"]["estimated"] is None:
            record = _estimated(preset, prepared, record)
        return record


def _shelf(preset: Preset) -> Checkpointer:
    """States of the training in the experts' folder, `state-<generation>.safetensors`."""
    last = time.monotonic()

    def path(name: str) -> Path:
        return preset.experts / f"state-{name.replace(' ', '-')}.safetensors"

    def save(name: str, tree) -> None:
        nonlocal last
        if is_main():
            save_checkpoint(path(name), tree, preset.experts_key)
        last = time.monotonic()

    return Checkpointer(lambda name: read_checkpoint(path(name), preset.experts_key), save,
                 lambda: time.monotonic() - last >= SAVE_EVERY)


def _clear(preset: Preset) -> None:
    """Remove the states: the record stands for them now, in all processes."""
    barrier()
    for path in preset.experts.glob("state-*.safetensors") if is_main() else ():
        path.unlink(missing_ok=True)


def _train(preset: Preset, prepared: Prepared) -> dict:
    c, noise = preset.config, preset.noise
    recipe = fields(Recipe, c.experts)
    shown = 0

    def on_epoch(epoch: int, r_mean: float, rows: list[dict]) -> None:
        nonlocal shown
        advance(epoch + 1 - shown, val_r_mean=r_mean)
        shown = epoch + 1
        for row in rows:
            watch.write(f"{row['generation']}/{row['expert']}{row['network']}", row["epoch"],
                        {name: value for name, value in row.items() if name not in _NO_METRICS})

    with contextlib.closing(writers(c, preset.experts)) as watch:
        with progress(f"experts ({c.experts.recipe}, noise {noise.label})",
                      recipe.epochs + (recipe.teacher_epochs if recipe.teacher_count else 0), "epochs") as advance:
            trained = train_experts(
                prepared.model, prepared.train(noise), prepared.val, recipe, count=c.experts.count, seed=c.run.seed,
                keep=snapshots_kept(c), rate=_rate_to_correct(recipe, noise),
                mismatched=noise.mismatched, on_epoch=on_epoch, shelf=_shelf(preset),
            )
        val, test = (scores(prepared.model, trained.best, split) for split in (prepared.val, prepared.test))
        for n, (on_val, on_test) in enumerate(zip(val, test, strict=True)):
            watch.write("scores", n, {"val_r_mean": on_val[-1], **dict(zip(METRICS, on_test, strict=True))})
    for n, snapshots in enumerate(trained.snapshots):
        save_trajectory(preset.experts / f"net_{n:02d}", [jax.tree.map(np.asarray, s) for s in snapshots],
                        key=preset.experts_key, dtype=c.experts.store_dtype, overwrite=True)
    write_lines(preset.experts / "log.jsonl", trained.log)
    _write_array(preset.experts / "division.npy", trained.clean_probability)
    _write_array(preset.experts / "right.npy", np.packbits(trained.right, axis=-1))
    record = {
        "key": preset.experts_key, "recipe": c.experts.recipe, "noise": noise.sha256,
        "networks": len(trained.snapshots), "snapshots": len(trained.snapshots[0]),
        "metrics": METRICS, "val": val.tolist(), "test": test.tolist(),
        "rate": {"true": noise.true_rate, "estimated": None},
        "certificate_inputs": None if noise.true_rate is None else _certificate_inputs(recipe, noise.true_rate,
                                                                                       c.model.tau),
    }
    write_json(preset.experts / "experts.json", record)
    _clear(preset)
    return record


def _estimated(preset: Preset, prepared: Prepared, record: dict) -> dict:
    """The record with the noise rate estimated, and the certificate at that rate where no other is known."""
    c, noise = preset.config, preset.noise
    recipe = fields(Recipe, c.experts)
    found = noise_rate(prepared.model, prepared.train(noise), prepared.val, recipe, seed=c.run.seed,
                       shelf=_shelf(preset))
    record = {**record, "rate": {**record["rate"], "estimated": found._asdict()}}
    if noise.true_rate is None:
        record["certificate_inputs"] = _certificate_inputs(recipe, found.eta, c.model.tau)
    write_json(preset.experts / "experts.json", record)
    _clear(preset)
    return record


def _rate_to_correct(recipe: Recipe, noise: Noise) -> float:
    """eta for the recipes that undo noise by its rate: the truth where it is known, else what is believed."""
    if noise.true_rate is not None:
        return noise.true_rate
    if (recipe.debias or recipe.rescale_step) and not noise.rate:
        raise UserError("experts.debias and experts.rescale_step correct for a rate that natural noise does not tell; "
                        "set noise.rate to what you believe (mdw experts with another recipe estimates it).")
    return noise.rate


def _certificate_inputs(recipe: Recipe, rate: float, tau: float) -> dict:
    """What the certificate (Fact C) says of each track's loss at this noise rate."""
    entry = {}
    for track, loss, q in (("clean", recipe.clean_loss, recipe.clean_q),
                           ("tolerant", recipe.tolerant_loss, recipe.tolerant_q)):
        low, high = certificate.sum_bounds(loss, recipe.batch, q, tau)
        entry[track] = {"loss": loss, "q": q, "sum_low": float(low), "sum_high": float(high),
                        "excess_risk_bound": float(certificate.excess_risk_bound(loss, recipe.batch, rate, q, tau))}
    return {"eta": rate, "batch": recipe.batch, "tracks": entry}
