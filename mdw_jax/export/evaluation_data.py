"""A data set of the user's to score students on, in any form that `mdw inspect` knows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mdw_jax.data.own import detect_own, hold_out_missing
from mdw_jax.data.pairs import Split
from mdw_jax.data.problems import in_words
from mdw_jax.data.registry import load, settings_of
from mdw_jax.errors import UserError
from mdw_jax.export.student import Student
from mdw_jax.models.text.precomputed import precomputed_features

_BATCH = 500  # images decoded at a time


class EvaluationData(NamedTuple):
    """What students are scored on.

    Attributes:
        test: the splits that count, as one.
        val: the split by which step sizes and steps can be chosen; None where it was not asked for.
        note: what is what, in a sentence for the user.
    """

    test: list[Split]
    val: Split | None
    note: str


def evaluation_data(paths: Sequence[str], shape: Sequence[int], fit: str, with_val: bool = False) -> EvaluationData:
    """Read a data set to score students on: its test split, or all of it where it has no splits.

    Images and captions that cannot be used are left out, and counted in the note.

    Args:
        paths: see `mdw_jax.data.detect.detect`.
        shape: (H, W, C) of the images that students take.
        fit: how a photo becomes a square.
        with_val: whether a val split is needed too: the data set's own, or a tenth of the images.

    Raises:
        UserError: see `detect` and the readers; or the images have another shape.
    """
    detection = detect_own(paths)
    allowed = settings_of(detection.name)
    tolerant = {"on_error": "skip", "max_skipped": 1.0} if "on_error" in allowed else {}
    settings, _ = hold_out_missing(detection, tolerant)
    wanted = {name: value for name, value in (("size", shape[0]), ("fit", fit)) if name in allowed}
    pairs = load(detection.name, **settings, **tolerant, **wanted)
    if pairs.train.images.shape[1:] != tuple(shape):
        raise UserError(f"the images of '{paths[0]}' are of shape {pairs.train.images.shape[1:]}, and the student takes "
                        f"{tuple(shape)}; give data of that kind.")
    if "test" in detection.has or "holdout_test" not in settings:
        test, what = [pairs.test], "its test split"
    elif with_val:
        test, what = [pairs.train, pairs.test], "all images but a tenth, by which steps are chosen (there is no test split)"
    else:
        test, what = [pairs.train, pairs.val, pairs.test], "all of it (there is no test split)"
    left_out = f"; left out: {in_words(pairs.skipped)}" if pairs.skipped else ""
    counts = sum(len(split.images) for split in test), sum(len(split.captions) for split in test)
    return EvaluationData(test, pairs.val if with_val else None,
                          f"{detection.form}: {what}, {counts[0]} images, {counts[1]} captions{left_out}")


def text_features_of(student: Student, split: Split, features: str | None) -> np.ndarray:
    """(K, d) text features of a split: its rows of a feature file, or by the student's encoder."""
    if features is not None:
        return precomputed_features(features, split.caption_ids)
    return student.encode_captions(list(split.captions))


def embeddings_of(student: Student, splits: Sequence[Split], features: str | None
                  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of several splits as one.

    Args:
        student: what embeds.
        splits: their images may be decoded on demand.
        features: a file of text features, a row for each caption number; None: the student's encoder.

    Returns:
        (N, D) images, (K, D) captions, (K,) the image of each caption.
    """
    images, texts, image_of, before = [], [], [], 0
    for split in splits:
        images += [student.embed_images(np.asarray(split.images[start:start + _BATCH]))
                   for start in range(0, len(split.images), _BATCH)]
        texts.append(student.embed_texts(text_features_of(student, split, features)))
        image_of.append(np.asarray(split.image_of) + before)
        before += len(split.images)
    return np.concatenate(images), np.concatenate(texts), np.concatenate(image_of)
