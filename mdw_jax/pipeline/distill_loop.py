"""The distillation of one set: from its last checkpoint, step by step, to the set with the best score on val."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.config.options import PROTOTYPES
from mdw_jax.data.augment import augment
from mdw_jax.data.resizing import enlarged
from mdw_jax.errors import UserError
from mdw_jax.io import image_history
from mdw_jax.io.checkpoint import load_checkpoint, save_checkpoint
from mdw_jax.io.distilled_set import DistilledSet
from mdw_jax.io.records import read_lines, write_lines
from mdw_jax.io.trajectory import open_trajectory, read_snapshot
from mdw_jax.method.distill import DistillState, finite_checks, init_state, schedule
from mdw_jax.method.objective import Method, method_of, overshooting
from mdw_jax.pipeline.candidates import CANDIDATES, Candidate, score_candidate
from mdw_jax.pipeline.correspondence import CorrespondenceTeachers
from mdw_jax.pipeline.experts import experts_stage
from mdw_jax.pipeline.metrics import open_writers
from mdw_jax.pipeline.online_network import OnlineNetwork
from mdw_jax.pipeline.outer_step import (
    compile_in_background,
    compiled_outer_step,
    compiled_pixel_weights,
    prepare_next,
)
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun
from mdw_jax.pipeline.prototypes import prototype_pairs
from mdw_jax.pipeline.sets import real_pairs, to_distilled_set
from mdw_jax.pipeline.start import start_rows
from mdw_jax.runtime import preemption
from mdw_jax.runtime.processes import barrier, broadcast_from_main, is_main
from mdw_jax.runtime.progress import progress
from mdw_jax.runtime.pytree import stack
from mdw_jax.runtime.rng import named_key

CHECKPOINT = "checkpoint.safetensors"  # where an interrupted distillation goes on
LAST_REGULAR = "checkpoint-good.safetensors"  # with restarts allowed: where a set that diverged goes back to
HISTORY = "history.jsonl"  # metrics of the outer steps so far
logger = logging.getLogger(__name__)


class Diverged(Exception):
    """A value of an outer step was not finite.

    Attributes:
        step: the outer step.
        first: name of the first tensor that was not finite.
        loss: the matching loss of that step.
    """

    def __init__(self, step: int, first: str, loss: float):
        super().__init__(step, first, loss)
        self.step, self.first, self.loss = step, first, loss


class LoopState(NamedTuple):
    """Everything that changes during a distillation: the contents of a checkpoint.

    Attributes:
        distillation: what is learned, its moving average, and the optimizer's state.
        best: the average with the best mean r_mean on val so far.
        best_val: that r_mean; -1 before the first evaluation.
        evaluated: outer steps done at the last evaluation; -1 before the first.
        tau: the temperature at which the teachers of P are read; the first of `distill.correspondence_tau` until val has
            chosen.
        pixel_weights: (M, H, W, 1) Grad-CAM weights of the images.
        images: (moments, n, h, w, C) uint8, the first images at a few moments of the distillation.
        restarts: how often the set was restarted after it diverged.
        restarted_at: outer steps done at the checkpoint of the last restart.
    """

    distillation: DistillState
    best: Any
    best_val: Any
    evaluated: Any
    tau: Any
    pixel_weights: Any
    images: np.ndarray
    restarts: Any
    restarted_at: Any

    @property
    def steps_done(self) -> int:
        """Outer steps done so far."""
        return int(self.distillation.step)


class Distillation(NamedTuple):
    """What a distillation ends with.

    Attributes:
        distilled: the candidate with the best score on val.
        metrics: of every outer step.
        history: the image history.
        candidates: all that were scored, in order.
        chosen: the one that `distilled` is.
    """

    distilled: DistilledSet
    metrics: list[dict]
    history: dict[str, np.ndarray]
    candidates: list[Candidate]
    chosen: Candidate


def distill_set(run: PresetRun, prepared: Prepared, index: int, directory: Path, key: str) -> Distillation:
    """Distill set `index` of a preset, from its last checkpoint if there is one.

    A set that diverges goes back to its last regular checkpoint with smaller learning rates, as often as
    `distill.restarts` allows, and then is an error, or ends as it is (`distill.on_divergence`).

    Args:
        run: the preset.
        prepared: data and model.
        index: number of the set; sets of one preset differ by their random draws.
        directory: where checkpoints are kept on the way.
        key: identifies the set in its checkpoints.

    Raises:
        UserError: the set diverged and may not restart any more.
    """
    networks = 0
    if run.spec.needs_experts:
        with compile_in_background(run, prepared):
            networks = experts_stage(run, prepared)["networks"]
    loop = DistillationLoop(run, prepared, index, directory, key, networks)
    loop.restore()
    while True:
        try:
            loop.run_outer_steps()
            return loop.result()
        except Diverged as error:
            barrier()
            if loop.may_end(error):
                return loop.result()
            loop.restart(error)


class DistillationLoop:
    """One distillation: its state, and what is done at each outer step."""

    def __init__(self, run: PresetRun, prepared: Prepared, index: int, directory: Path, key: str, networks: int):
        """As `distill_set`; networks: how many experts there are, `net_00` and on."""
        self.run, self.prepared, self.index, self.directory, self.key = run, prepared, index, directory, key
        self.settings, self.seed = run.config.distill, run.config.run.seed
        self.trajectories = [open_trajectory(run.experts.path / f"net_{n:02d}", key=run.experts.key)
                             for n in range(networks)]
        # What an outer step reads beside the state.
        covariance = self.settings.objective == "covariance"
        self.arguments = OnlineNetwork(run, prepared, index).arguments if covariance else self.load_snapshots
        self.moments = image_history.moments(self.settings.steps)  # outer steps done when images are recorded
        self.pending: tuple[int, dict] | None = None  # a step and its metrics that are still on the device
        self.metrics: list[dict] = []
        self.warned = False
        self.candidates: list[Candidate] = []
        self.teachers = CorrespondenceTeachers(run, prepared) if self.settings.correspondence_init == "experts" else None

    # The state: from its start, from checkpoints and to them.

    def initial_state(self) -> LoopState:
        """The state before the first outer step: real pairs, or prototypes of them."""
        run, settings, name = self.run, self.settings, self.run.name
        if settings.init == PROTOTYPES:
            images, texts = prototype_pairs(run, self.prepared, self.index, self.directory, self.key)
        else:
            rows = start_rows(run, self.prepared, self.index)
            images, texts = real_pairs(self.prepared, run.noise, rows, settings.image_size)
        images = np.asarray(augment(named_key(self.seed, "init_augment", name, self.index), images, settings.init_augment))
        key = named_key(self.seed, "correspondence", name, self.index)
        state = init_state(key, method_of(run.config), images, texts)
        return LoopState(
            distillation=state, best=jax.tree.map(jnp.copy, state.average), best_val=jnp.float32(-1),
            evaluated=jnp.int32(-1), tau=jnp.float32(settings.correspondence_tau[0]),
            pixel_weights=jnp.ones((*images.shape[:-1], 1)),
            images=image_history.begin(self.seen(images), settings.steps), restarts=jnp.int32(0),
            restarted_at=jnp.int32(0))

    def restore(self) -> None:
        """Take the state and the metrics from the last checkpoint, or begin."""
        state = self.initial_state()
        self._start_at(load_checkpoint(self.directory / CHECKPOINT, state, self.key) or state)
        if self.settings.restarts and broadcast_from_main(lambda: not (self.directory / LAST_REGULAR).exists()):
            self._save(LAST_REGULAR)
        history = self.directory / HISTORY
        self.metrics = read_lines(history) if history.exists() else []
        candidates = self.directory / CANDIDATES
        self.candidates = [Candidate(**row) for row in read_lines(candidates)] if candidates.exists() else []

    def _start_at(self, state: LoopState) -> None:
        """Go on from a state, with learning rates that fit the number of its restarts."""
        self.state = state
        self.candidates = [row for row in self.candidates if row.step <= int(state.evaluated)]
        scale = self.settings.restart_factor ** int(state.restarts)
        self.method = scale_learning_rates(method_of(self.run.config), scale)

    def save_state(self, regular: bool = False) -> None:
        """Write the checkpoint and the metrics so far; regular: also as the one that a restart goes back to."""
        self.flush_metrics()
        # Metrics first: those that a checkpoint does not know yet are cut, missing ones could not be recovered.
        write_lines(self.directory / HISTORY, self.metrics)
        write_lines(self.directory / CANDIDATES, [row._asdict() for row in self.candidates])
        if regular:
            self._save(LAST_REGULAR)
        self._save(CHECKPOINT)

    def _save(self, name: str) -> None:
        if is_main():
            save_checkpoint(self.directory / name, self.state, self.key)

    def may_end(self, error: Diverged) -> bool:
        """Whether a set that diverged ends with its best candidate so far, as in published code, which leaves its loop."""
        if self.settings.on_divergence == "stop" or int(self.state.restarts) < self.settings.restarts:
            return False
        self.metrics = self.metrics[:error.step]
        logger.warning("%s set %d diverged at outer step %d: the first value that was not finite is %s; it ends with the "
                       "best of its candidates until then.", self.run.name, self.index, error.step, error.first)
        return True

    def restart(self, error: Diverged) -> None:
        """Go back to the last regular checkpoint with smaller learning rates.

        Raises:
            UserError: no restart is left; the last good state and the metrics stay in the directory.
        """
        settings, done = self.settings, int(self.state.restarts)
        if done >= settings.restarts:
            if not (self.directory / CHECKPOINT).exists():
                self.state = self.initial_state()
                self._save(CHECKPOINT)
            write_lines(self.directory / HISTORY, self.metrics)
            raise UserError(self._divergence_message(error, done)) from None
        state = load_checkpoint(self.directory / LAST_REGULAR, self.initial_state(), self.key)
        step = state.steps_done
        self._start_at(state._replace(restarts=jnp.int32(done + 1), restarted_at=jnp.int32(step)))
        if is_main():
            logger.warning(
                "%s set %d diverged at outer step %d: the first value that was not finite is %s; restart %d of %d goes "
                "back to step %d with learning rates times %.2g.", self.run.name, self.index, error.step, error.first,
                done + 1, settings.restarts, step, settings.restart_factor ** (done + 1))

    def _divergence_message(self, error: Diverged, restarts: int) -> str:
        after = f" after {restarts} restart{'s' * (restarts > 1)}" if restarts else ""
        return (f"distillation of {self.run.name} set {self.index} diverged at outer step {error.step}{after}: the "
                f"first value that was not finite is {error.first} (loss {error.loss:.4g}). Its last good state and "
                f"its metrics are in '{self.directory}' ({CHECKPOINT}, {HISTORY}): with "
                f"distill.restarts={restarts + 1} the same command goes on from there with smaller steps, and with "
                "lower learning rates in config.distill it starts again, in another directory.")

    # The outer steps.

    def run_outer_steps(self) -> None:
        """Do the outer steps that are left.

        Raises:
            Diverged: a value was not finite.
        """
        first, total = self.state.steps_done, self.settings.steps
        self.metrics, self.pending = self.metrics[:first], None
        self.outer_step = compiled_outer_step(self.prepared.model, self.method)
        unrolled = self.method.inner_steps if self.method.objective == "trajectories" else 0
        self.finite_checks = finite_checks(self.state.distillation.learned, unrolled)
        with (progress(f"distill {self.run.name} {self.index}", total, "steps") as advance,
              contextlib.closing(open_writers(self.run.config, self.directory)) as self.writer,
              preemption.save_on_interrupt(self.save_state)):
            advance(first)
            for row in self.metrics:
                self.log(row)
            if self.evaluation_due(first):  # it was stopped in the middle of an evaluation
                self.evaluate_candidates(first)
            for step, arguments in prepare_next(self.arguments, range(first, total)):
                preemption.raise_if_interrupted()
                if self.pixel_weights_due(step):
                    self.refresh_pixel_weights(targets=arguments[1])
                advance(1, loss=self.step(step, *arguments))
                if step + 1 in self.moments:
                    self.record_images(step + 1)
                if self.evaluation_due(step + 1):
                    self.evaluate_candidates(step + 1)

    def load_snapshots(self, step: int) -> tuple:
        """The snapshots at which the trajectories of an outer step start and end, each stacked on a leading axis."""
        settings = self.settings
        networks, starts = schedule(self.seed, self.index, step, settings.trajectories, len(self.trajectories),
                                    settings.max_start_epoch, settings.expert_order)
        ends = [start + settings.match_epochs for start in starts]
        return tuple(stack([read_snapshot(self.trajectories[n], epoch)
                            for n, epoch in zip(networks, epochs, strict=True)]) for epochs in (starts, ends))

    def pixel_weights_due(self, step: int) -> bool:
        """Whether Grad-CAM weights are computed before this outer step.

        They are after every regular checkpoint too, so that a run that goes on and one that is resumed are the same.
        """
        every, regular = self.method.ceo_every, self.settings.checkpoint_every
        return self.method.ceo and (step % every == 0 or step % regular == 0)

    def refresh_pixel_weights(self, targets) -> None:
        """Compute the Grad-CAM weights of the images with the first of the target networks."""
        pixel_weights = compiled_pixel_weights(self.prepared.model, self.method, self.settings.pairs)
        network = jax.tree.map(lambda x: x[0], targets)
        self.state = self.state._replace(pixel_weights=pixel_weights(network, self.state.distillation.learned))

    def step(self, step: int, *arguments):
        """Do one outer step; returns its loss, which may still be on its way on the device."""
        key = named_key(self.seed, "distill", self.run.name, self.index, step)
        state, metrics = self.outer_step(self.state.distillation, *arguments, self.state.pixel_weights, key)
        self.state = self.state._replace(distillation=state)
        self.flush_metrics()  # of the step before, while the device works on this one
        self.pending = step, metrics
        return metrics["loss"]

    def flush_metrics(self) -> None:
        """Take the metrics of the latest outer step from the device and log them.

        Raises:
            Diverged: a value of that step was not finite.
        """
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        values = {name: float(value) for name, value in metrics.items()}
        first_nonfinite = int(values.pop("first_nonfinite"))
        row = {"step": step, **values}
        restarts = int(self.state.restarts)
        if restarts and step == int(self.state.restarted_at):
            row["restart"] = restarts
        self.metrics.append(row)
        self.log(row)
        self.warn_of_a_short_segment(step, values["loss"])
        if first_nonfinite >= 0:
            raise Diverged(step, self.finite_checks[first_nonfinite], values["loss"])

    def warn_of_a_short_segment(self, step: int, loss: float) -> None:
        """Warn, once, where students overshoot the experts' segment so far that the set probably diverges."""
        if not self.warned and (overshoot := overshooting(self.method, loss)):
            self.warned = True
            logger.warning(
                "%s set %d, outer step %d: students end %.3g times as far from the experts' target as they began: the "
                "experts' segment is short for their steps, and at the fixed learning rates of distill.optimizer=sgd the "
                "set then usually diverges; raise experts.lr or distill.match_epochs, or lower distill.lr_images and "
                "distill.lr_texts.", self.run.name, self.index, step, overshoot)

    def log(self, row: dict) -> None:
        """Send the metrics of one outer step to metrics.csv and the other writers."""
        self.writer.write("distill", row["step"], {name: value for name, value in row.items() if name != "step"})

    def record_images(self, done: int) -> None:
        """Keep small copies of the first images, after `done` outer steps."""
        images = self.seen(self.state.distillation.average["images"])
        self.state.images[self.moments.index(done)] = image_history.thumbnails(images)

    def seen(self, images):
        """The first images, or their pixel weights, at the size at which models see them, for the image history."""
        return enlarged(images[:image_history.IMAGES], method_of(self.run.config).seen_size)

    def evaluation_due(self, done: int) -> bool:
        """Whether candidates are scored after `done` outer steps: at each regular checkpoint, but not twice.

        The start is one where P comes from teachers, where nothing else is done, and where a set that diverges has to
        keep something (published code evaluates at iteration 0 as well).
        """
        if done == 0:
            regular = self.teachers is not None or self.settings.steps == 0 or self.settings.on_divergence == "keep"
        else:
            regular = done % self.settings.checkpoint_every == 0 or done == self.settings.steps
        return regular and done > int(self.state.evaluated)

    def evaluate_candidates(self, done: int) -> None:
        """Score the candidates after `done` outer steps on val, keep the best so far, and save the state."""
        self.flush_metrics()
        scored = []
        for name, tau, learned in self.candidates_after(done):
            val, lr_scale = score_candidate(self.run, self.prepared, learned, self.method, self.lr_scale(done))
            self.candidates.append(Candidate(done, name, tau, val, lr_scale))
            scored.append((val, tau, learned))
            if val > self.state.best_val:
                self.state = self.state._replace(best=jax.tree.map(jnp.copy, learned), best_val=jnp.float32(val))
            if done:
                self.metrics[-1] |= {"val_r_mean" if name != "teachers" else "val_r_mean_teachers": val,
                                     "lr_scale" if name != "teachers" else "lr_scale_teachers": lr_scale}
        if done:
            self.log(self.metrics[-1])
        elif self.teachers is not None:
            self.start_from(*max(scored, key=lambda row: row[0])[1:])
        self.state = self.state._replace(evaluated=jnp.int32(done))
        self.save_state(regular=self.settings.restarts > 0)

    def lr_scale(self, done: int) -> float | None:
        """The one scale of step sizes to score candidates with after `done` outer steps; None to search for it.

        It is searched for at the start, for each temperature by itself, as softer targets want larger steps; or else at
        the first checkpoint. Later candidates take that of the best one before them.
        """
        earlier = [row for row in self.candidates if row.step < done]
        return max(earlier, key=lambda row: row.val_r_mean).lr_scale if earlier else None

    def candidates_after(self, done: int) -> Iterator[tuple[str, float | None, dict]]:
        """(where P is from, temperature or None, learned tensors) of each candidate after `done` outer steps."""
        average = self.state.distillation.average
        if done == 0 and self.teachers is not None:
            temperatures = self.settings.correspondence_tau
        else:
            yield "learned" if self.settings.correspondence != "identity" else "identity", None, average
            # The setting itself: the state holds it in float32.
            nearest = min(self.settings.correspondence_tau, key=lambda tau: abs(tau - float(self.state.tau)))
            temperatures = [nearest] if self.teachers is not None else []
        for tau in temperatures:
            p = self.teachers.correspondence(average, self.method, float(tau))
            yield "teachers", float(tau), {**average, "correspondence": p}

    def start_from(self, tau: float, learned: dict) -> None:
        """Begin the outer steps with the P of `learned`."""
        state = self.state.distillation
        parts = {name: {**getattr(state, name), "correspondence": jax.tree.map(jnp.copy, learned["correspondence"])}
                 for name in ("learned", "average")}
        self.state = self.state._replace(distillation=state._replace(**parts), tau=jnp.float32(tau))

    def result(self) -> Distillation:
        """The best candidate and the record of how it came about."""
        history: dict[str, np.ndarray] = {"steps": np.array(self.moments, np.int32), "images": self.state.images}
        if self.method.ceo:
            history["weights"] = image_history.weight_maps(self.seen(self.state.pixel_weights))
        chosen = max(self.candidates, key=lambda row: row.val_r_mean)
        return Distillation(to_distilled_set(self.state.best, self.method), self.metrics, history, self.candidates, chosen)


def scale_learning_rates(method: Method, scale: float) -> Method:
    """`method` with all learning rates of the outer steps times `scale`."""
    rates = ("lr_images", "lr_texts", "lr_correspondence", "lr_inner_lr")
    return dataclasses.replace(method, **{name: scale * getattr(method, name) for name in rates})
