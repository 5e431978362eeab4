"""Scores of a preset: students trained on each of its sets, or the experts themselves."""

import contextlib
import dataclasses

from mdw_jax.config.presets import DISTILLED
from mdw_jax.config.sections import fields
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import DistilledSet, load_distilled
from mdw_jax.io.files import digest, write_json
from mdw_jax.io.metrics import writers
from mdw_jax.io.records import complete
from mdw_jax.method.retrieval import METRICS
from mdw_jax.method.students import Protocol, evaluate
from mdw_jax.pipeline.distill import distill_stage, student_data
from mdw_jax.pipeline.experts import experts_stage
from mdw_jax.pipeline.prepared import Prepared, student_model
from mdw_jax.pipeline.preset_run import Preset
from mdw_jax.runtime.progress import progress
from mdw_jax.runtime.rng import named_generator


def evaluate_stage(preset: Preset, prepared: Prepared) -> list[dict]:
    """Scores of a preset: one row a student (or, for presets that distil nothing, one a network)."""
    if preset.name not in DISTILLED:
        record = experts_stage(preset, prepared)
        return [{"preset": preset.name, "set": 0, "student": n, "select_on": "val", "val_r_mean": val[-1],
                 **dict(zip(METRICS, test, strict=True))}
                for n, (val, test) in enumerate(zip(record["val"], record["test"], strict=True))]
    c = preset.config
    protocol = fields(Protocol, c.evaluate)
    if c.evaluate.tower:  # a tower from scratch wants far smaller steps than two heads on a frozen one
        protocol = dataclasses.replace(protocol, lr_scales=c.evaluate.tower_lr_scales)
    vit = {name: value for name, value in c.model.to_dict().items() if name.startswith("vit_")}
    student, rows = None, []
    for index, folder in enumerate(distill_stage(preset, prepared)):
        distilled, card = load_distilled(folder)
        _check_shapes(folder, distilled, prepared)
        key = digest(card["key"], c.evaluate.to_dict(), *([vit] if c.evaluate.tower == "vit" else []))
        path = folder / f"scores-{protocol.select_on}-{key[:10]}.json"
        found = complete(path, key, "rows")
        if found is None:
            student = student or student_model(c, prepared)  # one for all sets: each new one is compiled anew
            model, val, test = student
            with progress(f"evaluate {preset.name} {index}", 1, "sets") as advance:
                outcome = evaluate(model, student_data(model, distilled), val, test, protocol,
                                   seed=student_seed(preset, index))
                advance(1, r_mean=float(outcome.scores[:, -1].mean()))
            found = {"key": key, "rows": [
                {"preset": preset.name, "set": index, "student": n, "select_on": protocol.select_on,
                 "lr_scale": outcome.lr_scale, "steps": outcome.steps, "val_r_mean": float(val_scores[-1]),
                 **{name: float(value) for name, value in zip(METRICS, test_scores, strict=True)}}
                for n, (val_scores, test_scores) in enumerate(zip(outcome.val, outcome.scores, strict=True))]}
            with contextlib.closing(writers(c, folder)) as watch:
                for row in found["rows"]:
                    watch.write(path.stem, row["student"], {name: row[name] for name in ("val_r_mean", *METRICS)})
            write_json(path, found)
        rows += found["rows"]
    return rows


def _check_shapes(folder, distilled: DistilledSet, prepared: Prepared) -> None:
    """Raises UserError for a set that was put here from elsewhere and does not fit the data."""
    parts = [("images", distilled.images, prepared.pairs.train.images.shape[1:])]
    if prepared.text_tower is None:
        parts.append(("texts", distilled.texts, prepared.texts.train.shape[1:]))
    for what, array, fits in parts:
        if array.shape[1:] != fits:
            raise UserError(f"the {what} of the distilled set in '{folder}' are of shape {array.shape[1:]}, and those "
                            f"of this configuration {fits}; delete that folder and distil again.")


def student_seed(preset: Preset, index: int) -> int:
    """Seed of the students of one set: never an expert's."""
    return int(named_generator(preset.config.run.seed, "students", index).integers(2**31))
