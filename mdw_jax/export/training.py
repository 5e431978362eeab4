"""How a student is trained on an exported set: training.json, and the frozen backbone beside it.

    training.json         everything but the set and the weights (below)
    backbone.safetensors  the frozen image tower, or the weights that students start from (`export/backbone.py`)
    test.safetensors      only where it was asked for: features of the test split

training.json:

    format             "mdw_jax.training.1"
    set                file and sha256 of the set
    backbone           file and sha256 of its weights; null where the tower is drawn anew, or published and named only
    image, text        as in student.json (`export/student.py`); image.start: "stored" or "drawn"
    dim, tau           width of the shared space; temperature of the logits
    head               the projection head and its first weights, in words
    loss, alpha        the distillation loss; scale of a low-rank P
    optimizer          momentum and weight decay of SGD
    batch              pairs per step, drawn anew at each step
    step_sizes         of the two branches, scale included
    phases             [{steps, factor}]: how many steps, and by what the step sizes are multiplied
    chosen             how the scale and the number of steps were chosen, in words; scale; seed of the run's students
    expected           scores of the run's students on its test split (`expected_scores`); null where there are none
    towers             the same for each image tower that students of the run had
    test               file (or null), images and captions of the test split
    test_captions_sha256  sha256 of the captions of the test split (`templates/checks.py`), by which others can tell that
                       they score on the same; files of earlier versions have none
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mdw_jax.config.sections import fields
from mdw_jax.errors import UserError
from mdw_jax.export.backbone import SELF_CONTAINED, layout_of, named_tensors
from mdw_jax.export.templates.checks import InputError, captions_digest, check_files, check_record, check_texts
from mdw_jax.io.checksums import read_verified_json
from mdw_jax.io.distilled_set import TENSORS, DistilledSet
from mdw_jax.io.scores import METRICS
from mdw_jax.method.student_schedule import schedule_of
from mdw_jax.method.students import Protocol
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs
from mdw_jax.reporting.stats import deviation

RECORD, BACKBONE, TEST = "training.json", "backbone.safetensors", "test.safetensors"
TRAINING_FILES = (RECORD, BACKBONE, TEST)
FORMAT = "mdw_jax.training.1"
_GUESS = {"lr_scale": 1.0, "steps": 400}  # where no student was evaluated: nothing was measured
HEAD = {"computes": "h = W1 x; LayerNorm(W2 gelu(h) + h), with the exact gelu and an epsilon of 1e-5",
        "starts_from": "W1 and W2: normal, cut off at two standard deviations, of variance 1 / inputs; biases 0; "
                       "LayerNorm: weight 1, bias 0"}


class Training(NamedTuple):
    """How a student is trained on a set.

    Attributes:
        record: the contents of training.json.
        tensors: the backbone's weights; {} where they are not written.
        test: features of the test split, {"images" (N, F), "texts" (K, d), "image_of" (K,)}; {} where it is not handed on.
    """

    record: dict
    tensors: dict[str, np.ndarray]
    test: dict[str, np.ndarray]


def expected_scores(rows: Sequence[Mapping]) -> dict:
    """What a new student should score, from those of the run.

    Args:
        rows: of scores.csv, the students of one set.

    Returns:
        "students": n; "mean", "std": {metric: percent} (std 0 from one student); "select_on"; "t": the 97.5 % quantile of
        Student's distribution with n - 1 degrees of freedom; "interval_of_mean": mean +- t s / sqrt(n) of r_mean;
        "interval_of_one": mean +- t s sqrt(1 + 1/n), in which one more student falls with 95 % probability. The last
        three are None from one student.
    """
    values = {name: [float(row[name]) for row in rows] for name in METRICS}
    mean = {name: float(np.mean(column)) for name, column in values.items()}
    std = {name: deviation(column) or 0.0 for name, column in values.items()}
    count, t, interval_of_mean, interval_of_one = len(rows), None, None, None
    if count > 1:
        from scipy.special import stdtrit  # here, because SciPy is slow to import

        t = float(stdtrit(count - 1, 0.975))
        around = lambda half: [mean["r_mean"] - half, mean["r_mean"] + half]
        interval_of_mean = around(t * std["r_mean"] / math.sqrt(count))
        interval_of_one = around(t * std["r_mean"] * math.sqrt(1 + 1 / count))
    return {"students": count, "mean": mean, "std": std, "select_on": str(rows[0].get("select_on", "val")), "t": t,
            "interval_of_mean": interval_of_mean, "interval_of_one": interval_of_one}


def make_training(distilled: DistilledSet, model: DualEncoder, protocol: Protocol, scores: Sequence[dict], *,
                  text: dict, seed: int, test: Inputs, captions: Sequence[str], fit: str = "squash",
                  with_test: bool = False) -> Training:
    """How the students of a set were trained.

    Args:
        distilled: the set.
        model: the dual encoder that it was distilled for.
        protocol: how its students were trained and chosen.
        scores: what they scored (`pipeline.evaluate.stored_scores`), those of other image towers included.
        text: the text encoder (`export.captions.text_layout`).
        seed: of the run's students.
        test: the test split.
        captions: of the test split.
        fit: how a photo becomes a square.
        with_test: write the test split's features too.

    Raises:
        UserError: the image tower comes from outside the package, the text encoder is trained, or the test split would
            have to be handed on as images.
    """
    if model.text_tower is not None:
        raise UserError("sets of a run that trains its text encoder (text.train) have no training files yet.")
    if with_test and model.mode == "full":
        raise UserError("export.with_test hands features of the test split on, and students that train their backbone take "
                        "its images; leave it at False.")
    layout = layout_of(model.tower)
    stored = model.mode == "projection" or not _is_drawn(model)
    backbone = model.backbone if model.mode == "projection" else model.tower.init(jax.random.key(0))
    tensors = named_tensors(backbone, "backbone") if stored and layout["kind"] in SELF_CONTAINED else {}
    rows = next((one["rows"] for one in reversed(_with_tower(scores)) if not one["evaluate"].get("tower")), None)
    image = {"shape": list(distilled.seen_shape), "fit": fit, "mode": model.mode, "dtype": model.dtype,
             "head": model.image_head, "tower": layout, "start": "stored" if stored else "drawn"}
    record = {"format": FORMAT, "image": image, "text": text, "dim": model.dim, "tau": model.tau, "head": HEAD,
              "loss": distilled.loss, "alpha": float(distilled.alpha),
              **_schedule(distilled, protocol, rows, seed), "expected": expected_scores(rows) if rows else None,
              "towers": _towers(scores, layout),
              "test": {"file": None, "images": len(test.images), "captions": len(test.texts)},
              "test_captions_sha256": captions_digest(captions)}
    features = ({name: np.asarray(getattr(test, name), kind) for name, kind in
                 (("images", np.float32), ("texts", np.float32), ("image_of", np.int32))} if with_test else {})
    return Training(record, tensors, features)


def _schedule(distilled: DistilledSet, protocol: Protocol, rows: Sequence[Mapping] | None, seed: int) -> dict:
    """The entries of training.json on optimizer, steps and step sizes."""
    on_test = bool(rows) and rows[0].get("select_on") == "test"  # type: ignore[index]
    chosen = ({name: rows[0][name] for name in _GUESS} if rows else _GUESS)
    schedule = schedule_of(protocol, len(distilled.texts), on_test)
    steps, scale, last = int(chosen["steps"]), float(chosen["lr_scale"]), schedule.decay_after
    base = dict(distilled.step_sizes) or {"image": protocol.lr, "text": protocol.lr}
    sizes = {branch: scale * float(size) for branch, size in schedule.step_sizes(base, 0).items()}
    phases = [{"steps": int(min(steps, last)), "factor": 1.0}]
    if steps > last:
        phases.append({"steps": int(steps - last), "factor": 0.1})
    how = ("no student of this set was evaluated before the export: number of steps and scale are guesses" if not rows else
           "published schedule; the run reports the best evaluation of each student on test, which is optimistic" if on_test
           else "highest mean r_mean on val")
    return {"optimizer": {"name": "sgd", "momentum": protocol.momentum, "weight_decay": protocol.weight_decay},
            "batch": int(min(protocol.batch, len(distilled.texts))), "step_sizes": sizes, "phases": phases,
            "chosen": {"how": how, "scale": scale, "seed": seed}}


def _with_tower(scores: Sequence[dict]) -> list[dict]:
    """The evaluations whose image tower is known. Earlier versions did not name it; one alone is of the set's own tower."""
    return [one for one in scores if one["evaluate"] or len(scores) == 1]


def protocol_of(evaluate: ConfigDict, scores: Sequence[dict]) -> Protocol:
    """How students of a set were trained: by the settings of their evaluation, or by a config's where none are known."""
    own = [one["evaluate"] for one in scores if one["evaluate"] and not one["evaluate"].get("tower")]
    return fields(Protocol, ConfigDict({**evaluate.to_dict(), **(own[-1] if own else {})}))


def _towers(scores: Sequence[dict], layout: Mapping) -> list[dict]:
    """Each image tower that students of a set had, the latest evaluation of each, with its scores."""
    found: dict[tuple, dict] = {}
    for one in _with_tower(scores):
        settings = one["evaluate"]
        own = not settings.get("tower")
        name = (layout.get("name") or layout["kind"]) if own else settings["tower"]
        mode = None if own else settings.get("mode")
        found[(name, mode)] = {"tower": name, "own": own, "mode": mode, "expected": expected_scores(one["rows"])}
    return sorted(found.values(), key=lambda tower: not tower["own"])


def _is_drawn(model: DualEncoder) -> bool:
    """Whether a trained tower starts from random weights, and not from published or pretrained ones."""
    first, second = (jax.tree.leaves(model.tower.init(jax.random.key(seed))) for seed in (0, 1))
    return any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(first, second, strict=True))


# ---- files -----------------------------------------------------------------------------------------------------------


def training_files(training: Training, set_sha256: str) -> dict[str, bytes]:
    """{file name: its bytes} of a training; the sha256s of all files are in training.json."""
    record, files = dict(training.record), {}
    record["set"] = {"file": TENSORS, "sha256": set_sha256}
    record["backbone"] = None
    if training.tensors:
        files[BACKBONE] = save(training.tensors)
        record["backbone"] = {"file": BACKBONE, "sha256": hashlib.sha256(files[BACKBONE]).hexdigest()}
    if training.test:
        files[TEST] = save(training.test)
        record["test"] = {**record["test"], "file": TEST, "sha256": hashlib.sha256(files[TEST]).hexdigest()}
    files[RECORD] = (json.dumps(record, indent=2) + "\n").encode()
    return files


def load_training(path) -> Training:
    """Read how a student is trained on an export. Nothing in its files can run code.

    Raises:
        UserError: the export has no such files (those of earlier versions), or they are damaged.
    """
    directory = Path(path)
    try:
        record = read_verified_json(directory / RECORD)
    except FileNotFoundError:
        raise UserError(f"'{directory}' has no {RECORD}, which says how its students are trained: an earlier version of "
                        "mdw-jax exported it; export the set again.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{RECORD} in '{directory}' cannot be read ({error}); export or copy the set again.") from None
    if not isinstance(record, dict):
        raise _damaged(directory, InputError("it is no JSON object"))
    if record.get("format") != FORMAT:
        raise UserError(f"{RECORD} in '{directory}' is of the format {record.get('format')!r}, not {FORMAT}; export the "
                        "set again with this version.")
    try:
        check_record(record)
        check_files(record)
    except InputError as error:
        raise _damaged(directory, error) from None
    return Training(record, _tensors(directory, record["backbone"]), _tensors(directory, record["test"]))


def check_training(record: Mapping, shape: Sequence[int], where) -> None:
    """Check how a student is trained (`export/templates/checks.py`, which train.py uses too).

    Args:
        record: the contents of training.json.
        shape: (M, d) of the texts of the set.
        where: its directory, for the message.

    Raises:
        UserError: a key is missing, or holds what training cannot be done with; names the key.
    """
    try:
        check_record(record)
        check_texts(record, shape)
    except InputError as error:
        raise _damaged(where, error) from None


def _damaged(where, error: InputError) -> UserError:
    return UserError(f"{RECORD} in '{where}' cannot be used: {error}; export or copy the set again.")


def _tensors(directory: Path, entry) -> dict[str, np.ndarray]:
    """The tensors of a file that training.json names; {} where it names none."""
    if not entry or entry.get("file") is None:
        return {}
    try:
        if entry["file"] not in (BACKBONE, TEST):
            raise ValueError(f"it is called {entry['file']!r}")
        data = (directory / entry["file"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise ValueError(f"its sha256 differs from that in {RECORD}")
        return load(data)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{entry.get('file')!r} of the export '{directory}' cannot be used ({error}); export or copy the "
                        "set again.") from None
