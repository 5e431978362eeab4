"""`mdw train`: students on a distilled set, written as files that `mdw search` reads, and scored."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config import base
from mdw_jax.config.sections import fields
from mdw_jax.config.stored import read_run_config, refuse_stored_functions
from mdw_jax.errors import UserError
from mdw_jax.export.backbone import tower_from
from mdw_jax.export.captions import caption_encoder, text_layout
from mdw_jax.export.evaluation_data import EvaluationData, embeddings_of, evaluation_data, text_features_of
from mdw_jax.export.student import Student, save_student
from mdw_jax.export.student_text import about_set
from mdw_jax.export.templates.checks import SEEDS, captions_digest
from mdw_jax.export.training import RECORD, Training, check_training, load_training, make_training, protocol_of
from mdw_jax.io.distilled_set import CARD, DistilledSet, load_distilled
from mdw_jax.io.scores import METRICS
from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.losses import distillation_loss
from mdw_jax.method.retrieval import recalls
from mdw_jax.method.student_schedule import Schedule
from mdw_jax.method.students import Protocol, StudentData, evaluate, trained
from mdw_jax.models.build import BuildContext, build_tower
from mdw_jax.models.dual_encoder import DualEncoder, dual_encoder
from mdw_jax.models.embedding import Inputs, compiled_inputs
from mdw_jax.pipeline.evaluate import set_seed, stored_scores
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.sets import student_data
from mdw_jax.reporting.stats import mean_text


def train_command(path: str, data: Sequence[str], out: str | None, tower: str | None, weights: str | None,
                  text: str | None, students: str, seed: str | None) -> None:
    """Train students on a set, print their scores, and write the first.

    Args:
        path: an export, or a set's directory in a run.
        data: paths of a data set to score on; (): the test split that the export or the run holds.
        out: directory of the student; None: `student` in the set's directory.
        tower: another image tower than the set was made for: frozen where `weights` are given, else trained from scratch.
        weights: of a tower with published weights.
        text: the text encoder (a model directory or Hub name), or a file of text features with a row for each caption
            number of `data`; None: what the set names.
        students: how many.
        seed: of the first; None: that of the run's students.

    Raises:
        UserError: there is no such set, something that is asked for cannot be had, or the training diverged.
    """
    count, directory = _whole(students, "--students", 1, 10**4), Path(path)
    if tower and not data:
        raise UserError("steps and step sizes of another tower are chosen on val; give a data set by --data PATH.")
    distilled, card = load_distilled(directory)
    training = _training(directory, distilled, card)
    check_training(training.record, distilled.texts.shape, directory)
    record = training.record
    image, seed_of_run = record["image"], record["chosen"]["seed"]
    features = text if text and Path(text).is_file() else None
    encoder = caption_encoder(record["text"], None if features else text)
    scored_on = evaluation_data(data, image["shape"], image["fit"], with_val=bool(tower)) if data else None
    number = seed_of_run if seed is None else _whole(seed, "--seed", 0)
    print(f"set:       {len(distilled.texts)} pairs, loss {distilled.loss}, {path}", flush=True)
    model = _other_model(tower, weights, record) if tower else _own_model(training, weights)

    def student_of(params) -> Student:
        return Student(model, params, tuple(image["shape"]), image["fit"], encoder, "", {})

    if tower:
        texts = text_features_of(student_of(None), scored_on.val, features)
        all_params, how = _searched(model, distilled, record, (scored_on.val, texts), number, count)
    else:
        all_params, how = _as_recorded(model, distilled, record, number, count), _steps_in_words(record)
    _refuse_diverged(model, distilled, all_params, record)
    print(f"tower:     {model.tower.name}, {'trained' if model.mode == 'full' else 'frozen, under a trained head'}")
    print(f"students:  {count}, seed {number}{_same_seed(number, seed_of_run, tower)}; {how}")
    scores = [_scores(student_of(params), scored_on, training, features) for params in all_params]
    folder = Path(out) if out else directory / "student"
    about = {"trained_by": "mdw train", "seed": number, "set": {**record.get("about", {}), "sha256": card["sha256"]},
             "scores": scores[0], "expected": None if tower else record["expected"]}
    save_student(folder, model, all_params[0], shape=image["shape"], text=record["text"], about=about, fit=image["fit"])
    _report(scores, record, scored_on, tower)
    print(f"student:   {folder}")


def _same_seed(number: int, seed_of_run: int, tower: str | None) -> str:
    return " (so these are the students of the run)" if number == seed_of_run and not tower else ""


def _whole(text: str, flag: str, least: int, most: int = SEEDS - 1) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text[:20]) <= most:
        raise UserError(f"{flag} must be a whole number of at least {least} and at most {most}, not '{text}'.")
    return int(text)


def _training(directory: Path, distilled: DistilledSet, card: dict) -> Training:
    """How students of a set are trained: from an export's training.json, or from the run that the set lies in."""
    if (directory / RECORD).is_file() or directory.resolve().parent.parent.name != "distilled":
        training = load_training(directory)
        if training.record["set"]["sha256"] != card["sha256"]:
            raise UserError(f"{RECORD} in '{directory}' is of another set than its {CARD}; export the set again.")
        return training
    run = directory.resolve().parents[2]
    config = read_run_config(run)
    for section in ("model", "text", "data", "evaluate"):
        config[section].update(card["config"].get(section, {}))
    refuse_stored_functions(config, directory, ())
    prepared, scores = prepare(config), stored_scores(directory)
    training = make_training(distilled, prepared.model, protocol_of(config.evaluate, scores), scores,
                             text=text_layout(config.text, prepared.texts.train.shape[1]),
                             seed=set_seed(config.run.seed, int(card["set"])), test=prepared.test,
                             captions=prepared.pairs.test.captions, fit=config.data.fit,
                             with_test=prepared.model.mode == "projection")
    training.record["about"] = about_set({**card, "data": prepared.pairs.name})
    return training


def _own_model(training: Training, weights: str | None) -> DualEncoder:
    """The dual encoder that the set was made for."""
    record = training.record
    image, shape = record["image"], tuple(record["image"]["shape"])
    if image["start"] == "drawn":
        section = base().model
        section.update(_settings_of(image["tower"]))
        tower = build_tower(section, shape, BuildContext())
    else:
        tower = tower_from(image["tower"], shape, training.tensors, weights)
    return dual_encoder(tower, tower.init(jax.random.key(0)), record["text"]["width"], mode=image["mode"],
                        dim=record["dim"], image_head=image["head"], tau=record["tau"], dtype=image["dtype"])


def _settings_of(layout: dict) -> dict:
    """The keys of a model section for a tower that is drawn anew, from its layout."""
    if layout["kind"] == "convnet":
        return {"tower": "convnet", "patches": tuple(layout["patches"]), "widths": tuple(layout["widths"])}
    if layout["kind"] == "vit":
        return {"tower": "vit", **{f"vit_{name}": layout[name] for name in ("patch", "width", "depth", "heads")}}
    raise UserError(f"the tower '{layout['kind']}' cannot be drawn anew; export the set again with this version.")


def _other_model(tower: str, weights: str | None, record: dict) -> DualEncoder:
    """A dual encoder with another image tower, frozen if it has weights; all else as the set was made for."""
    section, image = base().model, record["image"]
    section.tower, section.weights, mode = tower, weights or "", "projection" if weights else "full"
    built = build_tower(section, tuple(image["shape"]), BuildContext(setting="--tower"))
    return dual_encoder(built, built.init(jax.random.key(0)), record["text"]["width"], mode=mode, dim=record["dim"],
                        image_head=True, tau=record["tau"], dtype=image["dtype"])


def _as_recorded(model: DualEncoder, distilled: DistilledSet, record: dict, seed: int, count: int) -> list:
    """Parameters of students that are trained as the record says."""
    data = student_data(model, distilled)._replace(step_sizes=dict(record["step_sizes"]))
    phases = [phase["steps"] for phase in record["phases"]]
    every = math.gcd(*phases) if len(phases) > 1 else phases[0]
    decay_after = phases[0] if len(phases) > 1 else math.inf
    schedule = Schedule(every, [sum(phases)], decay_after, searched=False)
    [(_, params)] = trained(model, data, _protocol(record), schedule, 1.0, seed=seed, count=count)
    return params


def _protocol(record: dict, **changes) -> Protocol:
    settings = ConfigDict({**base().evaluate.to_dict(), "batch": record["batch"],
                           "momentum": record["optimizer"]["momentum"],
                           "weight_decay": record["optimizer"]["weight_decay"], **changes})
    return fields(Protocol, settings)


def _searched(model: DualEncoder, distilled: DistilledSet, record: dict, val: tuple, seed: int, count: int
              ) -> tuple[list, str]:
    """Students with another tower, at the steps and the scale that val chooses: their parameters; and how, in words.

    `val` is the split and the features of its captions.
    """
    (split, texts), scale = val, record["chosen"]["scale"]
    sizes = {branch: size / scale for branch, size in record["step_sizes"].items()}
    data: StudentData = student_data(model, distilled)._replace(step_sizes=sizes)
    pixels = np.asarray(split.images[np.arange(len(split.images))])
    images = pixels if model.mode == "full" else np.concatenate(
        [np.asarray(compiled_inputs(model)(pixels[start:start + 100])) for start in range(0, len(pixels), 100)])
    inputs = Inputs(jnp.asarray(images), jnp.asarray(texts), jnp.asarray(split.image_of, jnp.int32))
    protocol = _protocol(record, lr_scales=base().evaluate.tower_lr_scales)
    result = evaluate(model, data, inputs, None, protocol, seed=seed, students=count)
    edge = f" (still at the edge of the search: {', '.join(result.at_edge)})" if result.at_edge else ""
    return result.params, f"{result.steps} steps at scale {result.lr_scale:g}, chosen on val{edge}"


def _refuse_diverged(model: DualEncoder, distilled: DistilledSet, all_params: list, record: dict) -> None:
    """Raises UserError where the weights of a student, or its loss on the first pairs of the set, are not finite."""
    data, rows = student_data(model, distilled), np.arange(min(record["batch"], len(distilled.texts)))
    p = correspondence(data.correspondence, rows, data.alpha)
    for number, params in enumerate(all_params):
        loss = distillation_loss(data.loss)(model.logits(params, data.inputs[rows], data.texts[rows]), p)
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in (loss, *jax.tree.leaves(params))):
            raise UserError(f"the training diverged: weights or the loss of student {number} are not finite numbers, and "
                            f"nothing was written; export or copy the set again, or give another --seed.")


def _steps_in_words(record: dict) -> str:
    return f"{sum(phase['steps'] for phase in record['phases'])} steps at scale {record['chosen']['scale']:g} " \
           f"({record['chosen']['how']})"


def _scores(student: Student, scored_on, training: Training, text_features: str | None) -> dict[str, float] | None:
    """{metric: percent} of one student; None where there is nothing to score it on."""
    if scored_on is not None:
        images, texts, image_of = embeddings_of(student, scored_on.test, text_features)
    elif training.test:
        # The test split's features are what `embed_image` takes in projection mode.
        images = np.asarray(student.model.embed_image(student.params["image"], jnp.asarray(training.test["images"])))
        texts, image_of = student.embed_texts(training.test["texts"]), training.test["image_of"]
    else:
        return None
    values = recalls(jnp.asarray(images) @ jnp.asarray(texts).T, jnp.asarray(image_of))
    return dict(zip(METRICS, map(float, np.asarray(values)), strict=True))


def _is_test_split(scored_on: EvaluationData, record: dict) -> bool:
    """Whether the captions that were scored on are those of the run's test split; False where their digest is unknown."""
    captions = [caption for split in scored_on.test for caption in split.captions]
    return captions_digest(captions) == record.get("test_captions_sha256")


def _report(scores: Sequence[dict | None], record: dict, scored_on, tower: str | None) -> None:
    """Print the scores, beside those that were to be expected."""
    found = [score for score in scores if score is not None]
    if scored_on is not None:
        print(f"scored on: {scored_on.note}")
    if not found:
        print("scores:    none: the test split is not part of this export; give a data set by --data PATH.")
        return
    print("scores:    " + "  ".join(f"{name} {np.mean([score[name] for score in found]):.2f}" for name in METRICS[:-1]))
    values = [score["r_mean"] for score in found]
    print(f"r_mean:    {mean_text(values)}")
    expected = record["expected"]
    if tower or not expected or (scored_on is not None and not _is_test_split(scored_on, record)):
        print("expected:  nothing was measured for this tower and these data." if expected else
              "expected:  unknown: no student of this set was evaluated before.")
        return
    mean, std = expected["mean"]["r_mean"], expected["std"]["r_mean"]
    same = "" if scored_on is None else "; your captions are those of its test split"
    print(f"expected:  {mean:.2f} +- {std:.2f} ({expected['students']} students of the run{same})")
    if expected["t"] is not None:
        half = expected["t"] * std * math.sqrt(1 / len(values) + 1 / expected["students"])
        inside = "inside" if abs(np.mean(values) - mean) <= half + 1e-9 else "OUTSIDE"
        print(f"           95 % interval for {len(values)} more: {max(mean - half, 0):.2f} to {min(mean + half, 100):.2f}; "
              f"{np.mean(values):.2f} lies {inside}")
