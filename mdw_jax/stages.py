"""The stages of one preset: train its experts, distil its sets, evaluate them. Each skips what is already complete.

In the run folder:

    config.json environment.json     what was asked, and with which versions
    noise/  cache/                   noise draws; frozen features
    experts/<recipe>-<key>/          trajectories net_00, net_01, ...; log.jsonl; division.npy; experts.json (last)
    distilled/<preset>-<key>/set_<i>/
                                     metrics.jsonl; distilled.safetensors; card.json (last); scores-<key>.json

A key is a sha256 of everything that the folder's contents depend on. What two configurations share is made once, and
what they do not share never meets: any number of them can live in one run folder, which is all that a sweep is.
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax import ceo, certificate, coresets
from mdw_jax.checkpoint import load_checkpoint, save_checkpoint
from mdw_jax.data.noise import Noise
from mdw_jax.distill import Method, init_state, make_outer_step, schedule
from mdw_jax.distilled import DistilledSet, load_distilled, save_distilled
from mdw_jax.errors import UserError
from mdw_jax.evaluate import Lesson, Protocol, evaluate
from mdw_jax.experts import Recipe, score, to_float, train_experts
from mdw_jax.files import digest, locked, write_atomically, write_json
from mdw_jax.mesh import stack
from mdw_jax.prepare import Prepared, noise_of
from mdw_jax.progress import progress
from mdw_jax.retrieval import METRICS
from mdw_jax.rng import named_generator, named_key
from mdw_jax.presets import CORESETS, DISTILLED, WITHOUT_EXPERTS, preset_config
from mdw_jax.trajectory import open_trajectory, read_snapshot, save_trajectory

_NOT_EXPERTS = ("store_dtype",)  # changes how snapshots are stored, not which experts they are


class Preset(NamedTuple):
    """One preset of a run: its name, its resolved config, its noise draw; where its experts and its sets live."""

    name: str
    config: ConfigDict
    noise: Noise
    experts: Path
    experts_key: str
    sets: Path
    sets_key: str


def open_preset(config: ConfigDict, prepared: Prepared, name: str) -> Preset:
    """Resolve a preset's config and the identity of what it builds on."""
    c = preset_config(config, name)
    noise = noise_of(c, prepared)
    recipe = {k: v for k, v in c.experts.to_dict().items() if k not in _NOT_EXPERTS}
    experts_key = digest(prepared.key, noise.sha256, recipe, c.run.seed, snapshots_kept(c))
    if name in WITHOUT_EXPERTS:
        built_on = digest(prepared.key, noise.sha256, c.run.seed)
    else:
        built_on = experts_key
    if name in CORESETS:
        sets_key = digest(built_on, name, c.distill.pairs)
    else:
        method = {k: v for k, v in c.distill.to_dict().items() if k != "sets"}
        # Candidates are chosen on val by the evaluation recipe, so it is part of what a set is.
        choice = {k: v for k, v in c.evaluate.to_dict().items() if k not in ("protocol", "students")}
        sets_key = digest(built_on, name, method, choice)
    folder = Path(c.run.dir)
    return Preset(name, c, noise, folder / "experts" / f"{c.experts.recipe}-{experts_key[:10]}", experts_key,
                  folder / "distilled" / f"{name}-{sets_key[:10]}", sets_key)


def snapshots_kept(config: ConfigDict) -> int:
    """The last snapshot that distillation will read."""
    return config.distill.max_start_epoch - 1 + config.distill.match_epochs


def _fields(kind, section: ConfigDict):
    """The fields of dataclass `kind`, read off a config section."""
    return kind(**{field.name: section[field.name] for field in dataclasses.fields(kind)})


def _complete(path: Path, key: str):
    """The JSON written last by a stage, if it is there. Raises UserError if it is damaged or another's."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        same = found["key"] == key
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise UserError(f"'{path}' is not the whole record of this configuration; delete the folder '{path.parent}' "
                        "and run again.")
    return found


def _write_lines(path: Path, rows):
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def experts_stage(preset: Preset, prepared: Prepared) -> dict:
    """Train the experts of a preset; returns their record (`experts.json`)."""
    with locked(preset.experts.with_suffix(".lock")):  # processes of one sweep may want the same experts
        return _complete(preset.experts / "experts.json", preset.experts_key) or _train(preset, prepared)


def _train(preset: Preset, prepared: Prepared) -> dict:
    c, noise = preset.config, preset.noise
    recipe = _fields(Recipe, c.experts)
    with progress(f"experts ({c.experts.recipe}, noise {noise.true_rate:.0%})", recipe.epochs, "epochs") as advance:
        trained = train_experts(
            prepared.model, prepared.train(noise), prepared.val, recipe, count=c.experts.count, seed=c.run.seed,
            keep=snapshots_kept(c), rate=noise.true_rate,
            mismatched=noise.mismatched, on_epoch=lambda _, r_mean: advance(val_r_mean=r_mean),
        )
    for n, snapshots in enumerate(trained.snapshots):
        save_trajectory(preset.experts / f"net_{n:02d}", [jax.tree.map(np.asarray, s) for s in snapshots],
                        key=preset.experts_key, dtype=c.experts.store_dtype, overwrite=True)
    _write_lines(preset.experts / "log.jsonl", trained.log)
    np.save(preset.experts / "division.npy", trained.clean_probability)
    test = np.stack([score(prepared.model, params, prepared.test) for params in trained.best])
    val = np.stack([score(prepared.model, params, prepared.val) for params in trained.best])
    record = {
        "key": preset.experts_key, "recipe": c.experts.recipe, "noise": noise.sha256, "networks": len(trained.snapshots),
        "snapshots": len(trained.snapshots[0]), "metrics": METRICS, "val": val.tolist(), "test": test.tolist(),
        "certificate_inputs": _certificate_inputs(recipe, noise.true_rate, c.model.tau),
    }
    write_json(preset.experts / "experts.json", record)
    return record


def _certificate_inputs(recipe: Recipe, rate: float, tau: float) -> dict:
    """What the certificate (Fact C) says of each track's loss at this noise rate."""
    entry = {}
    for track, loss, q in (("clean", recipe.clean_loss, recipe.clean_q),
                           ("tolerant", recipe.tolerant_loss, recipe.tolerant_q)):
        low, high = certificate.sum_bounds(loss, recipe.batch, q, tau)
        entry[track] = {"loss": loss, "q": q, "sum_low": float(low), "sum_high": float(high),
                        "excess_risk_bound": float(certificate.excess_risk_bound(loss, recipe.batch, rate, q, tau))}
    return {"eta": rate, "batch": recipe.batch, "tracks": entry}


def set_folder(preset: Preset, index: int) -> Path:
    """Where distilled set `index` of a preset lives."""
    return preset.sets / f"set_{index}"


def distill_stage(preset: Preset, prepared: Prepared) -> list[Path]:
    """Distil (or, for the random preset, choose) every set of a preset; returns their folders."""
    if preset.name not in DISTILLED:
        return []
    folders = []
    for index in range(preset.config.distill.sets):
        folder = set_folder(preset, index)
        key = digest(preset.sets_key, index)
        if _complete(folder / "card.json", key) is None:
            chosen, metrics = _random_set(preset, prepared, index) if preset.name == "random" else (
                _distilled_set(preset, prepared, index, folder / "checkpoint.safetensors", key))
            _write_lines(folder / "metrics.jsonl", metrics)
            save_distilled(folder, chosen, {
                "key": key, "preset": preset.name, "set": index, "seed": preset.config.run.seed,
                "noise": {"sha256": preset.noise.sha256, "protocol": preset.noise.protocol,
                          "rate": preset.noise.true_rate, "data": preset.noise.fingerprint},
                "experts": preset.experts_key, "config": _plain(preset.config.to_dict()),
            })
            for name in ("checkpoint.safetensors", "history.jsonl"):
                (folder / name).unlink(missing_ok=True)
        folders.append(folder)
    return folders


def _plain(value):
    """A config as JSON can hold it."""
    return json.loads(json.dumps(value))


def _random_set(preset: Preset, prepared: Prepared, index: int):
    generator = named_generator(preset.config.run.seed, "random", index)
    images, texts = _real_pairs(preset, prepared, coresets.random_pairs(
        generator, preset.noise.image_of, _pairs(preset, prepared)))
    return DistilledSet(images, texts, {}, {}, 1.0, "nce"), []


def _pairs(preset: Preset, prepared: Prepared) -> int:
    """M, checked against the data."""
    wanted, there = preset.config.distill.pairs, len(prepared.pairs.train.images)
    if wanted > there:
        raise UserError(f"distill.pairs is {wanted} but there are only {there} training images; lower it.")
    return wanted


def _real_pairs(preset: Preset, prepared: Prepared, rows):
    """Pixels in [0, 1] and text features of training rows, as the noise draw pairs them."""
    images = prepared.pairs.train.images[preset.noise.image_of[rows]].astype(np.float32) / 255
    return images, np.asarray(prepared.texts.train[rows], np.float32)


def _distilled_set(preset: Preset, prepared: Prepared, index: int, checkpoint: Path, key: str):
    c, model = preset.config, prepared.model
    method, seed = _fields(Method, c.distill), c.run.seed
    record = experts_stage(preset, prepared)
    trajectories = [open_trajectory(preset.experts / f"net_{n:02d}", key=preset.experts_key)
                    for n in range(record["networks"])]

    generator = named_generator(seed, "init", preset.name, index)
    count = _pairs(preset, prepared)
    rows = (coresets.random_pairs(generator, preset.noise.image_of, count) if c.distill.init == "random" else
            coresets.clean_pairs(generator, preset.noise.image_of, np.load(preset.experts / "division.npy"), count))
    images, texts = _real_pairs(preset, prepared, rows)
    state = init_state(named_key(seed, "correspondence", preset.name, index), method, images, texts)
    kept = {"state": state, "best": jax.tree.map(jnp.copy, state.average), "best_val": jnp.float32(-1)}
    kept = load_checkpoint(checkpoint, kept, key) or kept
    history = checkpoint.with_name("history.jsonl")
    metrics = [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
    metrics = metrics[: int(kept["state"].step)]

    outer_step = make_outer_step(model, method)
    weigh = jax.jit(lambda params, learned: ceo.pixel_weights(
        model, params, learned["images"], learned["texts"], learned["correspondence"], alpha=method.alpha,
        top_k=min(method.ceo_top_k, count), beta=method.ceo_beta))
    weights = jnp.ones((count, *images.shape[1:3], 1))
    state, first = kept["state"], int(kept["state"].step)
    with progress(f"distil {preset.name} {index}", c.distill.steps, "steps") as advance:
        advance(first)
        for step in range(first, c.distill.steps):
            networks, starts = schedule(seed, index, step, c.distill.trajectories, len(trajectories),
                                        c.distill.max_start_epoch)
            ends = [start + c.distill.match_epochs for start in starts]
            begin, target = (stack([read_snapshot(trajectories[n], k) for n, k in zip(networks, at, strict=True)])
                             for at in (starts, ends))
            # Also after every checkpoint: a resumed run computes them there, and must go the same way.
            if method.ceo and (step % method.ceo_every == 0 or step % c.distill.checkpoint_every == 0):
                weights = weigh(jax.tree.map(lambda x: x[0], target), state.learned)
            state, measured = outer_step(state, begin, target, weights,
                                         named_key(seed, "distill", preset.name, index, step))
            measured = {name: float(value) for name, value in measured.items()}
            if not np.isfinite([measured["loss"], measured["gradient"]]).all():
                raise UserError(f"distillation of {preset.name} set {index} diverged at step {step} (loss "
                                f"{measured['loss']}); lower the learning rates in config.distill.")
            metrics.append({"step": step, **measured})
            advance(1, loss=measured["loss"])
            if (step + 1) % c.distill.checkpoint_every == 0 or step + 1 == c.distill.steps:
                lesson = _lesson(model, _as_set(state.average, method))
                found = evaluate(model, lesson, prepared.val, None, _fields(Protocol, c.evaluate), seed=seed + 7919,
                                 students=2)
                metrics[-1] |= {"val_r_mean": float(found.scores[:, -1].mean()), "lr_scale": found.lr_scale}
                if metrics[-1]["val_r_mean"] > kept["best_val"]:
                    kept |= {"best": jax.tree.map(jnp.copy, state.average),
                             "best_val": jnp.float32(metrics[-1]["val_r_mean"])}
                _write_lines(history, metrics)
                save_checkpoint(checkpoint, {**kept, "state": state}, key)
    return _as_set(kept["best"], method), metrics


def _as_set(learned, method: Method) -> DistilledSet:
    arrays = jax.tree.map(lambda x: np.asarray(x, np.float32), learned)
    steps = {branch: float(np.exp(value)) for branch, value in arrays["log_steps"].items()}
    return DistilledSet(arrays["images"], arrays["texts"], arrays["correspondence"], steps, method.alpha, method.loss)


def _lesson(model, distilled: DistilledSet) -> Lesson:
    inputs = jax.jit(lambda rows: model.inputs(to_float(rows)))(jnp.asarray(distilled.images))
    p = {name: jnp.asarray(value) for name, value in distilled.correspondence.items()}
    return Lesson(inputs, jnp.asarray(distilled.texts), p, dict(distilled.step_sizes), distilled.loss, distilled.alpha)


def evaluate_stage(preset: Preset, prepared: Prepared) -> list[dict]:
    """Scores of a preset: one row a student (or, for presets that distil nothing, one a network)."""
    if preset.name not in DISTILLED:
        record = experts_stage(preset, prepared)
        return [{"preset": preset.name, "set": 0, "student": n, "protocol": "honest", "val_r_mean": val[-1],
                 **dict(zip(METRICS, test, strict=True))}
                for n, (val, test) in enumerate(zip(record["val"], record["test"], strict=True))]
    protocol = _fields(Protocol, preset.config.evaluate)
    rows = []
    for index, folder in enumerate(distill_stage(preset, prepared)):
        distilled, card = load_distilled(folder)
        key = digest(card["key"], preset.config.evaluate.to_dict())
        path = folder / f"scores-{protocol.protocol}-{key[:10]}.json"
        found = _complete(path, key)
        if found is None:
            with progress(f"evaluate {preset.name} {index}", 1, "sets") as advance:
                outcome = evaluate(prepared.model, _lesson(prepared.model, distilled), prepared.val, prepared.test,
                                   protocol, seed=named_seed(preset, index))
                advance(1, r_mean=float(outcome.scores[:, -1].mean()))
            found = {"key": key, "rows": [
                {"preset": preset.name, "set": index, "student": n, "protocol": protocol.protocol,
                 "lr_scale": outcome.lr_scale, "steps": outcome.steps, "val_r_mean": float(val[-1]),
                 **{name: float(value) for name, value in zip(METRICS, test, strict=True)}}
                for n, (val, test) in enumerate(zip(outcome.val, outcome.scores, strict=True))]}
            write_json(path, found)
        rows += found["rows"]
    return rows


def named_seed(preset: Preset, index: int) -> int:
    """Seed of the students of one set: never an expert's."""
    return int(named_generator(preset.config.run.seed, "students", index).integers(2**31))

