"""From what a reader found to `Pairs`: captions checked, images grouped, splits held out, pictures decoded or not."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from mdw_jax.data.decoding import Decoder, Encoded, decode_into, raise_decode_errors, rgb, threads, validate_images
from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.pairs import Pairs, Split, caption_error
from mdw_jax.errors import UserError

SPLITS = ("train", "val", "test")


class Record(NamedTuple):
    """An image and its captions. caption_ids: the data set's own caption numbers, one each."""

    image: Encoded
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...] = ()
    attributes: Mapping[str, object] = {}


def build(name: str, found: Mapping[str, Sequence[Record]], *, size: int = 128, stream: bool = False,
          limit: int | None = None, skip_broken: bool = False, check: bool = True, holdout_val: int = 0,
          holdout_test: int = 0, holdout_seed: int = 0, skipped: Mapping[str, int] | None = None,
          form: Decoder | None = None) -> Pairs:
    """The settings that readers share, and what they do to the records that a reader `found` in each split.

    size: pixels a side (`decoding.decode`). form: what the files become instead of pictures.
    stream: images stay encoded where they are and are decoded when asked for (`LazyImages`); otherwise in memory.
    limit: keep only the first `limit` images of each split; None keeps all.
    skip_broken: leave out images that cannot be decoded and count them in `Pairs.skipped`; otherwise an error.
    check: with `stream`, decode every image once at the start (a JPEG at reduced scale) to find broken ones. Without
      it one is met only when it is asked for, as a UserError.
    holdout_val, holdout_test: where above 0, this many training images become the split (the source's own split of
      that name is not read): those whose keys come first in the order of a hash with `holdout_seed`. So a split
      depends on which images there are, not on their order; test does not depend on the size of val; and a broken
      image leaves its split one short.

    Records of a split with the same key are one image with several captions. `caption_ids` count the captions of the
    source in its order (train, val, test), whatever is held out, left out or limited. `attributes` has the `key`.
    Raises UserError for empty or no captions, an empty split, or images that cannot be decoded.
    """
    held = {"val": holdout_val, "test": holdout_test}
    if size < 1 or (limit is not None and limit < 1) or min(held.values()) < 0:
        raise UserError(f"size and limit must be at least 1 and hold-outs at least 0, not {size}, {limit}, "
                        f"{holdout_val} and {holdout_test}.")
    splits, count = {}, 0
    for split in SPLITS:
        records = []
        for record in found.get(split, ()):
            records.append(record._replace(caption_ids=tuple(range(count, count + len(record.captions)))))
            count += len(record.captions)
        splits[split] = _grouped(records)
    _check_captions(name, [record for records in splits.values() for record in records])
    if any(held.values()):
        splits |= _hold_out(splits["train"], held, holdout_seed, name)
    for split, records in splits.items():
        if not records:
            remedy = "check the source" if split == "train" else f"name another, or set holdout_{split}"
            raise UserError(f"split '{split}' of '{name}' has no images; {remedy}.")
    return assemble(name, {split: records[:limit] for split, records in splits.items()}, size=size, stream=stream,
                    skip_broken=skip_broken, check=check, skipped=skipped, form=form)


def unheld(common: Mapping, **names: str) -> dict[str, str]:
    """Of the source's names for train, val and test those to read: not of splits that are held out of train."""
    return {split: name for split, name in names.items() if not common.get(f"holdout_{split}")}


def _check_captions(name: str, records: Iterable[Record]) -> None:
    bare, wrong = [], []
    for record in records:
        if not record.captions:
            bare.append(record.image.key)
        wrong += [(record.image.key, why) for caption in record.captions if (why := caption_error(caption))]
    if bare:
        raise UserError(f"{len(bare)} images of '{name}' have no captions, the first is '{bare[0]}'; remove them.")
    if wrong:
        raise UserError(f"{len(wrong)} captions of '{name}' are {wrong[0][1]}, the first is one of image "
                        f"'{wrong[0][0]}'; mend or remove them.")


def _grouped(records: Iterable[Record]) -> list[Record]:
    """Records of one key made one, in the place of its first, with that one's image and attributes."""
    images = {}
    for record in records:
        first = images.get(record.image.key)
        images[record.image.key] = record if first is None else first._replace(
            captions=first.captions + record.captions, caption_ids=first.caption_ids + record.caption_ids)
    return list(images.values())


def _hold_out(records: list[Record], held: Mapping[str, int], seed: int, name: str) -> dict[str, list[Record]]:
    """`records` parted into train and the splits that `held` asks for; each keeps the records' order."""
    if sum(held.values()) >= len(records):
        raise UserError(f"holding out {sum(held.values())} images leaves none of the {len(records)} that '{name}' has "
                        "for train; hold out fewer.")
    keys = [record.image.key for record in records]
    order = sorted(range(len(keys)), key=lambda row: hashlib.sha256(f"{seed}/{keys[row]}".encode()).digest())
    split_of = dict.fromkeys(order[:held["test"]], "test")
    split_of |= dict.fromkeys(order[held["test"]:sum(held.values())], "val")
    asked = ["train", *(split for split, count in held.items() if count)]
    return {split: [records[row] for row in range(len(records)) if split_of.get(row, "train") == split]
            for split in asked}


def assemble(name: str, splits: Mapping[str, Sequence[Record]], *, size: int, stream: bool, skip_broken: bool,
             check: bool, skipped: Mapping[str, int] | None = None, form: Decoder | None = None) -> Pairs:
    """`Pairs` of the records of each split, as they are; the settings are those of `build`."""
    form = form or rgb(size)
    images = [record.image for split in SPLITS for record in splits[split]]
    with ThreadPoolExecutor(threads()) as pool:
        if stream:
            images, failures = validate_images(images, check, pool, form)
        else:
            pixels = np.empty((len(images), *form.shape), np.uint8)
            failures = decode_into(pixels, images, pool, form)
    if not skip_broken:
        raise_decode_errors(images, failures, "replace them, or set skip_broken to leave them out", form.unit)
    whole = np.array([failure is None for failure in failures])
    skipped = dict(skipped or {})
    if not whole.all():
        skipped["broken image"] = skipped.get("broken image", 0) + int(np.sum(~whole))
    parts: dict[str, Any] = {}
    start = 0
    for split in SPLITS:
        rows = start + np.flatnonzero(whole[start:start + len(splits[split])])
        if not len(rows):
            raise UserError(f"none of the {len(splits[split])} images of split '{split}' of '{name}' can be decoded; "
                            "replace them.")
        kept = [splits[split][row - start] for row in rows]
        # A slice where nothing is missing, so that memory holds the pixels once.
        ours = slice(start, start + len(rows)) if len(rows) == len(splits[split]) else rows
        parts[split] = _split(kept, LazyImages([images[row] for row in rows], size, form=form) if stream else
                              pixels[ours])
        start += len(splits[split])
    return Pairs(name, **parts, skipped=skipped)


def _split(records: Sequence[Record], images) -> Split:
    counts = [len(record.captions) for record in records]
    columns: dict[str, list] = {"key": [record.image.key for record in records]}
    columns |= {column: [record.attributes[column] for record in records] for column in records[0].attributes}
    return Split(
        images=images,
        captions=tuple(caption for record in records for caption in record.captions),
        image_of=np.repeat(np.arange(len(records), dtype=np.int64), counts),
        caption_ids=np.array([number for record in records for number in record.caption_ids], np.int64),
        attributes={column: _column(values) for column, values in columns.items()},
    )


def _column(values: list) -> np.ndarray:
    """A column of bools, of numbers (None is nan), or else of text (None is '')."""
    there = [value for value in values if value is not None]
    if there and all(isinstance(value, (bool, np.bool_)) for value in values):
        return np.array(values, bool)
    if there and all(isinstance(value, (int, float, np.integer, np.floating)) for value in there):
        return np.array(values if len(there) == len(values) else [np.nan if v is None else v for v in values])
    return np.array(["" if value is None else text(value) for value in values])


def text(value) -> str:
    """A value as text; bytes are UTF-8, as TFDS has its strings."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def pick(row, path: str) -> list:
    """The values at `path` of a nested row, as a flat list: "captions/text" goes into dicts and through lists.

    Names may hold a slash themselves ("image/filename"): the longest that fits is taken. Raises KeyError.
    """
    if isinstance(row, (list, tuple, np.ndarray)):
        return [value for member in row for value in pick(member, path)]
    if not path:
        return [row]
    if not isinstance(row, Mapping):
        raise KeyError(path)
    parts = path.split("/")
    for i in range(len(parts), 0, -1):
        if (name := "/".join(parts[:i])) in row:
            return pick(row[name], "/".join(parts[i:]))
    raise KeyError(path)


def names(value, needed: str = "") -> tuple[str, ...]:
    """Names given as a tuple, a list or a comma-separated string; UserError if they are `needed` and none is given."""
    parts = value.split(",") if isinstance(value, str) else value
    given = tuple(part.strip() for part in parts if part.strip())
    if needed and not given:
        raise UserError(f"no {needed} are given; name at least one.")
    return given
