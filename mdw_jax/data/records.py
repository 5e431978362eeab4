"""From the records of a reader to `Pairs`: check captions, group images, hold out splits, decode images or not."""

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
    """An image and its captions.

    Attributes:
        image: the image as it is stored.
        captions: its captions.
        caption_ids: the data set's own numbers of the captions, one each.
        attributes: {column: value} of the image.
    """

    image: Encoded
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...] = ()
    attributes: Mapping[str, object] = {}


def build(name: str, records: Mapping[str, Sequence[Record]], *, size: int = 128, stream: bool = False,
          limit: int | None = None, skip_broken: bool = False, check: bool = True, holdout_val: int = 0,
          holdout_test: int = 0, holdout_seed: int = 0, skipped: Mapping[str, int] | None = None,
          decoder: Decoder | None = None) -> Pairs:
    """Build `Pairs` from the records of each split; the keyword arguments are the settings that all readers share.

    Records of a split with the same key are one image with several captions. `caption_ids` count the captions of the
    source in its order (train, val, test), whatever is held out, left out or limited. `attributes` has the `key`.

    Args:
        name: the data set's name.
        records: {split: its records}.
        size: pixels a side (`decoding.decode`).
        stream: images stay encoded where they are and are decoded when they are indexed (`LazyImages`); otherwise they
            are decoded into memory.
        limit: keep only the first `limit` images of each split; None keeps all.
        skip_broken: leave out images that cannot be decoded and count them in `Pairs.skipped`; otherwise an error.
        check: with `stream`, decode every image once at the start (a JPEG at reduced scale) to find broken ones.
            Without it, indexing a broken image raises UserError.
        holdout_val, holdout_test: where above 0, this many training images become the split (the source's own split of
            that name is not read): those whose keys come first in the order of a hash with `holdout_seed`. So a split
            depends on which images there are, not on their order; test does not depend on the size of val; and a
            broken image leaves its split one short.
        holdout_seed: of the hash.
        skipped: how many samples the reader left out, by reason.
        decoder: what decodes the files; None: `decoding.rgb(size)`.
    Raises:
        UserError: empty or no captions, an empty split, or images that cannot be decoded.
    """
    holdouts = {"val": holdout_val, "test": holdout_test}
    if size < 1 or (limit is not None and limit < 1) or min(holdouts.values()) < 0:
        raise UserError(f"size and limit must be at least 1 and hold-outs at least 0, not {size}, {limit}, "
                        f"{holdout_val} and {holdout_test}.")
    splits, count = {}, 0
    for split in SPLITS:
        numbered = []
        for record in records.get(split, ()):
            numbered.append(record._replace(caption_ids=tuple(range(count, count + len(record.captions)))))
            count += len(record.captions)
        splits[split] = _grouped(numbered)
    _check_captions(name, [record for members in splits.values() for record in members])
    if any(holdouts.values()):
        splits |= _hold_out(splits["train"], holdouts, holdout_seed, name)
    for split, members in splits.items():
        if not members:
            remedy = "check the source" if split == "train" else f"name another, or set holdout_{split}"
            raise UserError(f"split '{split}' of '{name}' has no images; {remedy}.")
    return assemble(name, {split: members[:limit] for split, members in splits.items()}, size=size, stream=stream,
                    skip_broken=skip_broken, check=check, skipped=skipped, decoder=decoder)


def splits_to_read(common: Mapping, **names: str) -> dict[str, str]:
    """The source's names of the splits to read: of train, and of val and test where they are not held out of train."""
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
                        f"'{wrong[0][0]}'; fix or remove them.")


def _grouped(records: Iterable[Record]) -> list[Record]:
    """Merge records of the same key: captions add up; place, image and attributes are those of the first."""
    images = {}
    for record in records:
        first = images.get(record.image.key)
        images[record.image.key] = record if first is None else first._replace(
            captions=first.captions + record.captions, caption_ids=first.caption_ids + record.caption_ids)
    return list(images.values())


def _hold_out(records: list[Record], holdouts: Mapping[str, int], seed: int, name: str) -> dict[str, list[Record]]:
    """`records` divided into train and the splits that `holdouts` asks for; each keeps the order of the records."""
    if sum(holdouts.values()) >= len(records):
        raise UserError(f"holding out {sum(holdouts.values())} images leaves none of the {len(records)} that '{name}' has "
                        "for train; hold out fewer.")
    keys = [record.image.key for record in records]
    order = sorted(range(len(keys)), key=lambda row: hashlib.sha256(f"{seed}/{keys[row]}".encode()).digest())
    split_of = dict.fromkeys(order[:holdouts["test"]], "test")
    split_of |= dict.fromkeys(order[holdouts["test"]:sum(holdouts.values())], "val")
    wanted = ["train", *(split for split, count in holdouts.items() if count)]
    return {split: [records[row] for row in range(len(records)) if split_of.get(row, "train") == split]
            for split in wanted}


def assemble(name: str, splits: Mapping[str, Sequence[Record]], *, size: int, stream: bool, skip_broken: bool,
             check: bool, skipped: Mapping[str, int] | None = None, decoder: Decoder | None = None) -> Pairs:
    """`Pairs` of the records of each split, as they are; the arguments are those of `build`."""
    decoder = decoder or rgb(size)
    images = [record.image for split in SPLITS for record in splits[split]]
    with ThreadPoolExecutor(threads()) as pool:
        if stream:
            images, failures = validate_images(images, check, pool, decoder)
        else:
            pixels = np.empty((len(images), *decoder.shape), np.uint8)
            failures = decode_into(pixels, images, pool, decoder)
    if not skip_broken:
        raise_decode_errors(images, failures, "replace them, or set skip_broken to leave them out", decoder.unit)
    intact = np.array([failure is None for failure in failures])
    skipped = dict(skipped or {})
    if not intact.all():
        skipped["broken image"] = skipped.get("broken image", 0) + int(np.sum(~intact))
    parts: dict[str, Any] = {}
    start = 0
    for split in SPLITS:
        rows = start + np.flatnonzero(intact[start:start + len(splits[split])])
        if not len(rows):
            raise UserError(f"none of the {len(splits[split])} images of split '{split}' of '{name}' can be decoded; "
                            "replace them.")
        members = [splits[split][row - start] for row in rows]
        # A slice where nothing is missing, so that memory holds the pixels once.
        of_split = slice(start, start + len(rows)) if len(rows) == len(splits[split]) else rows
        parts[split] = _split(members, LazyImages([images[row] for row in rows], size, decoder=decoder) if stream else
                              pixels[of_split])
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
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, (bool, np.bool_)) for value in values):
        return np.array(values, bool)
    if present and all(isinstance(value, (int, float, np.integer, np.floating)) for value in present):
        return np.array(values if len(present) == len(values) else [np.nan if v is None else v for v in values])
    return np.array(["" if value is None else text(value) for value in values])


def text(value) -> str:
    """A value as text; bytes are decoded as UTF-8, which TFDS stores its strings in."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def pick(row, path: str) -> list:
    """The values at `path` of a nested row, as a flat list: "captions/text" goes into dicts and through lists.

    Names may hold a slash themselves ("image/filename"): the longest that fits is taken.

    Raises:
        KeyError: the row has no such path.
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
    """Names from a tuple, a list or a comma-separated string.

    Args:
        value: the names.
        needed: what they are, if there must be at least one; "" if there may be none.
    Raises:
        UserError: they are needed and there are none.
    """
    parts = value.split(",") if isinstance(value, str) else value
    stripped = tuple(part.strip() for part in parts if part.strip())
    if needed and not stripped:
        raise UserError(f"no {needed} are given; name at least one.")
    return stripped
