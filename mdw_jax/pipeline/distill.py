"""Sets of a preset: chosen (coresets) or distilled, saved with all that says where they came from."""

import contextlib
import dataclasses
import functools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.config.presets import CORESETS, DISTILLED
from mdw_jax.config.sections import fields
from mdw_jax.errors import UserError
from mdw_jax.io import image_history
from mdw_jax.io.checkpoint import load_checkpoint, save_checkpoint
from mdw_jax.io.distilled_set import CARD, NEAREST, DistilledSet, load_distilled, read_captions, save_distilled
from mdw_jax.io.files import digest, write_json
from mdw_jax.io.metrics import writers
from mdw_jax.io.records import _read_history, complete, write_lines
from mdw_jax.io.trajectory import open_trajectory, read_snapshot
from mdw_jax.method import coresets, grad_cam
from mdw_jax.method.distill import Method, finite_checks, init_state, make_outer_step, outer_shapes, schedule
from mdw_jax.method.students import Protocol, StudentData, evaluate
from mdw_jax.models.embedding import compiled_inputs, nearest_captions
from mdw_jax.models.jit import jit_with_frozen
from mdw_jax.pipeline.coreset import coreset, pairs_asked, real_pairs
from mdw_jax.pipeline.experts import experts_stage
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import Preset, division_of
from mdw_jax.runtime import preemption
from mdw_jax.runtime.processes import barrier, broadcast_from_main, is_main, several_processes
from mdw_jax.runtime.progress import progress
from mdw_jax.runtime.pytree import stack
from mdw_jax.runtime.rng import named_generator, named_key

# While a set is distilled: where to go on; with restarts allowed, the last regular one, where to go back to; metrics.
CHECKPOINT, GOOD, HISTORY = "checkpoint.safetensors", "checkpoint-good.safetensors", "history.jsonl"


class _Diverged(Exception):
    """step: the outer step. first: which tensor was the first that was not finite. loss: of that step."""

    def __init__(self, step: int, first: str, loss: float):
        super().__init__(step, first, loss)
        self.step, self.first, self.loss = step, first, loss


def set_folder(preset: Preset, index: int) -> Path:
    """Where distilled set `index` of a preset lives."""
    return preset.sets / f"set_{index}"


def distill_stage(preset: Preset, prepared: Prepared) -> list[Path]:
    """Distil (or, for a coreset, choose) every set of a preset; returns their folders."""
    if preset.name not in DISTILLED:
        return []
    folders = []
    for index in range(preset.config.distill.sets):
        folder = set_folder(preset, index)
        key = digest(preset.sets_key, index)
        if complete(folder / CARD, key) is None:
            if preset.name in CORESETS:
                made, metrics, seen = coreset(preset, prepared, index), [], None
            else:
                made, metrics, seen = _distilled_set(preset, prepared, index, folder, key)
                image_history.save(folder, seen)
            write_lines(folder / "metrics.jsonl", metrics)
            save_distilled(folder, made, {
                "key": key, "preset": preset.name, "set": index, "seed": preset.config.run.seed,
                "noise": {"sha256": preset.noise.sha256, "protocol": preset.noise.protocol,
                          "rate": preset.noise.true_rate, "data": preset.noise.fingerprint},
                "experts": preset.experts_key, "config": _plain(preset.config.to_dict()),
                "log_mel": prepared.pairs.log_mel and dataclasses.asdict(prepared.pairs.log_mel),
            })
        barrier()
        if is_main():
            for name in (CHECKPOINT, GOOD, HISTORY):  # also what a kill right after the card left
                (folder / name).unlink(missing_ok=True)
        broadcast_from_main(lambda: _note_captions(folder, prepared))
        folders.append(folder)
    return folders


def _note_captions(folder: Path, prepared: Prepared) -> None:
    """Write the real captions nearest to a finished set's texts beside it, if those of this very set are not there."""
    sha256 = json.loads((folder / CARD).read_text())["sha256"]
    if read_captions(folder, sha256) is None:
        texts = prepared.read(load_distilled(folder)[0].texts)
        captions = nearest_captions(texts, prepared.texts.train, prepared.pairs.train.captions)
        write_json(folder / NEAREST, {"sha256": sha256, "captions": captions})


def _plain(value):
    """A config as JSON can hold it."""
    return json.loads(json.dumps(value))


def _distilled_set(preset: Preset, prepared: Prepared, index: int, folder: Path, key: str):
    """Set `index`, the metrics of its outer steps and its record; goes on from `folder`'s checkpoint if there is one.

    A set that diverges goes back to its last regular checkpoint with smaller learning rates, as often as
    `distill.restarts` says. Raises UserError when it may not, or no more.
    """
    c, seed = preset.config, preset.config.run.seed
    count = pairs_asked(preset, prepared)
    with _compiling(preset, prepared, count):
        experts = experts_stage(preset, prepared)
    trajectories = [open_trajectory(preset.experts / f"net_{n:02d}", key=preset.experts_key)
                    for n in range(experts["networks"])]

    def begin() -> dict:
        """What is checkpointed, at the start."""
        generator = named_generator(seed, "init", preset.name, index)
        rows = (coresets.random_pairs(generator, preset.noise.image_of, count) if c.distill.init == "random" else
                coresets.clean_pairs(generator, preset.noise.image_of, division_of(preset), count))
        images, texts = real_pairs(preset, prepared, rows)
        state = init_state(named_key(seed, "correspondence", preset.name, index), fields(Method, c.distill), images,
                           texts)
        return {"state": state, "best": jax.tree.map(jnp.copy, state.average), "best_val": jnp.float32(-1),
                "judged": jnp.int32(0), "weights": jnp.ones((*images.shape[:-1], 1)),
                "record": image_history.begin(images, c.distill.steps),
                "restarts": jnp.int32(0), "restarted_at": jnp.int32(0)}

    def segments(step: int):
        """The snapshots at which the trajectories of an outer step begin and end, each stacked."""
        networks, starts = schedule(seed, index, step, c.distill.trajectories, len(trajectories),
                                    c.distill.max_start_epoch)
        ends = [start + c.distill.match_epochs for start in starts]
        return tuple(stack([read_snapshot(trajectories[n], k) for n, k in zip(networks, at, strict=True)])
                     for at in (starts, ends))

    def save(name: str, kept: dict) -> None:
        if is_main():
            save_checkpoint(folder / name, kept, key)

    kept = begin()
    found = load_checkpoint(folder / CHECKPOINT, kept, key)
    kept = found or kept
    if c.distill.restarts and broadcast_from_main(lambda: not (folder / GOOD).exists()):
        save(GOOD, kept)
    history = folder / HISTORY
    metrics = _read_history(history) if history.exists() else []
    while True:
        metrics = metrics[: int(kept["state"].step)]
        try:
            return _outer_steps(preset, prepared, index, folder, kept, metrics, segments, save)
        except _Diverged as bad:
            barrier()
            used = int(kept["restarts"])
            if used >= c.distill.restarts:
                if not (folder / CHECKPOINT).exists():
                    save(CHECKPOINT, begin())
                write_lines(history, metrics)
                raise UserError(_diverged(preset, index, bad, used, folder)) from None
            kept = load_checkpoint(folder / GOOD, begin(), key)
            step = int(kept["state"].step)
            kept |= {"restarts": jnp.int32(used + 1), "restarted_at": jnp.int32(step)}
            if is_main():
                print(f"mdw: {preset.name} set {index} diverged at outer step {bad.step}: {bad.first} went first; "
                      f"restart {used + 1} of {c.distill.restarts} goes back to step {step} with learning rates times "
                      f"{c.distill.restart_factor ** (used + 1):.2g}.", file=sys.stderr, flush=True)


def _diverged(preset: Preset, index: int, bad: _Diverged, used: int, folder: Path) -> str:
    """What to say of a set that may not restart any more."""
    after = "" if not used else f" after {used} restart{'s' * (used > 1)}"
    return (f"distillation of {preset.name} set {index} diverged at outer step {bad.step}{after}: {bad.first}, was the "
            f"first that is not finite (loss {bad.loss:.4g}). Its last good state and the metrics until here are kept "
            f"in '{folder}' ({CHECKPOINT}, {HISTORY}): with distill.restarts={used + 1} the same command goes on from "
            "there with smaller steps, and with lower learning rates in config.distill it starts afresh, in another "
            "folder.")


def _slower(method: Method, times: float) -> Method:
    """`method` with all learning rates times `times`."""
    rates = ("lr_images", "lr_texts", "lr_correspondence", "lr_inner_lr")
    return dataclasses.replace(method, **{name: times * getattr(method, name) for name in rates})


def _outer_steps(preset: Preset, prepared: Prepared, index: int, folder: Path, kept: dict, metrics: list[dict],
                 segments, save):
    """The outer steps that `kept` lacks, to the end: the set, its metrics (`metrics`, added to) and its record.

    save(name, kept) writes a checkpoint. Raises _Diverged.
    """
    c, model, seed = preset.config, prepared.model, preset.config.run.seed
    restarts = int(kept["restarts"])
    method = _slower(fields(Method, c.distill), c.distill.restart_factor ** restarts)
    count = len(kept["state"].learned["texts"])
    outer_step = _compiled_step(model, method)
    weigh = _pixel_weights(model, method, count)
    state, weights, first = kept["state"], kept["weights"], int(kept["state"].step)
    names = finite_checks(state.learned, method.inner_steps)
    moments = image_history.moments(c.distill.steps)

    pending = None

    def tell(row):
        watch.write("distill", row["step"], {name: value for name, value in row.items() if name != "step"})

    def settle():
        """Take in what the last step measured: a step late, so that the device has the next one to do meanwhile."""
        nonlocal pending
        if pending is None:
            return
        (step, measured), pending = pending, None
        measured = {name: float(value) for name, value in measured.items()}
        first_nonfinite = int(measured.pop("first_nonfinite"))
        metrics.append({"step": step, **measured})
        if restarts and step == int(kept["restarted_at"]):
            metrics[-1]["restart"] = restarts
        tell(metrics[-1])
        if first_nonfinite >= 0:
            raise _Diverged(step, names[first_nonfinite], measured["loss"])

    def save_state(*others: str):
        settle()
        write_lines(folder / HISTORY, metrics)  # first: what it has beyond a checkpoint is cut, a hole is not mended
        whole = {**kept, "state": state, "weights": weights}
        for name in (*others, CHECKPOINT):
            save(name, whole)

    def judge(done: int):
        """Where it is due, score the average so far on val (the best of a run is what it hands out), and save."""
        if (done % c.distill.checkpoint_every and done != c.distill.steps) or done <= kept["judged"]:
            return
        settle()
        found = evaluate(model, student_data(model, _as_set(state.average, method)), prepared.val, None,
                         fields(Protocol, c.evaluate), seed=seed + 7919, students=2)
        metrics[-1] |= {"val_r_mean": float(found.scores[:, -1].mean()), "lr_scale": found.lr_scale}
        if metrics[-1]["val_r_mean"] > kept["best_val"]:
            kept.update(best=jax.tree.map(jnp.copy, state.average), best_val=jnp.float32(metrics[-1]["val_r_mean"]))
        tell(metrics[-1])
        kept["judged"] = jnp.int32(done)
        save_state(*[GOOD] * (c.distill.restarts > 0))

    with (progress(f"distil {preset.name} {index}", c.distill.steps, "steps") as advance,
          contextlib.closing(writers(c, folder)) as watch, preemption.save_on_interrupt(save_state)):
        advance(first)
        for row in metrics:
            tell(row)
        judge(first)  # here if it was stopped in the middle of it
        for step, (begin, target) in _ahead(segments, range(first, c.distill.steps)):
            preemption.raise_if_interrupted()
            # Also after every regular checkpoint, whether the run is resumed there or goes on.
            if method.ceo and (step % method.ceo_every == 0 or step % c.distill.checkpoint_every == 0):
                weights = weigh(jax.tree.map(lambda x: x[0], target), state.learned)
            state, measured = outer_step(state, begin, target, weights,
                                         named_key(seed, "distill", preset.name, index, step))
            settle()
            pending = step, measured
            advance(1, loss=measured["loss"])
            if step + 1 in moments:
                kept["record"][moments.index(step + 1)] = image_history.thumbnails(state.average["images"])
            judge(step + 1)
    return (_as_set(kept["best"], method), metrics,
            {"steps": np.int32(moments), "images": kept["record"],
             **({"weights": image_history.weight_maps(weights)} if method.ceo else {})})


# All sets of a preset share what is compiled.
_compiled_step = functools.lru_cache(maxsize=4)(make_outer_step)


@contextlib.contextmanager
def _compiling(preset: Preset, prepared: Prepared, count: int):
    """While experts are trained, a thread compiles the outer step for `count` pairs: on accelerators both take minutes.

    With several processes it does not: they may have to compile in the same order.
    """
    if several_processes() or complete(preset.experts / "experts.json", preset.experts_key) is not None:
        yield
        return
    d, model = preset.config.distill, prepared.model
    images = (count, *prepared.pairs.train.images.shape[1:])
    texts = jax.eval_shape(model.text_inputs, prepared.captions.train[:1]).shape
    method = fields(Method, d)
    step, shapes = _compiled_step(model, method), outer_shapes(model, method, d.trajectories, images,
                                                               (count, *texts[1:]))
    # Leaving waits for the thread, come what may: a process that ends while XLA compiles crashes.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: step.lower(*shapes).compile())  # what it cannot compile fails when it is called
        yield


@functools.lru_cache(maxsize=4)
def _pixel_weights(model, method: Method, count: int):
    """The jitted function (params, learned) -> CEO's weights of the pixels of `count` images."""
    def pixel_weights(model, params, learned):
        return grad_cam.pixel_weights(model, params, learned["images"], learned["texts"], learned["correspondence"],
                                 alpha=method.alpha, top_k=min(method.ceo_top_k, count), beta=method.ceo_beta)

    return jit_with_frozen(model, pixel_weights)


def _ahead(make, numbers: range):
    """Yield (n, make(n)) for each number, while a thread makes the next one."""
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(make, n) for n in numbers[:1]]
        for place, n in enumerate(numbers):
            made = coming.pop().result()
            coming = [pool.submit(make, following) for following in numbers[place + 1 :][:1]]
            yield n, made


def _as_set(learned, method: Method) -> DistilledSet:
    arrays = jax.tree.map(lambda x: np.asarray(x, np.float32), learned)
    steps = {branch: float(np.exp(value)) for branch, value in arrays["log_steps"].items()}
    return DistilledSet(arrays["images"], arrays["texts"], arrays["correspondence"], steps, method.alpha, method.loss)


def student_data(model, distilled: DistilledSet) -> StudentData:
    """A set as students with this model's image tower see it."""
    inputs = compiled_inputs(model)(jnp.asarray(distilled.images))
    p = {name: jnp.asarray(value) for name, value in distilled.correspondence.items()}
    return StudentData(inputs, jnp.asarray(distilled.texts), p, dict(distilled.step_sizes), distilled.loss, distilled.alpha)
