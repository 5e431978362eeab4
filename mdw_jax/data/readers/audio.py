"""Audio and its captions: files with a table, as Clotho and AudioCaps come, and ESC-50.

All later stages see log-mel images of one channel (`log_mel.py`).
"""

import csv
import dataclasses
import io
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import resample_poly

from mdw_jax.data.decoding import Decoder, Encoded
from mdw_jax.data.log_mel import LogMel
from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.data.readers.folder import folder
from mdw_jax.data.record_table import Record
from mdw_jax.data.records import build, names
from mdw_jax.errors import UserError
from mdw_jax.io.files import read_json
from mdw_jax.io.numpy_files import numpy_file
from mdw_jax.runtime.rng import named_generator

CLOTHO = tuple(f"caption_{number}" for number in range(1, 6))
"""The caption columns of Clotho's tables."""
OPENINGS = ("the sound of {}", "a recording of {}", "{} can be heard", "this is {}", "audio of {}", "one hears {}",
            "a clip of {}", "there is {}", "you can hear {}", "it sounds like {}", "listen to {}", "noise of {}")
ENDINGS = ("", " for a while", " in this file", " as it was recorded", " for a few seconds", " and so on")
TEMPLATES = tuple(opening + ending for ending in ENDINGS for opening in OPENINGS)
"""Captions of a class name: enough for all clips of a class in one fold to have their own (ties count as misses)."""
STORED = LogMel(22050, 5.0, 64, 128)
"""Of ESC-50's stored log-mels. Their sample rate is not recorded: librosa's default, right up to pitch and tempo."""


def audio(annotations, images="", *, val_annotations="", test_annotations="", train_list="", val_list="", test_list="",
          image_column: str = "file_name", caption_columns=CLOTHO, file_pattern: str = "", split_column: str = "",
          attribute_columns=(), train_split: str = "", val_split: str = "", test_split: str = "", delimiter: str = "",
          quoting: str = "", encoding: str = "", sample_rate: int = 16000, seconds: float = 10.0, mels: int = 64,
          frames: int = 128, **common) -> Pairs:
    """Read audio files (WAV, FLAC, Ogg, MP3) and a table of their captions, or a table for each split.

    Clotho: the three tables as they are. AudioCaps: image_column="youtube_id", caption_columns="caption" and a
    file_pattern such as "{}.wav" or "Y{}.wav". Channels are averaged and other sample rates resampled (polyphase).

    Args:
        annotations, images, and all others up to encoding: as in `folder`, with audio files for images.
        sample_rate, seconds, mels, frames: of the log-mels (`LogMel`).
        common: see `records.build`; `size` is ignored.
    Raises:
        UserError: the package soundfile is missing, or what `folder` and `LogMel` raise.
    """
    log_mel = LogMel(sample_rate, seconds, mels, frames)
    pairs = folder(annotations, images, val_annotations=val_annotations, test_annotations=test_annotations,
                   train_list=train_list, val_list=val_list, test_list=test_list, image_column=image_column,
                   caption_columns=caption_columns, file_pattern=file_pattern, split_column=split_column,
                   attribute_columns=attribute_columns, train_split=train_split, val_split=val_split,
                   test_split=test_split, delimiter=delimiter, quoting=quoting, encoding=encoding,
                   decoder=audio_decoder(log_mel), **common)
    return dataclasses.replace(pairs, log_mel=log_mel)


def audio_decoder(log_mel: LogMel) -> Decoder:
    """The decoder of audio files as log-mels.

    Raises:
        UserError: the package soundfile is missing.
    """
    _soundfile()
    decode = partial(decode_audio, log_mel=log_mel)
    return Decoder(log_mel.shape, decode, decode, "audio files", str(log_mel))


def decode_audio(data: bytes, log_mel: LogMel) -> np.ndarray:
    """Decode an audio file.

    Args:
        data: the bytes of the file.
        log_mel: the settings of the result.
    Returns:
        (mels, frames, 1) uint8.
    Raises:
        ValueError: it has no samples, or some that are not finite.
        Exception: what soundfile raises for files that it cannot read.
    """
    with _soundfile().SoundFile(io.BytesIO(data)) as file:
        rate = file.samplerate
        wave = file.read(math.ceil(log_mel.seconds * rate), dtype="float64", always_2d=True).mean(1)
    if not len(wave) or not np.isfinite(wave).all():
        raise ValueError("it has no samples, or some that are not finite")
    if rate != log_mel.sample_rate:
        common = math.gcd(rate, log_mel.sample_rate)
        wave = resample_poly(wave, log_mel.sample_rate // common, rate // common)
    return log_mel.image(wave)


def _soundfile():
    try:
        import soundfile  # an optional dependency
    except (ImportError, OSError) as error:  # OSError: the package without its library
        raise UserError("reading audio needs soundfile: pip install 'mdw-jax[audio]'.") from error
    return soundfile


def esc50(source, *, train_split="1,2", val_split="3", test_split="5", captions_per_image: int = 3, seed: int = 0,
          sample_rate: int = 22050, seconds: float = 5.0, mels: int = 64, frames: int = 128, **common) -> Pairs:
    """ESC-50 (Piczak 2015): 5 s clips of 50 classes in five folds, their captions the class names in `TEMPLATES`.

    A caption only tells the class, so nothing can tell the clips of one apart: with the eight clips that a class has in
    a fold, perfect knowledge of the class ends, on average, at IR@1/5/10 of 12.5/62.5/100 % and at three captions each
    TR@1/5/10 of 12.5/52.1/82.0 %, an r_mean of 53.6.

    Args:
        source: the directory of ESC-50 as published (`audio/`, `meta/esc50.csv`), or one with its log-mels computed
            beforehand: `esc50_logmel.npz` (logmel (N, mels, frames) uint8 as of `LogMel.image`, fold, target, clip)
            and `esc50_labels.json` (classes).
        train_split, val_split, test_split: folds, joined by commas; clips of one recording never leave their fold.
        captions_per_image: templates for each clip, no two clips of a class in a fold having the same.
        seed: chooses the templates.
        sample_rate, seconds, mels, frames: of the log-mels; ignored where they were computed beforehand.
        common: see `records.build`; likewise.
    Returns:
        `Pairs` with the attributes `category` and `fold`.
    Raises:
        UserError: the files are not there or damaged, or a fold has no clips or is in two splits.
    """
    if captions_per_image < 1:
        raise UserError(f"esc50: captions_per_image is {captions_per_image}; give at least 1.")
    folds = {split: [int(fold) for fold in names(value, "folds") if fold.isdigit()]
             for split, value in (("train", train_split), ("val", val_split), ("test", test_split))}
    all_folds = sum(folds.values(), [])
    if len(all_folds) != len(set(all_folds)) or not all(folds.values()):
        raise UserError(f"esc50: the folds {train_split}, {val_split} and {test_split} of train, val and test must be "
                        "different numbers, one or more each, joined by commas.")
    source = Path(source)
    if held := [key for key in ("holdout_val", "holdout_test") if common.get(key)]:
        raise UserError(f"data.{held[0]} is set, and the splits of esc50 are its folds, which keep clips of one recording "
                        "together; set data.val_split and data.test_split.")
    if not (source / "meta" / "esc50.csv").is_file():
        if unused := [key for key in common if key not in ("size", "fit", "check", "on_error", "max_skipped")]:
            raise UserError(f"data.{unused[0]} is set, and the log-mels in '{source}' were computed beforehand; leave it "
                            "out, or give the directory of ESC-50 with its audio files.")
        return _stored_log_mels(source, folds, captions_per_image, seed)
    log_mel, rows = LogMel(sample_rate, seconds, mels, frames), _esc50_table(source)
    captions = _captions([fold for _, fold, _ in rows], [category for *_, category in rows], captions_per_image, seed)
    records = {split: [Record(Encoded(name, (source / "audio" / name).read_bytes), captions_of_clip,
                              attributes={"category": category, "fold": fold})
                       for (name, fold, category), captions_of_clip in zip(rows, captions, strict=True)
                       if fold in folds_of_split]
               for split, folds_of_split in folds.items()}
    return dataclasses.replace(build("esc50", records, decoder=audio_decoder(log_mel), **common), log_mel=log_mel)


def _esc50_table(source: Path) -> list[tuple[str, int, str]]:
    """(file name, fold, category) of each clip."""
    try:
        with open(source / "meta" / "esc50.csv", newline="") as file:
            return [(row["filename"], int(row["fold"]), row["category"]) for row in csv.DictReader(file)]
    except (KeyError, ValueError, csv.Error, OSError) as error:
        raise UserError(f"'{source}/meta/esc50.csv' is not ESC-50's table ({error!r}); fetch it again.") from None


def _stored_log_mels(source: Path, folds: dict, per_image: int, seed: int) -> Pairs:
    """`esc50` of log-mels computed beforehand."""
    try:
        with numpy_file(source / "esc50_logmel.npz") as file:
            images, fold, target, clip = (file[name] for name in ("logmel", "fold", "target", "clip"))
        classes = read_json(source / "esc50_labels.json")["classes"]
        category = np.array(classes)[target]
        if not len(images) == len(fold) == len(target) == len(clip):
            raise ValueError("arrays of different lengths")
    except FileNotFoundError as error:
        raise UserError(f"'{source}' holds neither meta/esc50.csv nor {Path(error.filename).name}; set data.source to "
                        "the directory of ESC-50.") from None
    except (KeyError, ValueError, IndexError, TypeError, OSError) as error:
        raise UserError(f"the log-mels in '{source}' are damaged ({error!r}); fetch them again.") from None
    splits: dict[str, Any] = {}
    first, captions_of = 0, _captions(fold.tolist(), category.tolist(), per_image, seed)
    for split, folds_of_split in folds.items():
        rows = np.flatnonzero(np.isin(fold, folds_of_split))
        if missing := sorted(set(folds_of_split) - set(fold[rows].tolist())):
            raise UserError(f"'{source}' has no clips of fold {missing[0]}, only of {sorted(set(fold.tolist()))}; "
                            f"change data.{split}_split.")
        captions = [caption for row in rows for caption in captions_of[row]]
        splits[split] = Split(
            images=images[rows][..., None], captions=tuple(captions),
            image_of=np.repeat(np.arange(len(rows), dtype=np.int64), per_image),
            caption_ids=np.arange(first, first + len(captions), dtype=np.int64),
            attributes={"key": clip[rows], "category": category[rows], "fold": fold[rows].astype(np.int64)})
        first += len(captions)
    return Pairs("esc50", **splits, log_mel=dataclasses.replace(STORED, mels=images.shape[1],
                                                                frames=images.shape[2]))


def _captions(folds, categories, count: int, seed: int) -> list[tuple[str, ...]]:
    """`count` captions for each clip; those of one category and fold come from one shuffled pack of templates."""
    packs, captions = {}, []
    for fold, category in zip(folds, categories, strict=True):
        pack = packs.setdefault((fold, category), [])
        while len(pack) < count:
            order = named_generator(seed, "esc50", fold, category, len(captions)).permutation(len(TEMPLATES))
            pack += [TEMPLATES[number] for number in order]
        captions.append(tuple(pack.pop(0).format(category.replace("_", " ")) for _ in range(count)))
    return captions
