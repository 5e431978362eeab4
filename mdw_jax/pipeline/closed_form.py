"""The closed form of a preset (`method/closed_form.py`): solved once, kept under `<run.dir>/closed_form/`, scored.

Presets with the same data, noise and filter share it. It sees frozen features alone: of the frozen backbone, or, where
the backbone is trained, of the backbone with its first weights; and of the text encoder before any training.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdw_jax.data.stored_rows import select_rows
from mdw_jax.data.streaming import concat_map
from mdw_jax.errors import UserError
from mdw_jax.io.checksums import write_listed_json
from mdw_jax.io.files import digest
from mdw_jax.io.keyed import read_keyed_arrays, write_keyed_arrays
from mdw_jax.io.locks import locked
from mdw_jax.io.records import complete
from mdw_jax.io.scores import METRICS
from mdw_jax.method import closed_form
from mdw_jax.method.closed_form import ClosedForm, FittedClosedForm
from mdw_jax.method.division import division_quality
from mdw_jax.method.filtering import spread
from mdw_jax.pipeline.prepared import Prepared, backbone_features
from mdw_jax.pipeline.preset_run import PresetRun, StageFolder
from mdw_jax.runtime.processes import barrier, is_main
from mdw_jax.runtime.progress import progress

ROUNDS = 2  # of its own division
_RECORD_FIELDS = ("ridge", "rank", "tau", "val", "test")


class StoredClosedForm(NamedTuple):
    """A closed form as the stage left it.

    Attributes:
        form: its maps.
        clean_probability: (K,) float32 its division of all training pairs; 0 where a filter dropped the pair.
        tau: the temperature at which the softmax of its cosines fits val (`closed_form.calibrated_tau`).
        record: closed_form.json.
    """

    form: ClosedForm
    clean_probability: np.ndarray
    tau: float
    record: dict


class FrozenFeatures(NamedTuple):
    """(N, F) features of the images of each split by the frozen backbone; those of `train` may stay on the host."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def frozen_features(prepared: Prepared) -> FrozenFeatures:
    """Image features of every split by the frozen backbone, or, where it is trained, by the backbone's first weights."""
    forward, train = backbone_features(prepared)
    if prepared.model.mode == "projection":
        val, test = (np.asarray(split.images, np.float32) for split in (prepared.val, prepared.test))
        return FrozenFeatures(train, val, test)
    val, test = (np.asarray(concat_map(forward, split.images, 100)) for split in (prepared.val, prepared.test))
    return FrozenFeatures(train, val, test)


def closed_form_folder(run: PresetRun, prepared: Prepared) -> StageFolder:
    """Where the closed form of a preset lies."""
    key = digest("closed form", prepared.key, run.noise.sha256, [run.filter.folder.key] if run.filter else [], ROUNDS,
                 closed_form.RIDGES, closed_form.RANKS)
    return StageFolder(Path(run.config.run.dir) / "closed_form" / key[:10], key)


def closed_form_stage(run: PresetRun, prepared: Prepared, rows: np.ndarray) -> dict:
    """Solve the closed form of a preset's pairs, and score it; nothing is done twice.

    Args:
        run: the preset.
        prepared: data and model.
        rows: (n,) rows of the training pairs that the preset sees (`experts.kept_pairs`).

    Returns:
        Its record, closed_form.json: recalls on val and test, ridge, rank, temperature, and all that was tried.

    Raises:
        UserError: stored files are damaged.
    """
    folder = closed_form_folder(run, prepared)
    with locked(folder.path.with_suffix(".lock")):  # processes of one sweep may want the same closed form
        record = complete(folder.path / "closed_form.json", folder.key, *_RECORD_FIELDS)
        return record or _make(run, prepared, folder, rows)


def load_closed_form(run: PresetRun, prepared: Prepared, rows: np.ndarray) -> StoredClosedForm:
    """The closed form of a preset, solved first if it is missing. Args: as in `closed_form_stage`.

    Raises:
        UserError: stored files are damaged.
    """
    record, folder = closed_form_stage(run, prepared, rows), closed_form_folder(run, prepared)
    arrays = read_keyed_arrays(folder.path / "form.safetensors", folder.key)
    if arrays is None:
        raise UserError(f"'{folder.path / 'form.safetensors'}' is missing or damaged; delete the directory "
                        f"'{folder.path}' and run again.")
    form = ClosedForm(*(arrays[name] for name in ClosedForm._fields))
    return StoredClosedForm(form, arrays["clean_probability"], record["tau"], record)


def test_embeddings(run: PresetRun, prepared: Prepared, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings (N, k) of the test images and (K, k) of the test captions by a preset's closed form."""
    form = load_closed_form(run, prepared, rows).form
    return (closed_form.embed_images(form, frozen_features(prepared).test),
            closed_form.embed_texts(form, prepared.texts.test.astype(np.float32, copy=False)))


def _make(run: PresetRun, prepared: Prepared, folder: StageFolder, rows: np.ndarray) -> dict:
    """Solve and store; the record comes last."""
    with progress(f"closed form (noise {run.noise.label})", 1, "solved") as advance:
        noise = run.noise
        features, texts = frozen_features(prepared), prepared.texts
        val = (features.val, np.asarray(texts.val), np.asarray(prepared.val.image_of))
        test = (features.test, np.asarray(texts.test), np.asarray(prepared.test.image_of))
        fitted = closed_form.fit(features.train, select_rows(texts.train, rows), np.asarray(noise.image_of)[rows], *val,
                                 rounds=ROUNDS)
        on_val, on_test = (closed_form.recalls(fitted.form, *split) for split in (val, test))
        advance(1, val_r_mean=float(on_val[-1]))
    if fitted.dividing_costs and is_main():
        print(f"closed form: on val all pairs score {fitted.dividing_costs:.2f} points more than without those suspected "
              "to be mismatched, so none is left out, and experts that it teaches take all of them too.", flush=True)
    probability = spread(fitted.clean_probability, rows, len(noise.image_of))
    record = {"key": folder.key, "noise": noise.sha256, "ridge": fitted.ridge, "rank": fitted.rank,
              "tau": closed_form.calibrated_tau(fitted.form, *val), "metrics": list(METRICS), "val": on_val.tolist(),
              "test": on_test.tolist(), "tried": _tried(fitted)}
    if noise.mismatched is not None:
        record["division"] = division_quality(probability, noise.mismatched)
    write_keyed_arrays(folder.path / "form.safetensors",
                       {**fitted.form._asdict(), "clean_probability": probability}, folder.key)
    write_listed_json(folder.path / "closed_form.json", record)
    barrier()  # no other process reads what the first has not written yet
    return record


def _tried(fitted: FittedClosedForm) -> list[dict]:
    return [row._asdict() for row in fitted.table]
