"""Flickr8k, Flickr30K and COCO: images in directories or zip files, captions and splits in Karpathy's JSON."""

import zlib
from collections import Counter
from pathlib import Path

from mdw_jax.data.archives import locate
from mdw_jax.data.decoding import Encoded
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.problems import Problems, quoted
from mdw_jax.data.record_table import Record
from mdw_jax.data.records import build, splits_to_read
from mdw_jax.data.tables import json_rows, lines
from mdw_jax.data.uncaptioned import uncaptioned_note
from mdw_jax.errors import UserError
from mdw_jax.io.files import parse_json

_DIGITS = 18  # of a sentid, which is kept in 64 bits
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def karpathy(annotations, images, *, train_split: str = "train+restval", val_split: str = "val", test_split: str = "test",
             **common) -> Pairs:
    """Read a data set in Karpathy's schema.

    Args:
        annotations: `.json` or `.json.gz`; `images[*]` has `filename`, `split` and `sentences` (each `raw` and
            `sentid`), and in COCO `filepath`, the subdirectory. All captions of an image are kept.
        images: a directory, a zip file (read in place, never extracted), a glob pattern, a comma-separated string of
            these, or a list of these. An image is looked up as `filepath/filename`, then as `filename`.
        train_split, val_split, test_split: values of `split`, several joined by "+". COCO's `restval` counts as train.
        common: see `records.build`.
    Returns:
        `Pairs` with raw captions; `caption_ids` is `sentid`, and `attributes` has `filename`.
    Raises:
        UserError: the annotations are missing, damaged or in another schema (a key missing, repeated sentids), or what
            `records.build` and `archives.locate` raise.
    """
    problems = Problems(annotations)
    document = _read_json(annotations)
    wanted = splits_to_read(common, train=train_split, val=val_split, test=test_split)
    entries, notes = _by_split(document, annotations, wanted)
    keys = [_names(entry) for split in entries.values() for entry in split]
    notes += uncaptioned_note((_names(entry)[0] for entry in document["images"]), images, Path(annotations).name, True)
    encoded = iter(locate(keys, images, problems))
    records = {split: [_record(entry, image) for entry in members if (image := next(encoded)) is not None]
               for split, members in entries.items()}
    name = document.get("dataset") or Path(annotations).name.split(".")[0]
    return build(str(name), records, problems=problems, notes=notes, **common)


def _names(entry: dict) -> list[str]:
    """The names that an image may have, the likeliest first."""
    name = entry["filename"]
    return [f"{entry['filepath'].strip('/')}/{name}", name] if entry.get("filepath") else [name]


def _record(entry: dict, image: Encoded) -> Record:
    return Record(image, tuple(sentence["raw"] for sentence in entry["sentences"]),
                  tuple(int(sentence["sentid"]) for sentence in entry["sentences"]), {"filename": entry["filename"]})


def _read_json(path) -> dict:
    try:
        path = Path(path)
        return parse_json(lines.document(path, f"'{path}'"), object, json_rows.document_memory(path))
    except FileNotFoundError:
        raise UserError(f"there is no annotation file '{path}'; give the path of a Karpathy JSON.") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"'{path}' is not a readable JSON file ({error}); fetch it again.") from error


def _need(holder, key: str, kind: type | tuple[type, ...], where: str, path):
    """`holder[key]`; UserError that names the key if it is missing or not of `kind`."""
    if not isinstance(holder, dict) or key not in holder:
        raise UserError(f"{where} in '{path}' has no key '{key}'; this is not Karpathy's schema.")
    if not isinstance(holder[key], kind) or (key == "sentid" and isinstance(holder[key], bool)):
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise UserError(f"'{key}' of {where} in '{path}' is of type {type(holder[key]).__name__}, not {kinds}; this is not "
                        "Karpathy's schema.")
    return holder[key]


def _by_split(document, path, wanted: dict[str, str]) -> tuple[dict[str, list[dict]], list[str]]:
    """The checked image entries of each split, and what was left out, in sentences."""
    split_of = {value.strip(): split for split, values in wanted.items() for value in values.split("+")}
    entries: dict[str, list[dict]] = {split: [] for split in wanted}
    left_out: Counter = Counter()
    for i, entry in enumerate(_need(document, "images", list, "the top level", path)):
        where = f"image {i}"
        _need(entry, "filename", str, where, path)
        split = _need(entry, "split", str, where, path)
        for sentence in _need(entry, "sentences", list, where, path):
            sentid = _need(sentence, "sentid", (int, str), f"a sentence of {where}", path)
            if isinstance(sentid, str) and not sentid.isdecimal():
                raise UserError(f"'sentid' of a sentence of {where} in '{path}' is {quoted(sentid)}, no number; number the "
                                "captions.")
            if len(str(sentid)) > _DIGITS:
                raise UserError(f"'sentid' of a sentence of {where} in '{path}' is {quoted(str(sentid))}, and may have "
                                f"{_DIGITS} digits; number the captions.")
            _need(sentence, "raw", object, f"a sentence of {where}", path)
        if "filepath" in entry:
            _need(entry, "filepath", str, where, path)
        if split in split_of:
            entries[split_of[split]].append(entry)
        else:
            left_out[split] += 1
    _check_once([entry for split in entries.values() for entry in split], path)
    for split, members in entries.items():
        if not members:
            seen = ", ".join([*(f"{name} ({count} images)" for name, count in left_out.items()),
                              *(wanted[other] for other in entries if entries[other])])
            hold = f", or hold some out of train with data.holdout_{split}" * (split != "train")
            raise UserError(f"'{path}' has no image of split '{wanted[split]}', only of {seen or 'none'}; set "
                            f"data.{split}_split{hold}.")
    parts = ", ".join(f"{count} of {name}" for name, count in left_out.items())
    return entries, [f"images of '{Path(path).name}' of splits that are not read were left out: {parts}."] * bool(left_out)


def _check_once(entries: list[dict], path) -> None:
    """Raises UserError for an image in two entries, or two captions of one number."""
    times = Counter(_names(entry)[0] for entry in entries)
    if twice := [name for name, count in times.items() if count > 1]:
        raise UserError(f"{len(twice)} images in '{path}' are in several entries, the first is '{twice[0]}'; put all "
                        "captions of an image into one.")
    seen, repeated = set(), []
    for sentid in (int(sentence["sentid"]) for entry in entries for sentence in entry["sentences"]):
        if sentid in seen:
            repeated.append(sentid)
        seen.add(sentid)
    if repeated:
        raise UserError(f"{len(repeated)} sentids in '{path}' occur before, the first is {repeated[0]}; "
                        "number every caption once.")
