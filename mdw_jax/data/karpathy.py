"""Flickr8k, Flickr30K and COCO: images in folders or zip files, captions and splits in Karpathy's JSON."""

import contextlib
import glob
import gzip
import io
import json
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.errors import UserError

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def karpathy(annotations, images, size: int = 128, limit: int | None = None) -> Pairs:
    """Read a data set in Karpathy's schema: `Pairs` with (N, size, size, 3) uint8 images and raw captions.

    annotations: `.json` or `.json.gz`; `images[*]` has `filename`, `split` and `sentences` (each `raw` and `sentid`),
      and in COCO `filepath`, the sub-folder. Split `restval` counts as train. Every caption of an image is kept.
    images: a folder, a zip file (read in place, never extracted), a glob pattern, a comma-separated string of these,
      or a list of these. An image is looked for as `filepath/filename`, then as `filename`.
    size: pixels a side. Other sizes are squashed to the square by bicubic interpolation, without cropping, as the
      peers do; an image of this size already is left as it is.
    limit: keep only the first `limit` images of each split, for a quick look; None keeps all.

    `caption_ids` is `sentid`; `attributes` has `filename`.
    Raises UserError if the annotations are missing, damaged or in another schema (a key missing, no captions, empty
    captions, repeated sentids, an empty split), or if images are missing, found twice or cannot be decoded.
    """
    if size < 1 or (limit is not None and limit < 1):
        raise UserError(f"size and limit must be at least 1, not {size} and {limit}.")
    document = _read_json(annotations)
    entries = _by_split(document, annotations, limit)
    with contextlib.ExitStack() as stack:
        finders = [_finder(source, stack) for source in _sources(images)]
        flat = [entry for split in entries.values() for entry in split]
        readers = _locate(flat, finders, images)
        pixels = _decode_all(flat, readers, size)
    ends = np.cumsum([len(split) for split in entries.values()])
    blocks = dict(zip(entries, np.split(pixels, ends[:-1])))
    name = document.get("dataset") or Path(annotations).name.split(".")[0]
    return Pairs(str(name), **{split: _split(entries[split], blocks[split]) for split in entries})


def _split(entries: list[dict], pixels: np.ndarray) -> Split:
    sentences = [sentence for entry in entries for sentence in entry["sentences"]]
    return Split(
        images=pixels,
        captions=tuple(sentence["raw"] for sentence in sentences),
        image_of=np.repeat(np.arange(len(entries), dtype=np.int64), [len(entry["sentences"]) for entry in entries]),
        caption_ids=np.array([sentence["sentid"] for sentence in sentences], np.int64),
        attributes={"filename": np.array([entry["filename"] for entry in entries])},
    )


# Annotations


def _read_json(path) -> dict:
    try:
        data = Path(path).read_bytes()
        return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except FileNotFoundError:
        raise UserError(f"there is no annotation file '{path}'; give the path of a Karpathy JSON.") from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not a readable JSON file ({error}); fetch it again.") from error


def _need(holder, key: str, kind: type, where: str, path):
    """`holder[key]` if it is there and of `kind`, else a UserError that names the key."""
    if not isinstance(holder, dict) or key not in holder:
        raise UserError(f"{where} in '{path}' has no key '{key}'; this is not Karpathy's schema.")
    if not isinstance(holder[key], kind) or (kind is int and isinstance(holder[key], bool)):
        raise UserError(f"'{key}' of {where} in '{path}' is of type {type(holder[key]).__name__}, not {kind.__name__}; "
                        "this is not Karpathy's schema.")
    return holder[key]


def _by_split(document, path, limit: int | None) -> dict[str, list[dict]]:
    """The image entries of each split, checked; the whole file is checked even if `limit` keeps little of it."""
    entries = {"train": [], "val": [], "test": []}
    for i, entry in enumerate(_need(document, "images", list, "the top level", path)):
        where = f"image {i}"
        _need(entry, "filename", str, where, path)
        split = _need(entry, "split", str, where, path)
        if split not in SPLITS:
            raise UserError(f"{where} in '{path}' is of split '{split}', not one of {', '.join(SPLITS)}.")
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
    seen, repeated, empty = set(), [], []
    for sentence in (sentence for entry in entries for sentence in entry["sentences"]):
        sentid, raw = sentence["sentid"], sentence["raw"]
        if sentid in seen:
            repeated.append(sentid)
        if not isinstance(raw, str) or not raw.strip():
            empty.append(sentid)
        seen.add(sentid)
    if repeated:
        raise UserError(f"{len(repeated)} sentids in '{path}' occur before, the first is {repeated[0]}; "
                        "number every caption once.")
    if empty:
        raise UserError(f"{len(empty)} captions in '{path}' are empty or not text, the first has sentid {empty[0]}; "
                        "mend or remove them.")


# Images

Reader = Callable[[], bytes]
Finder = Callable[[str], list[Reader]]


def _sources(images) -> list[str]:
    """The folders and zip files that `images` means, each once, in the order given."""
    given = images if isinstance(images, (list, tuple)) else [images]
    found = {}
    for part in (piece for entry in given for piece in _pieces(os.fspath(entry))):
        matches = [part] if os.path.exists(part) else sorted(glob.glob(part))
        if not matches:
            raise UserError(f"there is no image folder or zip file '{part}'; check where the images are.")
        found.update((os.path.realpath(match), match) for match in matches)
    if not found:
        raise UserError("no image folder or zip file is given; say where the images are.")
    return list(found.values())


def _pieces(text: str) -> Iterator[str]:
    """The comma-separated pieces of `text`, unless a path of just that name exists."""
    pieces = [text] if os.path.exists(os.path.expanduser(text)) else text.split(",")
    yield from (os.path.expanduser(piece.strip()) for piece in pieces if piece.strip())


def _finder(source: str, stack: contextlib.ExitStack) -> Finder:
    """A function from a file name to the ways to read it from `source`; `stack` closes what it opens."""
    if os.path.isdir(source):
        return partial(_in_folder, Path(source))
    try:
        archive = stack.enter_context(zipfile.ZipFile(source))
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"'{source}' is neither a folder nor a readable zip file ({error}).") from error
    members, tails = {}, {}
    for member in archive.namelist():
        members[member] = member
        parts = member.split("/")
        for i in range(1, len(parts)):
            tails.setdefault("/".join(parts[i:]), []).append(member)
    return partial(_in_archive, archive, threading.Lock(), members, tails)


def _in_folder(folder: Path, name: str) -> list[Reader]:
    path = folder / name
    return [path.read_bytes] if os.path.isfile(path) else []


def _in_archive(archive, lock, members: dict, tails: dict, name: str) -> list[Reader]:
    """`name` is a member's whole name or, failing that, the end of it (archives often hold one top folder)."""
    found = [members[name]] if name in members else tails.get(name, [])
    return [partial(_read_member, archive, lock, member) for member in found]


def _read_member(archive: zipfile.ZipFile, lock: threading.Lock, member: str) -> bytes:
    with lock:  # ZipFile counts its open members without a lock of its own
        return archive.read(member)


def _locate(entries: list[dict], finders: list[Finder], images) -> list[Reader]:
    """One reader an image. Twice the same name is an error: which of the two the captions describe is not known."""
    readers, missing, doubled = [], [], []
    for entry in entries:
        name = entry["filename"]
        keys = [f"{entry['filepath'].strip('/')}/{name}", name] if entry.get("filepath") else [name]
        found = next((hits for key in keys if (hits := [hit for find in finders for hit in find(key)])), [])
        if not found:
            missing.append(keys[0])
        elif len(found) > 1:
            doubled.append(keys[0])
        readers += found[:1]
    if missing:
        raise UserError(f"{len(missing)} of {len(entries)} images are not in '{images}', the first is "
                        f"'{missing[0]}'; check where the images are.")
    if doubled:
        raise UserError(f"{len(doubled)} of {len(entries)} images are more than once in '{images}', the first is "
                        f"'{doubled[0]}'; leave one copy.")
    return readers


def _decode_all(entries: list[dict], readers: list[Reader], size: int) -> np.ndarray:
    """(N, size, size, 3) uint8. Pillow decodes and resizes without the interpreter lock, so threads are enough."""
    pixels = np.empty((len(entries), size, size, 3), np.uint8)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        failures = list(pool.map(_decode, readers, pixels))
    bad = [(entry["filename"], failure) for entry, failure in zip(entries, failures) if failure]
    if bad:
        raise UserError(f"{len(bad)} of {len(entries)} images cannot be decoded, the first is '{bad[0][0]}' "
                        f"({bad[0][1]}); replace them.")
    return pixels


def _decode(read: Reader, out: np.ndarray) -> str | None:
    """Fill `out` (size, size, 3) with the image; None, or why it could not be done."""
    size = out.shape[:2]
    try:
        with Image.open(io.BytesIO(read())) as file:
            image = file.convert("RGB")
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow and zipfile raise a dozen kinds, bombs another
        return f"{type(error).__name__}: {error}"
    out[...] = np.asarray(image)
    return None
