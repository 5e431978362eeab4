"""Experts of a preset: train them, store what distillation, coresets and reports read."""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mdw_jax.config.sections import fields
from mdw_jax.data.noise import Noise
from mdw_jax.data.stored_rows import select_rows
from mdw_jax.errors import UserError
from mdw_jax.io.checkpoint import read_checkpoint, save_checkpoint
from mdw_jax.io.checksums import write_listed_json
from mdw_jax.io.locks import locked
from mdw_jax.io.metrics import MetricsWriter
from mdw_jax.io.records import complete, write_array, write_lines
from mdw_jax.io.scores import METRICS
from mdw_jax.io.trajectory import save_trajectory
from mdw_jax.method import certificate
from mdw_jax.method.caption_search import search_note
from mdw_jax.method.expert_state import Checkpointer, ExpertTrainState
from mdw_jax.method.expert_step import Recipe
from mdw_jax.method.experts import TrainedExperts, expert_epochs
from mdw_jax.method.filtering import spread, spread_bits
from mdw_jax.method.noise_rate import noise_rate
from mdw_jax.method.retrieval import scores
from mdw_jax.method.teacher_embeddings import form_embeddings
from mdw_jax.method.teachers import Teacher
from mdw_jax.pipeline.closed_form import closed_form_stage, load_closed_form
from mdw_jax.pipeline.filter import kept_rows, training_inputs
from mdw_jax.pipeline.metrics import open_writers
from mdw_jax.pipeline.prepared import Prepared, backbone_features
from mdw_jax.pipeline.preset_run import PresetRun, StageFolder, last_snapshot
from mdw_jax.reporting.verdict import below_closed_form
from mdw_jax.reporting.verdict_results import without_closed_form
from mdw_jax.runtime.may_train import require_training
from mdw_jax.runtime.processes import barrier, is_main
from mdw_jax.runtime.progress import progress

SAVE_EVERY = 300.0  # seconds between saved states; a kill without warning costs that much work, and the epoch it is in
_RECORD_FIELDS = ("recipe", "networks", "snapshots", "val", "test", "rate", "certificate_inputs")
_LABELS = ("generation", "epoch", "expert", "network")  # columns of the log that are no metrics


def experts_stage(run: PresetRun, prepared: Prepared) -> dict:
    """Train the experts of a preset, and estimate the noise rate if it is unknown; nothing is done twice.

    Returns:
        Their record, `experts.json`.

    Raises:
        UserError: training diverges, the recipe needs a noise rate that is not set, or stored files are damaged.
    """
    with locked(run.experts.path.with_suffix(".lock")):  # processes of one sweep may want the same experts
        record = complete(run.experts.path / "experts.json", run.experts.key, *_RECORD_FIELDS)
        if record is None:
            require_training(f"the experts of the preset {run.name} are")
            record = _train(run, prepared)
        else:
            ExpertCheckpointer(run.experts).clear_after_kill(record)
        estimate = run.noise.true_rate is None or run.config.noise.estimate
        if estimate and run.filter is None and record["rate"]["estimated"] is None:
            require_training(f"the networks that estimate the noise rate of the preset {run.name} are")
            record = _estimate_noise_rate(run, prepared, record)
        return record


def kept_pairs(run: PresetRun, prepared: Prepared) -> np.ndarray:
    """(n,) rows of the training pairs that a preset sees, all K without a filter; the filter is made if it is missing."""
    return kept_rows(run, prepared, experts_stage)


class ExpertCheckpointer(Checkpointer):
    """Keeps states of the training in the experts' directory, as `state-<generation>.safetensors`.

    With several processes, process 0 writes.

    Args:
        experts: the directory, and the key that the states belong to.
    """

    def __init__(self, experts: StageFolder):
        self._experts = experts
        self._last_save = time.monotonic()

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        return read_checkpoint(self._path(name), self._experts.key)

    def save(self, name: str, state: ExpertTrainState) -> None:
        if is_main():
            save_checkpoint(self._path(name), state, self._experts.key)
        self._last_save = time.monotonic()

    def should_save(self) -> bool:
        return time.monotonic() - self._last_save >= SAVE_EVERY

    def folder(self) -> Path:
        return self._experts.path / f"teachers-{jax.process_index()}"

    def clear(self) -> None:
        """Remove all states and teachers' embeddings, once every process has the record that replaces them."""
        barrier()
        _remove(self.folder())
        for path in self._experts.path.glob("state-*.safetensors") if is_main() else ():
            path.unlink(missing_ok=True)

    def clear_after_kill(self, record: dict) -> None:
        """Remove what is left where a process was killed right after it had written `record`, the last of the stage.

        That is also what processes left that there are no more, but not what an estimation of the noise rate goes on from.
        """
        if not is_main():
            return
        for path in self._experts.path.glob("teachers-*"):
            _remove(path)
        estimated = isinstance(record["rate"], dict) and record["rate"].get("estimated") is not None
        for path in self._experts.path.glob("state-*.safetensors"):
            if estimated or not path.name.startswith("state-rate-"):
                with contextlib.suppress(OSError):  # a run that can only be read
                    path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._experts.path / f"state-{name.replace(' ', '-')}.safetensors"


def _remove(folder: Path) -> None:
    """Remove a directory of teachers' embeddings, but for what somebody else put there."""
    for path in () if folder.is_symlink() else folder.glob("*.npy"):
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):  # it is not empty, or not there
        folder.rmdir()


def _train(run: PresetRun, prepared: Prepared) -> dict:
    """Train the experts and store them; the record comes last."""
    recipe, checkpointer = fields(Recipe, run.config.experts), ExpertCheckpointer(run.experts)
    with contextlib.closing(open_writers(run.config, run.experts.path)) as metrics:
        kept = kept_pairs(run, prepared)
        trained = _train_epochs(run, prepared, recipe, kept, checkpointer, metrics)
        val, test = (scores(prepared.model, trained.best, split) for split in (prepared.val, prepared.test))
        for n, (on_val, on_test) in enumerate(zip(val, test, strict=True)):
            metrics.write("scores", n, {"val_r_mean": on_val[-1], **dict(zip(METRICS, on_test, strict=True))})
    _store(run, trained, kept)
    rate = None if run.noise.mismatched is None else float(run.noise.mismatched[kept].mean())
    certified = rate is not None and run.filter is None  # mismatches that a filter leaves are not random
    record = {
        "key": run.experts.key, "recipe": run.config.experts.recipe, "noise": run.noise.sha256,
        "networks": len(trained.snapshots), "snapshots": len(trained.snapshots[0]),
        "metrics": METRICS, "val": val.tolist(), "test": test.tolist(),
        "rate": {"true": rate, "estimated": None},
        "certificate_inputs": _certificate_inputs(recipe, rate, run.config.model.tau) if certified else None,
    }
    write_listed_json(run.experts.path / "experts.json", record)
    checkpointer.clear()
    if recipe.closed_form:
        form = closed_form_stage(run, prepared, kept)["val"][-1]
        words = below_closed_form(float(np.mean(val, 0)[-1]), form, without_closed_form(run.config.to_dict()))
        if words and is_main():
            print(f"experts: {words}.", flush=True)
    return record


def _train_epochs(run: PresetRun, prepared: Prepared, recipe: Recipe, kept: np.ndarray, checkpointer: Checkpointer,
                  metrics: MetricsWriter) -> TrainedExperts:
    """Train all epochs on the kept pairs, the teachers' first, and show and log each of them."""
    config, noise = run.config, run.noise
    epochs = recipe.epochs + recipe.trajectory_epochs + (recipe.teacher_epochs if recipe.teacher_count else 0)
    epochs_shown = rows_written = 0
    note = search_note(recipe.recovery_search, len(prepared.train_images), len(kept)) if recipe.recovery_weight else ""
    if note and is_main():
        print(f"experts: {note}", flush=True)
    with progress(f"experts ({config.experts.recipe}, noise {noise.label})", epochs, "epochs") as advance:
        for trained in expert_epochs(
            prepared.model, training_inputs(run, prepared, kept), prepared.val, recipe, count=config.experts.count,
            seed=config.run.seed, keep=last_snapshot(config), rate=_rate_to_correct_for(recipe, noise),
            mismatched=None if noise.mismatched is None else noise.mismatched[kept],
            first_teacher=_closed_form_teacher(run, prepared, kept, checkpointer) if recipe.closed_form else None,
            checkpointer=checkpointer,
        ):
            rows = trained.log[rows_written:]  # resumed experts bring the rows of several epochs
            if not rows:
                continue
            latest = [row["val_r_mean"] for row in rows[-len(trained.best):]]
            advance(trained.epochs - epochs_shown, val_r_mean=float(np.mean(latest)))
            for row in rows:
                metrics.write(f"{row['generation']}/{row['expert']}{row['network']}", row["epoch"],
                              {name: value for name, value in row.items() if name not in _LABELS})
            epochs_shown, rows_written = trained.epochs, len(trained.log)
    return trained


def _closed_form_teacher(run: PresetRun, prepared: Prepared, kept: np.ndarray, checkpointer: Checkpointer) -> Teacher:
    """The closed form of the kept pairs as a teacher."""
    stored = load_closed_form(run, prepared, kept)
    features, texts = backbone_features(prepared)[1], select_rows(prepared.texts.train, kept)
    images, captions = form_embeddings(stored.form, features, texts, checkpointer.folder)
    return Teacher(images, captions, stored.clean_probability[kept], stored.form)


def _store(run: PresetRun, trained: TrainedExperts, kept: np.ndarray) -> None:
    """Write everything but the record; arrays over pairs with an entry for every pair, kept or not."""
    directory, key = run.experts
    pairs = len(run.noise.image_of)
    for n, (snapshots, best) in enumerate(zip(trained.snapshots, trained.best, strict=True)):
        save_trajectory(directory / f"net_{n:02d}", [_on_host(params) for params in snapshots], key=key,
                        dtype=run.config.experts.store_dtype, overwrite=True)
        # float32 whatever `store_dtype` is: exactly the network whose scores are in the record.
        save_trajectory(directory / f"best_{n:02d}", [_on_host(best)], key=key, overwrite=True)
    write_lines(directory / "log.jsonl", trained.log)
    write_array(directory / "division.npy", spread(trained.clean_probability, kept, pairs))
    write_array(directory / "correct.npy", spread_bits(trained.correct_bits, kept, pairs))


def _on_host(params) -> Any:
    return jax.tree.map(np.asarray, params)


def _estimate_noise_rate(run: PresetRun, prepared: Prepared, record: dict) -> dict:
    """Add the estimated noise rate to the record, and the certificate at that rate where the true one is unknown."""
    config, checkpointer = run.config, ExpertCheckpointer(run.experts)
    recipe = fields(Recipe, config.experts)
    estimate = noise_rate(prepared.model, prepared.train(run.noise), prepared.val, recipe, seed=config.run.seed,
                          checkpointer=checkpointer)
    record = {**record, "rate": {**record["rate"], "estimated": estimate._asdict()}}
    if run.noise.true_rate is None:  # [0, 1]: of too few pairs, nothing is known, and nothing bounded
        known = (estimate.low, estimate.high) != (0, 1)
        record["certificate_inputs"] = _certificate_inputs(recipe, estimate.eta, config.model.tau) if known else None
    write_listed_json(run.experts.path / "experts.json", record)
    checkpointer.clear()
    return record


def _rate_to_correct_for(recipe: Recipe, noise: Noise) -> float:
    """eta for recipes that correct for it: the true rate, or `noise.rate` where the true one is unknown."""
    if noise.true_rate is not None:
        return noise.true_rate
    if (recipe.debias or recipe.rescale_step) and not noise.rate:
        raise UserError("experts.debias and experts.rescale_step correct for the noise rate, which natural noise does "
                        "not tell; set noise.rate to what you believe (mdw experts with another recipe estimates it).")
    return noise.rate


def _certificate_inputs(recipe: Recipe, rate: float, tau: float) -> dict:
    """Bounds of each track's loss at this noise rate (Proposition 3)."""
    tracks = {}
    for track, loss, q in (("clean", recipe.clean_loss, recipe.clean_q),
                           ("tolerant", recipe.tolerant_loss, recipe.tolerant_q)):
        tracks[track] = {"loss": loss, "q": q}
        if not certificate.has_certificate(loss):
            tracks[track]["certificate"] = certificate.NO_CERTIFICATE
            continue
        low, high = certificate.sum_bounds(loss, recipe.batch, q, tau)
        bound = certificate.excess_risk_bound(loss, recipe.batch, rate, q, tau)
        tracks[track] |= {"sum_low": float(low), "sum_high": float(high), "excess_risk_bound": float(bound)}
    return {"eta": rate, "batch": recipe.batch, "tracks": tracks}
