"""Scores of a preset: students trained on each of its sets, or the experts themselves."""

from mdw_jax.distilled import load_distilled
from mdw_jax.evaluate import Protocol, evaluate
from mdw_jax.files import digest, write_json
from mdw_jax.prepare import Prepared, student_model
from mdw_jax.presets import DISTILLED
from mdw_jax.progress import progress
from mdw_jax.retrieval import METRICS
from mdw_jax.rng import named_generator
from mdw_jax.stages.distill import distill_stage, lesson_of
from mdw_jax.stages.experts import experts_stage
from mdw_jax.stages.preset import Preset, complete, fields


def evaluate_stage(preset: Preset, prepared: Prepared) -> list[dict]:
    """Scores of a preset: one row a student (or, for presets that distil nothing, one a network)."""
    if preset.name not in DISTILLED:
        record = experts_stage(preset, prepared)
        return [{"preset": preset.name, "set": 0, "student": n, "protocol": "honest", "val_r_mean": val[-1],
                 **dict(zip(METRICS, test, strict=True))}
                for n, (val, test) in enumerate(zip(record["val"], record["test"], strict=True))]
    protocol = fields(Protocol, preset.config.evaluate)
    rows = []
    for index, folder in enumerate(distill_stage(preset, prepared)):
        distilled, card = load_distilled(folder)
        key = digest(card["key"], preset.config.evaluate.to_dict())
        path = folder / f"scores-{protocol.protocol}-{key[:10]}.json"
        found = complete(path, key)
        if found is None:
            with progress(f"evaluate {preset.name} {index}", 1, "sets") as advance:
                model, val, test = student_model(preset.config, prepared)
                outcome = evaluate(model, lesson_of(model, distilled), val, test, protocol,
                                   seed=named_seed(preset, index))
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
