"""The sets of a preset: chosen (coresets) or distilled, each saved with a card that says where it came from."""

import dataclasses
import functools
import json
from pathlib import Path

from mdw_jax.io import image_history
from mdw_jax.io.checksums import DamagedError, read_verified_json, remove_listed
from mdw_jax.io.distilled_set import (
    CARD,
    load_for_display,
    read_captions,
    save_distilled,
    write_captions,
)
from mdw_jax.io.records import complete, write_lines
from mdw_jax.models.embedding import nearest_captions
from mdw_jax.pipeline.candidates import CANDIDATES
from mdw_jax.pipeline.coreset import coreset_set
from mdw_jax.pipeline.distill_loop import CHECKPOINT, HISTORY, LAST_REGULAR, distill_set
from mdw_jax.pipeline.filter import filter_record
from mdw_jax.pipeline.inputs import source_notes
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun
from mdw_jax.pipeline.prototypes import START
from mdw_jax.pipeline.sets import set_folder, set_key
from mdw_jax.runtime.may_train import require_training
from mdw_jax.runtime.processes import barrier, broadcast_from_main, is_main


def distill_stage(run: PresetRun, prepared: Prepared) -> list[Path]:
    """Distill (or, for a coreset, choose) every set of a preset that is not there yet.

    Returns:
        The directories of the sets; none for a preset of kind "reference".
    """
    if not run.spec.has_sets:
        return []
    directories = [set_folder(run, index) for index in range(run.config.distill.sets)]
    for index, directory in enumerate(directories):
        key = set_key(run, index)
        if complete(directory / CARD, key) is None:
            require_training(f"set {index} of the preset {run.name} is")
            _make_set(run, prepared, index, directory, key)
        barrier()
        if is_main():
            # A kill right after the card was written leaves them too.
            remove_listed(directory, (CHECKPOINT, HISTORY, LAST_REGULAR, CANDIDATES, START))
        broadcast_from_main(functools.partial(_save_nearest_captions, directory, prepared))
    return directories


def _make_set(run: PresetRun, prepared: Prepared, index: int, directory: Path, key: str) -> None:
    """Make set `index` and write its files, the card last."""
    metrics: list[dict] = []
    origin: dict = {}
    if run.spec.kind == "coreset":
        distilled = coreset_set(run, prepared, index)
    else:
        distillation = distill_set(run, prepared, index, directory, key)
        distilled, metrics, chosen = distillation.distilled, distillation.metrics, distillation.chosen
        image_history.save(directory, distillation.history)
        origin = {"chosen": chosen.label, "candidates": [row._asdict() for row in distillation.candidates]}
    write_lines(directory / "metrics.jsonl", metrics)
    save_distilled(directory, distilled, {**_card(run, prepared, index, key), **origin})


def _card(run: PresetRun, prepared: Prepared, index: int, key: str) -> dict:
    """Where a set came from."""
    log_mel, filtered = prepared.pairs.log_mel, filter_record(run)
    return {
        "key": key, "preset": run.name, "set": index, "seed": run.config.run.seed,
        "noise": {"sha256": run.noise.sha256, "protocol": run.noise.protocol, "rate": run.noise.true_rate,
                  "data": run.noise.fingerprint},
        "experts": run.experts.key, "config": json.loads(json.dumps(run.config.to_dict())),  # tuples become lists
        "log_mel": log_mel and dataclasses.asdict(log_mel), **({"filter": filtered} if filtered else {}),
        **({"source_notes": notes} if (notes := source_notes(prepared.pairs)) else {}),
    }


def _save_nearest_captions(directory: Path, prepared: Prepared) -> None:
    """Write the real captions nearest to a finished set's texts beside it, unless they are there already."""
    sha256 = read_verified_json(directory / CARD)["sha256"]
    try:
        captions = read_captions(directory, sha256)
    except DamagedError:
        captions = None
    if captions is None:
        distilled, _ = load_for_display(directory)
        captions = nearest_captions(prepared.text_features_of(distilled.texts), prepared.texts.train,
                                    prepared.pairs.train.captions)
        write_captions(directory, sha256, captions)
