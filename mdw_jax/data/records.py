"""From the records of a reader to `Pairs`: check captions, group images, hold out splits, decode images or not."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from mdw_jax.data.decoding import Decoder, Encoded, decode_into, digest_of, rgb, threads, validate_images
from mdw_jax.data.holdout import Holdouts, hold_out
from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.leaks import shared_content
from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.data.problems import Problems, caption_problem, quoted
from mdw_jax.errors import UserError

SPLITS = ("train", "val", "test")


class Record(NamedTuple):
    """An image and its captions.

    Attributes:
        image: the image as it is stored.
        captions: its captions, as they are written: `build` checks them.
        caption_ids: the data set's own numbers of the captions, one each; (): `build` counts.
        attributes: {column: value} of the image.
        line: where the captions (the first of several) stand in the table, for messages; 0: not known.
        place: says so, with "{}" for `line`.
    """

    image: Encoded
    captions: Sequence
    caption_ids: Sequence[int] = ()
    attributes: Mapping[str, object] = {}
    line: int = 0
    place: str = "line {}"


def build(name: str, records: Mapping[str, Iterable[Record]], *, size: int = 128, stream: bool = False,
          limit: int | None = None, on_error: str = "stop", max_skipped: float = 0.05, check: bool = True,
          holdout_val: int = 0, holdout_test: int = 0, holdout_seed: int = 0, near_duplicates: int = 0, fit: str = "crop",
          problems: Problems | None = None, notes: Iterable[str] = (), decoder: Decoder | None = None) -> Pairs:
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
        on_error: what to do about images that are absent or cannot be decoded, captions that are empty, broken rows
            (`problems.REASONS`): `stop`: an error that counts them; `skip`: leave them out, counted in `Pairs.skipped`.
        max_skipped: largest share of the images, and of the captions, that `skip` may leave out.
        check: with `stream`, decode every image once at the start (a JPEG at reduced scale) to find broken ones.
            Without it, indexing a broken image raises UserError.
        holdout_val, holdout_test: where above 0, this many training images become the split (the source's own split of
            that name is not read): those whose keys come first in the order of a hash with `holdout_seed`. So a split
            depends on which images there are, not on their order; test does not depend on the size of val; and a
            broken image leaves its split one short. Images that show the same stay on one side, which takes a look at
            every image.
        holdout_seed: of the hash.
        near_duplicates: images whose perceptual hashes differ in fewer than so many of 64 bits show the same too; 0:
            only those with the same pixels.
        fit: how images become square: `crop` or `squash` (`decoding.decode`).
        problems: what the reader could not use.
        notes: what the reader has to say of how it read the source, in sentences.
        decoder: what decodes the files; None: `decoding.rgb(size, fit)`.
    Raises:
        UserError: what `Problems.settle` raises, an empty split, or a setting that is out of range.
    """
    holdouts = Holdouts(holdout_val, holdout_test, holdout_seed, near_duplicates)
    _check_settings(size, limit, holdouts)
    problems, notes, decoder = problems or Problems(), list(notes), decoder or rgb(size, fit)
    splits = _usable(records, problems)
    if on_error == "stop":  # before anything is decoded
        problems.settle(name, 0, 0, on_error, max_skipped)
    with ThreadPoolExecutor(threads()) as pool:
        train = splits["train"]
        if (holdout_val or holdout_test) and train:
            rows, images = hold_out([record.image for record in train], holdouts, name, notes, (pool, decoder))
            splits |= {split: [train[row]._replace(image=images[row]) for row in part] for split, part in rows.items()}
        if empty := next((split for split, members in splits.items() if not members), None):
            raise UserError(_empty_split(problems.source or name, empty, len(splits["train"]), problems))
        chosen = {split: members[:limit] for split, members in splits.items()}
        decoded = _decode(chosen, stream, check, (pool, decoder))
    parts = _assemble(chosen, decoded, (size, decoder))
    _count_failures(chosen, decoded, problems)
    skipped = problems.settle(name, sum(len(part.images) for part in parts.values()),
                              sum(len(part.captions) for part in parts.values()), on_error, max_skipped)
    if lost := next((split for split in SPLITS if split not in parts), None):
        raise UserError(f"none of the {len(chosen[lost])} images of split '{lost}' of '{problems.source or name}' can be "
                        f"decoded ({problems}); replace them.")
    return Pairs(name, **parts, skipped=skipped, notes=(*notes, *_leaks(chosen, decoded, parts)))


def _check_settings(size: int, limit: int | None, holdouts: Holdouts) -> None:
    if size < 1 or (limit is not None and limit < 1) or min(holdouts.val, holdouts.test, holdouts.near_duplicates) < 0:
        raise UserError(f"size and limit must be at least 1 and hold-outs at least 0, not {size}, {limit}, "
                        f"{holdouts.val} and {holdouts.test} (near_duplicates: {holdouts.near_duplicates}).")
    if holdouts.near_duplicates and not (holdouts.val or holdouts.test):
        raise UserError("data.near_duplicates keeps pictures on one side of a held-out split, and none is held out; set "
                        "data.holdout_val or data.holdout_test, or leave it out.")


class _Decoded(NamedTuple):
    """The images of all splits, one after another.

    Attributes:
        images: as they are stored.
        pixels: decoded; None where they are streamed.
        failures: for each None, or why it cannot be used.
        contents: a digest of what each shows; None where that is not known.
    """

    images: list[Encoded]
    pixels: np.ndarray | None
    failures: list[str | None]
    contents: list[str | None]


def _decode(splits: Mapping[str, Sequence[Record]], stream: bool, check: bool,
            tools: tuple[ThreadPoolExecutor, Decoder]) -> _Decoded:
    """Decode all images, or look whether they can be decoded."""
    pool, decoder = tools
    images = [record.image for split in SPLITS for record in splits[split]]
    if stream:
        images, failures = validate_images(images, check, pool, decoder)
        return _Decoded(images, None, failures, [image.content for image in images])
    pixels = np.empty((len(images), *decoder.shape), np.uint8)
    failures = decode_into(pixels, images, pool, decoder)
    # Of pixels 1 / 32 of the sides apart: all of them would take a tenth of the time of decoding.
    apart = tuple(slice(None, None, max(1, side // 32)) for side in pixels.shape[1:3])
    contents = [None if failure else digest_of(row[apart])  # rows of broken images were never written
                for row, failure in zip(pixels, failures, strict=True)]
    return _Decoded(images, pixels, failures, contents)


def splits_to_read(common: Mapping, **names: str) -> dict[str, str]:
    """The source's names of the splits to read: of train, and of val and test where they are not held out of train."""
    return {split: name for split, name in names.items() if not common.get(f"holdout_{split}")}


def _usable(records: Mapping[str, Iterable[Record]], problems: Problems) -> dict[str, list[Record]]:
    """The images of each split that have usable captions, each image once."""
    splits, count = {}, 0
    for split in SPLITS:
        images: dict[str, Record] = {}
        for record in records.get(split, ()):
            captions, numbers = [], record.caption_ids or range(count, count + len(record.captions))
            ids = []
            for nth, (caption, number) in enumerate(zip(record.captions, numbers, strict=True), 1):
                if why := caption_problem(caption):
                    problems.add(why, _place(record, nth))
                else:
                    captions.append(caption)
                    ids.append(number)
            count += len(record.captions)
            if not record.captions:
                problems.add("no caption", _place(record))
            first = images.get(record.image.key)
            if captions:
                images[record.image.key] = (
                    record._replace(captions=tuple(captions), caption_ids=tuple(ids)) if first is None else
                    first._replace(captions=(*first.captions, *captions), caption_ids=(*first.caption_ids, *ids)))
        splits[split] = list(images.values())
    return splits


def _place(record: Record, nth: int = 1) -> str:
    """Where an image is, or its caption number `nth`."""
    key, where = quoted(record.image.key), at_line(record.place, record.line)
    if len(record.captions) > 1:
        return f"caption {nth} of {key}{f', whose first is in {where}' if where else ''}"
    return _image_place(record)


def _image_place(record: Record) -> str:
    where = at_line(record.place, record.line)
    return f"{quoted(record.image.key)}{f', {where}' if where else ''}"


def at_line(place: str, line: int) -> str:
    """Where a line (row) is, in words, by `Record.place`; "" for none."""
    return place.replace("{}", str(line), 1) if line else ""


def _empty_split(name: str, split: str, train: int, problems: Problems) -> str:
    lost = f" that can be used ({problems})" if problems.counts else ""
    if split == "train":
        return f"split 'train' of '{name}' has no images{lost}; {'fix this' if lost else 'check the source'}."
    hold = f"hold some out of train, as with data.holdout_{split}={max(1, train // 10)}"
    return (f"split '{split}' of '{name}' has no images{lost}; "
            f"{f'fix this, or {hold}' if lost else f'{hold}, or name the split of the source'}.")


def _count_failures(splits: Mapping[str, Sequence[Record]], decoded: _Decoded, problems: Problems) -> None:
    records = (record for split in SPLITS for record in splits[split])
    for record, failure in zip(records, decoded.failures, strict=True):
        if failure:
            problems.add("broken image", f"{_image_place(record)} ({failure})")


def _leaks(splits: Mapping[str, Sequence[Record]], decoded: _Decoded, parts: Mapping[str, Split]) -> list[str]:
    """What of val and test is in train too, in sentences."""
    bounds = np.cumsum([0, *(len(splits[split]) for split in SPLITS)])
    contents = {split: decoded.contents[bounds[n]:bounds[n + 1]] for n, split in enumerate(SPLITS)}
    return shared_content(contents, {split: part.captions for split, part in parts.items()})


def _assemble(splits: Mapping[str, Sequence[Record]], decoded: _Decoded, form: tuple[int, Decoder]) -> dict[str, Any]:
    """The splits, without the images that failed; one that has none left is absent."""
    size, decoder = form
    images, pixels = decoded.images, decoded.pixels
    intact = np.array([failure is None for failure in decoded.failures])
    parts: dict[str, Any] = {}
    start = 0
    for split in SPLITS:
        rows = start + np.flatnonzero(intact[start:start + len(splits[split])])
        members = [splits[split][row - start] for row in rows]
        # A slice where nothing is missing, so that memory holds the pixels once.
        of_split = slice(start, start + len(rows)) if len(rows) == len(splits[split]) else rows
        if members:
            parts[split] = _split(members, pixels[of_split] if pixels is not None else
                                  LazyImages([images[row] for row in rows], size, decoder=decoder))
        start += len(splits[split])
    return parts


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
