"""Flickr8k, Flickr30K and COCO: images in directories or zip files, captions and splits in Karpathy's JSON."""

import gzip
import io
import zlib
from collections import Counter
from pathlib import Path

from mdw_jax.data.archives import locate
from mdw_jax.data.decoding import Encoded
from mdw_jax.data.pairs import Pairs, caption_error
from mdw_jax.data.records import Record, assemble
from mdw_jax.errors import UserError
from mdw_jax.io.files import parse_json

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def karpathy(annotations, images, size: int = 128, limit: int | None = None, *, stream: bool = False,
             skip_broken: bool = False, check: bool = True) -> Pairs:
    """Read a data set in Karpathy's schema.

    Args:
        annotations: `.json` or `.json.gz`; `images[*]` has `filename`, `split` and `sentences` (each `raw` and
            `sentid`), and in COCO `filepath`, the subdirectory. Split `restval` counts as train. All captions of an
            image are kept.
        images: a directory, a zip file (read in place, never extracted), a glob pattern, a comma-separated string of
            these, or a list of these. An image is looked up as `filepath/filename`, then as `filename`.
        size: pixels a side. Other sizes are resized to the square by bicubic interpolation, without cropping, as the
            baselines do; an image that has this size already is left as it is.
        limit: keep only the first `limit` images of each split, for a quick look; None keeps all.
        stream, skip_broken, check: as in `records.build`.
    Returns:
        `Pairs` with (N, size, size, 3) uint8 images and raw captions; `caption_ids` is `sentid`, and `attributes` has
        `filename`.
    Raises:
        UserError: the annotations are missing, damaged or in another schema (a key missing, no captions, empty
            captions, repeated sentids, an empty split), or images are missing, found twice or cannot be decoded.
    """
    if size < 1 or (limit is not None and limit < 1):
        raise UserError(f"size and limit must be at least 1, not {size} and {limit}.")
    document = _read_json(annotations)
    entries = _by_split(document, annotations, limit)
    encoded = iter(locate([_names(entry) for split in entries.values() for entry in split], images))
    records = {split: [_record(entry, next(encoded)) for entry in members] for split, members in entries.items()}
    name = document.get("dataset") or Path(annotations).name.split(".")[0]
    return assemble(str(name), records, size=size, stream=stream, skip_broken=skip_broken, check=check)


def _names(entry: dict) -> list[str]:
    """The names that an image may have, the likeliest first."""
    name = entry["filename"]
    return [f"{entry['filepath'].strip('/')}/{name}", name] if entry.get("filepath") else [name]


def _record(entry: dict, image: Encoded) -> Record:
    return Record(image, tuple(sentence["raw"] for sentence in entry["sentences"]),
                  tuple(sentence["sentid"] for sentence in entry["sentences"]), {"filename": entry["filename"]})


def _read_json(path) -> dict:
    try:
        data = Path(path).read_bytes()
        return parse_json(_unzipped(data) if data[:2] == b"\x1f\x8b" else data, object)
    except FileNotFoundError:
        raise UserError(f"there is no annotation file '{path}'; give the path of a Karpathy JSON.") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"'{path}' is not a readable JSON file ({error}); fetch it again.") from error


def _unzipped(data: bytes) -> bytes:
    """`data` unzipped. Raises ValueError for a bomb: text shrinks to a tenth, and nothing meant to be read to 1 / 200."""
    limit, unzipped = max(200 * len(data), 2**26), io.BytesIO()
    with gzip.open(io.BytesIO(data)) as file:
        while part := file.read(2**20):
            if unzipped.write(part) and unzipped.tell() > limit:
                raise ValueError(f"it unpacks to more than {limit} bytes")
    return unzipped.getvalue()


def _need(holder, key: str, kind: type, where: str, path):
    """`holder[key]`; UserError that names the key if it is missing or not of `kind`."""
    if not isinstance(holder, dict) or key not in holder:
        raise UserError(f"{where} in '{path}' has no key '{key}'; this is not Karpathy's schema.")
    if not isinstance(holder[key], kind) or (kind is int and isinstance(holder[key], bool)):
        raise UserError(f"'{key}' of {where} in '{path}' is of type {type(holder[key]).__name__}, not {kind.__name__}; "
                        "this is not Karpathy's schema.")
    return holder[key]


def _by_split(document, path, limit: int | None) -> dict[str, list[dict]]:
    """The checked image entries of each split; all of the file is checked even if `limit` keeps little of it."""
    entries = {"train": [], "val": [], "test": []}
    for i, entry in enumerate(_need(document, "images", list, "the top level", path)):
        where = f"image {i}"
        _need(entry, "filename", str, where, path)
        split = _need(entry, "split", str, where, path)
        if split not in SPLITS:
            raise UserError(f"{where} in '{path}' is of split '{split}', not one of {', '.join(SPLITS)}; fix it.")
        for sentence in _need(entry, "sentences", list, where, path):
            _need(sentence, "sentid", int, f"a sentence of {where}", path)
            _need(sentence, "raw", object, f"a sentence of {where}", path)
        if "filepath" in entry:
            _need(entry, "filepath", str, where, path)
        entries[SPLITS[split]].append(entry)
    _check_captions([entry for split in entries.values() for entry in split], path)
    for split, members in entries.items():
        if not members:
            raise UserError(f"split '{split}' of '{path}' has no images; train, val and test each need some.")
    return {split: members[:limit] for split, members in entries.items()}


def _check_captions(entries: list[dict], path) -> None:
    bare = [entry["filename"] for entry in entries if not entry["sentences"]]
    if bare:
        raise UserError(f"{len(bare)} images in '{path}' have no captions, the first is '{bare[0]}'; remove them.")
    times = Counter(_names(entry)[0] for entry in entries)
    if twice := [name for name, count in times.items() if count > 1]:
        raise UserError(f"{len(twice)} images in '{path}' are in several entries, the first is '{twice[0]}'; put all "
                        "captions of an image into one.")
    seen, repeated, wrong = set(), [], []
    for sentence in (sentence for entry in entries for sentence in entry["sentences"]):
        sentid, raw = sentence["sentid"], sentence["raw"]
        if sentid in seen:
            repeated.append(sentid)
        if error := caption_error(raw):
            wrong.append((sentid, error))
        seen.add(sentid)
    if repeated:
        raise UserError(f"{len(repeated)} sentids in '{path}' occur before, the first is {repeated[0]}; "
                        "number every caption once.")
    if wrong:
        raise UserError(f"{len(wrong)} captions in '{path}' are {wrong[0][1]}, the first has sentid {wrong[0][0]}; "
                        "fix or remove them.")
