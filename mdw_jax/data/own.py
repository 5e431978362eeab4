"""A user's files as a data section: the reader and all its settings, splits held out where there are none."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mdw_jax.data.detect import Detection, detect
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.registry import load, settings_of
from mdw_jax.errors import UserError

HELD_OUT = 0.1  # share of the images for each split that the source does not have
_MOST_PIXELS = 2 * 10**9  # bytes of decoded training images; beyond, they are decoded when they are needed


class OwnData(NamedTuple):
    """What a user's files are.

    Attributes:
        detection: what they were taken for.
        settings: all settings of the reader, as they stand in the data section of a config.
        held_out: the splits that are held out of train, because the files have none of that name.
        images: training images.
        captions: training captions.
    """

    detection: Detection
    settings: dict[str, object]
    held_out: tuple[str, ...]
    images: int
    captions: int


def own_data(paths: Sequence[str], size: int) -> OwnData:
    """Find out how files are read, and count them; images and captions that cannot be used are left out, up to 5 %.

    Args:
        paths: see `detect`. They are made absolute, so that the run goes on wherever it is called from.
        size: side of the images, pixels, by which is decided whether all fit into memory.

    Raises:
        UserError: see `detect` and the readers.
    """
    detection = detect_own(paths)
    allowed = settings_of(detection.name)
    tolerant = {"on_error": "skip"} if "on_error" in allowed else {}
    settings, pairs = hold_out_missing(detection, tolerant | ({"max_skipped": 1.0} if tolerant else {}))
    images = len(pairs.train.images)
    if "stream" in allowed and images * size * size * 3 > _MOST_PIXELS:
        settings["stream"] = True
    held_out = tuple(split for split in ("val", "test") if f"holdout_{split}" in settings)
    return OwnData(detection, settings | tolerant, held_out, images, len(pairs.train.captions))


def detect_own(paths: Sequence[str]) -> Detection:
    """`detect` of the paths of --data, made absolute. Raises UserError as `detect`, and for an empty path."""
    if empty := [path for path in paths if not str(path).strip()]:
        raise UserError(f"--data is given an empty path ('{empty[0]}'); name the directory or the files of a data set.")
    return detect([str(Path(path).expanduser().resolve()) for path in paths])


def hold_out_missing(detection: Detection, tolerant: dict) -> tuple[dict[str, object], Pairs]:
    """A source's settings, with a tenth of its images held out for each split that it lacks; and its pairs, not decoded.

    Args:
        detection: of the source.
        tolerant: settings to load it with while it is counted.
    """
    missing = [split for split in ("val", "test") if split not in detection.has]
    allowed, settings = settings_of(detection.name), dict(detection.settings)
    quick = {**tolerant, **({"stream": True, "check": False} if "stream" in allowed else {})}
    if not missing or "holdout_val" not in allowed:
        return settings, load(detection.name, **settings, **quick)
    ones = {f"holdout_{split}": 1 for split in missing}
    pairs = load(detection.name, **settings, **ones, **quick)
    held = max(1, round(HELD_OUT * (len(pairs.train.images) + len(missing))))
    return settings | {f"holdout_{split}": held for split in missing}, pairs
