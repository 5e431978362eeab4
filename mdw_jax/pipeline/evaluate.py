"""Scores of a preset: students trained on each of its sets, or the experts themselves."""

import contextlib
import dataclasses
from pathlib import Path

from mdw_jax.config.plugin_values import plugin_sources
from mdw_jax.config.sections import fields
from mdw_jax.errors import UserError
from mdw_jax.io.checksums import DamagedError, read_verified_json, write_listed_json
from mdw_jax.io.distilled_set import DistilledSet, byte_budget, load_distilled
from mdw_jax.io.files import digest
from mdw_jax.io.records import complete
from mdw_jax.io.scores import METRICS
from mdw_jax.method.students import EvalResult, Protocol, evaluate
from mdw_jax.pipeline.closed_form import closed_form_stage
from mdw_jax.pipeline.distill import distill_stage
from mdw_jax.pipeline.experts import experts_stage, kept_pairs
from mdw_jax.pipeline.metrics import open_writers
from mdw_jax.pipeline.prepared import Prepared, student_model, tower_settings
from mdw_jax.pipeline.preset_run import PresetRun, StageFolder
from mdw_jax.pipeline.sets import set_folder, set_key, student_data
from mdw_jax.runtime.progress import progress
from mdw_jax.runtime.rng import named_generator


def evaluate_stage(run: PresetRun, prepared: Prepared) -> list[dict]:
    """Score a preset, after distilling its sets and training its experts if they are not there yet.

    Returns:
        Rows of scores.csv: one per student, or, for a preset of kind "reference", one per expert network, or
        the one of the closed form.
    """
    if run.spec.closed_form:
        return _closed_form_rows(run, prepared)
    if not run.spec.has_sets:
        return _expert_rows(run, prepared)
    c, protocol = run.config, student_protocol(run)
    model_and_splits, rows = None, []
    for index, directory in enumerate(distill_stage(run, prepared)):
        distilled, _ = load_distilled(directory, c.distill.loss)
        _check_shapes(directory, distilled, prepared)
        path, key = scores_place(run, index)
        record = complete(path, key, "rows")
        if record is None:
            model_and_splits = model_and_splits or student_model(c, prepared)  # one for all sets: each is compiled anew
            model, val, test = model_and_splits
            with progress(f"evaluate {run.name} {index}", 1, "sets") as advance:
                data, seed = student_data(model, distilled), student_seed(run, index)
                result = evaluate(model, data, val, test, protocol, seed=seed)
                rows_of_set = _student_rows(run.name, index, result)
                if c.evaluate.hard_targets:
                    hard = result if data.has_hard_targets else evaluate(model, data.with_hard_targets(), val, test,
                                                                         protocol, seed=seed)
                    rows_of_set = [{**row, "hard_r_mean": float(score)}
                                   for row, score in zip(rows_of_set, hard.scores[:, -1], strict=True)]
                advance(1, r_mean=float(result.scores[:, -1].mean()))
            record = {"key": key, "rows": rows_of_set, "evaluate": c.evaluate.to_dict()}
            with contextlib.closing(open_writers(c, directory)) as writer:
                for row in record["rows"]:
                    writer.write(path.stem, row["student"], {name: row[name] for name in ("val_r_mean", *METRICS)})
            write_listed_json(path, record)
        size = byte_budget(distilled)["total"]
        rows += [{**row, "bytes": size} for row in record["rows"]]
    return rows


def scores_place(run: PresetRun, index: int) -> StageFolder:
    """The file of the scores of set `index` of a preset, and their key."""
    c = run.config
    students_tower = tower_settings(c.model, c.evaluate.tower) if c.evaluate.tower else {}
    key = digest(set_key(run, index), c.evaluate.to_dict(), students_tower, *plugin_sources(c, "evaluate"))
    return StageFolder(set_folder(run, index) / f"scores-{student_protocol(run).select_on}-{key[:10]}.json", key)


def student_protocol(run: PresetRun) -> Protocol:
    """How the students of a preset are trained and chosen."""
    settings = run.config.evaluate
    protocol = fields(Protocol, settings)
    if settings.tower:  # a tower trained from scratch needs far smaller steps than two heads on a frozen one
        protocol = dataclasses.replace(protocol, lr_scales=settings.tower_lr_scales)
    return protocol


def student_seed(run: PresetRun, index: int) -> int:
    """Seed of the students of set `index`; no expert has the same one."""
    return set_seed(run.config.run.seed, index)


def set_seed(seed: int, index: int) -> int:
    """`student_seed` of a run whose `run.seed` is `seed`."""
    return int(named_generator(seed, "students", index).integers(2**31))


def _expert_rows(run: PresetRun, prepared: Prepared) -> list[dict]:
    """One row per expert network, at its best epoch on val."""
    record = experts_stage(run, prepared)
    return [{"preset": run.name, "set": 0, "student": n, "select_on": "val", "val_r_mean": val[-1],
             **dict(zip(METRICS, test, strict=True))}
            for n, (val, test) in enumerate(zip(record["val"], record["test"], strict=True))]


def _closed_form_rows(run: PresetRun, prepared: Prepared) -> list[dict]:
    """The one row of a closed form."""
    record = closed_form_stage(run, prepared, kept_pairs(run, prepared))
    return [{"preset": run.name, "set": 0, "student": 0, "select_on": "val", "val_r_mean": record["val"][-1],
             **dict(zip(METRICS, record["test"], strict=True))}]


def _student_rows(name: str, index: int, result: EvalResult) -> list[dict]:
    """One row per student of one set."""
    return [{"preset": name, "set": index, "student": n, "select_on": result.select_on, "lr_scale": result.lr_scale,
             "steps": result.steps, "at_edge": " ".join(result.at_edge), "val_r_mean": float(val[-1]),
             **{metric: float(value) for metric, value in zip(METRICS, test, strict=True)}}
            for n, (val, test) in enumerate(zip(result.val, result.scores, strict=True))]


def stored_scores(directory: Path) -> list[dict]:
    """What students of a set scored, as `evaluate_stage` left it: {"rows", "evaluate"} of each evaluation.

    "evaluate" is the config's section at that time, {} in records of earlier versions. The latest comes last. Records of
    another program are left out.

    Raises:
        UserError: one is not as it was written.
    """
    found = []
    for path in sorted(directory.glob("scores-*.json"), key=lambda path: path.stat().st_mtime):
        try:
            record = read_verified_json(path)
        except DamagedError as error:
            raise UserError(f"'{path}' is damaged ({error}); delete it, and mdw evaluate scores that set again.") from None
        except (OSError, ValueError):
            continue
        rows, evaluate = record.get("rows"), record.get("evaluate") or {}
        needed = (*METRICS, "lr_scale", "steps")
        if isinstance(rows, list) and rows and isinstance(evaluate, dict) and all(
                isinstance(row, dict) and all(isinstance(row.get(name), (int, float)) for name in needed) for row in rows):
            found.append({"rows": rows, "evaluate": evaluate})
    return found


def _check_shapes(directory: Path, distilled: DistilledSet, prepared: Prepared) -> None:
    """Raises UserError for a set that comes from elsewhere and does not fit the data."""
    parts = [("images", distilled.seen_shape, prepared.pairs.train.images.shape[1:])]
    if prepared.text_tower is None:
        parts.append(("texts", distilled.texts.shape[1:], prepared.texts.train.shape[1:]))
    for part, shape, expected in parts:
        if shape != expected:
            raise UserError(f"the {part} of the distilled set in '{directory}' are of shape {shape}, and "
                            f"those of this configuration {expected}; delete that directory and distill again.")
