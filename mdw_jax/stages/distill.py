"""Sets of a preset: chosen (coresets) or distilled, saved with all that says where they came from."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax import ceo, coresets, interrupt
from mdw_jax.checkpoint import load_checkpoint, save_checkpoint
from mdw_jax.distill import Method, init_state, make_outer_step, schedule
from mdw_jax.distilled import DistilledSet, save_distilled
from mdw_jax.errors import UserError
from mdw_jax.evaluate import Lesson, Protocol, evaluate
from mdw_jax.experts import to_float
from mdw_jax.files import digest
from mdw_jax.mesh import is_main, stack, wait
from mdw_jax.prepare import Prepared
from mdw_jax.presets import CORESETS, DISTILLED
from mdw_jax.progress import progress
from mdw_jax.rng import named_generator, named_key
from mdw_jax.stages.coreset import coreset, pairs_asked, real_pairs
from mdw_jax.stages.experts import experts_stage
from mdw_jax.stages.preset import Preset, complete, fields, write_lines
from mdw_jax.trajectory import open_trajectory, read_snapshot


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
        if complete(folder / "card.json", key) is None:
            if preset.name in CORESETS:
                made, metrics = coreset(preset, prepared, index), []
            else:
                made, metrics = _distilled_set(preset, prepared, index, folder, key)
            write_lines(folder / "metrics.jsonl", metrics)
            save_distilled(folder, made, {
                "key": key, "preset": preset.name, "set": index, "seed": preset.config.run.seed,
                "noise": {"sha256": preset.noise.sha256, "protocol": preset.noise.protocol,
                          "rate": preset.noise.true_rate, "data": preset.noise.fingerprint},
                "experts": preset.experts_key, "config": _plain(preset.config.to_dict()),
                "log_mel": prepared.pairs.log_mel and dataclasses.asdict(prepared.pairs.log_mel),
            })
        wait()
        if is_main():
            for name in ("checkpoint.safetensors", "history.jsonl"):  # also what a kill right after the card left
                (folder / name).unlink(missing_ok=True)
        folders.append(folder)
    return folders


def _plain(value):
    """A config as JSON can hold it."""
    return json.loads(json.dumps(value))


def _distilled_set(preset: Preset, prepared: Prepared, index: int, folder: Path, key: str):
    """Set `index` and the metrics of its outer steps; goes on from `folder`'s checkpoint if there is one."""
    c, model, seed = preset.config, prepared.model, preset.config.run.seed
    method = fields(Method, c.distill)
    record = experts_stage(preset, prepared)
    trajectories = [open_trajectory(preset.experts / f"net_{n:02d}", key=preset.experts_key)
                    for n in range(record["networks"])]

    generator = named_generator(seed, "init", preset.name, index)
    count = pairs_asked(preset, prepared)
    rows = (coresets.random_pairs(generator, preset.noise.image_of, count) if c.distill.init == "random" else
            coresets.clean_pairs(generator, preset.noise.image_of, np.load(preset.experts / "division.npy"), count))
    images, texts = real_pairs(preset, prepared, rows)
    state = init_state(named_key(seed, "correspondence", preset.name, index), method, images, texts)
    kept = {"state": state, "best": jax.tree.map(jnp.copy, state.average), "best_val": jnp.float32(-1),
            "judged": jnp.int32(0), "weights": jnp.ones((*images.shape[:-1], 1))}
    kept = load_checkpoint(folder / "checkpoint.safetensors", kept, key) or kept
    history = folder / "history.jsonl"
    metrics = [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
    metrics = metrics[: int(kept["state"].step)]

    def segments(step: int):
        """The snapshots at which the trajectories of an outer step begin and end, each stacked."""
        networks, starts = schedule(seed, index, step, c.distill.trajectories, len(trajectories),
                                    c.distill.max_start_epoch)
        ends = [start + c.distill.match_epochs for start in starts]
        return tuple(stack([read_snapshot(trajectories[n], k) for n, k in zip(networks, at, strict=True)])
                     for at in (starts, ends))

    outer_step = make_outer_step(model, method)
    weigh = jax.jit(lambda params, learned: ceo.pixel_weights(
        model, params, learned["images"], learned["texts"], learned["correspondence"], alpha=method.alpha,
        top_k=min(method.ceo_top_k, count), beta=method.ceo_beta))
    state, weights, first = kept["state"], kept["weights"], int(kept["state"].step)

    pending = None

    def settle():
        """Take in what the last step measured: a step late, so that the device has the next one to do meanwhile."""
        nonlocal pending
        if pending is None:
            return
        (step, measured), pending = pending, None
        measured = {name: float(value) for name, value in measured.items()}
        if not np.isfinite([measured["loss"], measured["gradient"]]).all():
            raise UserError(f"distillation of {preset.name} set {index} diverged at step {step} (loss "
                            f"{measured['loss']}); lower the learning rates in config.distill.")
        metrics.append({"step": step, **measured})

    def put_away():
        settle()
        if not is_main():
            return
        write_lines(history, metrics)
        save_checkpoint(folder / "checkpoint.safetensors", {**kept, "state": state, "weights": weights}, key)

    def judge(done: int):
        """Where it is due, score the average so far on val (the best of a run is what it hands out), and save."""
        if (done % c.distill.checkpoint_every and done != c.distill.steps) or done <= kept["judged"]:
            return
        settle()
        found = evaluate(model, lesson_of(model, _as_set(state.average, method)), prepared.val, None,
                         fields(Protocol, c.evaluate), seed=seed + 7919, students=2)
        metrics[-1] |= {"val_r_mean": float(found.scores[:, -1].mean()), "lr_scale": found.lr_scale}
        if metrics[-1]["val_r_mean"] > kept["best_val"]:
            kept.update(best=jax.tree.map(jnp.copy, state.average), best_val=jnp.float32(metrics[-1]["val_r_mean"]))
        kept["judged"] = jnp.int32(done)
        put_away()

    with (progress(f"distil {preset.name} {index}", c.distill.steps, "steps") as advance,
          interrupt.keeping(put_away)):
        advance(first)
        judge(first)  # here if it was stopped in the middle of it
        for step, (begin, target) in _ahead(segments, range(first, c.distill.steps)):
            interrupt.check()
            # Also after every regular checkpoint, whether the run is resumed there or goes on.
            if method.ceo and (step % method.ceo_every == 0 or step % c.distill.checkpoint_every == 0):
                weights = weigh(jax.tree.map(lambda x: x[0], target), state.learned)
            state, measured = outer_step(state, begin, target, weights,
                                         named_key(seed, "distill", preset.name, index, step))
            settle()
            pending = step, measured
            advance(1, loss=measured["loss"])
            judge(step + 1)
    return _as_set(kept["best"], method), metrics


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


def lesson_of(model, distilled: DistilledSet) -> Lesson:
    """A set as students with this model's image tower see it."""
    inputs = jax.jit(lambda rows: model.inputs(to_float(rows)))(jnp.asarray(distilled.images))
    p = {name: jnp.asarray(value) for name, value in distilled.correspondence.items()}
    return Lesson(inputs, jnp.asarray(distilled.texts), p, dict(distilled.step_sizes), distilled.loss, distilled.alpha)
