"""From the records of a reader to `Pairs`: check captions, group images, hold out splits, decode images or not."""

import dataclasses
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from mdw_jax.data.decoding import Decoder, decode_into, digest_of, rgb, threads
from mdw_jax.data.encoded_columns import content_numbers
from mdw_jax.data.holdout import Holdouts, hold_out
from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.leaks import shared_content
from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.data.problems import Problems
from mdw_jax.data.record_table import ImageRows, Record, RecordTable
from mdw_jax.errors import UserError
from mdw_jax.io.packed_strings import PackedStrings

SPLITS = ("train", "val", "test")


def build(name: str, records: Mapping[str, Iterable[Record] | RecordTable], *, size: int = 128, stream: bool = False,
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
        if (holdout_val or holdout_test) and len(train):
            rows, images = hold_out(train.images, holdouts, name, notes, (pool, decoder))
            train = dataclasses.replace(train, images=images)
            splits |= {split: train.take(part) for split, part in rows.items()}
        if empty := next((split for split, members in splits.items() if not len(members)), None):
            raise UserError(_empty_split(problems.source or name, empty, len(splits["train"]), problems))
        chosen = {split: members if limit is None else members.take(np.arange(min(limit, len(members))))
                  for split, members in splits.items()}
        del splits, train
        decoded = {split: _decode(chosen.pop(split), stream, check, (pool, decoder)) for split in SPLITS}
    return _pairs(name, decoded, (problems, on_error, max_skipped), notes, (size, decoder))


def _check_settings(size: int, limit: int | None, holdouts: Holdouts) -> None:
    if size < 1 or (limit is not None and limit < 1) or min(holdouts.val, holdouts.test, holdouts.near_duplicates) < 0:
        raise UserError(f"size and limit must be at least 1 and hold-outs at least 0, not {size}, {limit}, "
                        f"{holdouts.val} and {holdouts.test} (near_duplicates: {holdouts.near_duplicates}).")
    if holdouts.near_duplicates and not (holdouts.val or holdouts.test):
        raise UserError("data.near_duplicates keeps pictures on one side of a held-out split, and none is held out; set "
                        "data.holdout_val or data.holdout_test, or leave it out.")


class _Decoded(NamedTuple):
    """The images of a split.

    Attributes:
        rows: as they are stored, with their captions.
        pixels: decoded; None where they are streamed.
        failures: {row: why it cannot be used}.
    """

    rows: ImageRows
    pixels: np.ndarray | None
    failures: Mapping[int, str]


def _decode(rows: ImageRows, stream: bool, check: bool, tools: tuple[ThreadPoolExecutor, Decoder]) -> _Decoded:
    """Decode all images, or look whether they can be decoded."""
    pool, decoder = tools
    if stream:
        images, failures = rows.images.validated(check, pool, decoder)
        return _Decoded(dataclasses.replace(rows, images=images), None, failures)
    pixels = np.empty((len(rows), *decoder.shape), np.uint8)
    failed = decode_into(pixels, rows.images, pool, decoder)
    # Of pixels 1 / 32 of the sides apart: all of them would take a tenth of the time of decoding.
    apart = tuple(slice(None, None, max(1, side // 32)) for side in pixels.shape[1:3])
    contents = content_numbers([None if failure else digest_of(row[apart])  # rows of broken images were never written
                                for row, failure in zip(pixels, failed, strict=True)])
    images = dataclasses.replace(rows.images, contents=contents)
    return _Decoded(dataclasses.replace(rows, images=images), pixels,
                    {row: failure for row, failure in enumerate(failed) if failure})


def _pairs(name: str, decoded: Mapping[str, _Decoded], policy: tuple[Problems, str, float], notes: list[str],
           form: tuple[int, Decoder]) -> Pairs:
    """The data set without the images that cannot be decoded. `policy`: the problems, `on_error` and `max_skipped`."""
    problems, on_error, max_skipped = policy
    parts: dict[str, Any] = {split: _split(part, *form) for split, part in decoded.items()
                             if len(part.failures) < len(part.rows)}
    _count_failures(decoded, problems)
    skipped = problems.settle(name, sum(len(part.images) for part in parts.values()),
                              sum(len(part.captions) for part in parts.values()), on_error, max_skipped)
    if lost := next((split for split in SPLITS if split not in parts), None):
        raise UserError(f"none of the {len(decoded[lost].rows)} images of split '{lost}' of '{problems.source or name}' "
                        f"can be decoded ({problems}); replace them.")
    leaks = shared_content({split: part.rows.images.contents for split, part in decoded.items()},
                           {split: part.captions for split, part in parts.items()})
    return Pairs(name, **parts, skipped=skipped, notes=(*notes, *leaks))


def splits_to_read(common: Mapping, **names: str) -> dict[str, str]:
    """The source's names of the splits to read: of train, and of val and test where they are not held out of train."""
    return {split: name for split, name in names.items() if not common.get(f"holdout_{split}")}


def _usable(records: Mapping[str, Iterable[Record] | RecordTable], problems: Problems) -> dict[str, ImageRows]:
    """The images of each split that have usable captions, each image once."""
    splits, count = {}, 0
    for split in SPLITS:
        given = records.get(split, ())
        table = given if isinstance(given, RecordTable) else RecordTable(given)
        problems.update(table.problems.counts, table.problems.first)
        splits[split] = table.rows(count)
        count += table.read
    return splits


def _empty_split(name: str, split: str, train: int, problems: Problems) -> str:
    lost = f" that can be used ({problems})" if problems.counts else ""
    if split == "train":
        return f"split 'train' of '{name}' has no images{lost}; {'fix this' if lost else 'check the source'}."
    hold = f"hold some out of train, as with data.holdout_{split}={max(1, train // 10)}"
    return (f"split '{split}' of '{name}' has no images{lost}; "
            f"{f'fix this, or {hold}' if lost else f'{hold}, or name the split of the source'}.")


def _count_failures(decoded: Mapping[str, _Decoded], problems: Problems) -> None:
    for part in decoded.values():
        for row, failure in part.failures.items():
            problems.add("broken image", f"{part.rows.place(row)} ({failure})")


def _split(decoded: _Decoded, size: int, decoder: Decoder) -> Split:
    """A split, without the images that failed."""
    rows, pixels = decoded.rows, decoded.pixels
    if decoded.failures:
        intact = np.delete(np.arange(len(rows)), list(decoded.failures))
        rows, pixels = rows.take(intact), None if pixels is None else pixels[intact]
    return Split(
        images=LazyImages(rows.images, size, decoder=decoder) if pixels is None else pixels,
        captions=rows.captions,
        image_of=np.repeat(np.arange(len(rows), dtype=np.int64), np.diff(rows.ends)),
        caption_ids=rows.caption_ids,
        attributes={"key": rows.images.keys, **{name: _column(values) for name, values in rows.attributes.items()}},
    )


def _column(values: list) -> np.ndarray | PackedStrings:
    """A column of bools, of numbers (None is nan), or else of text (None is '')."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, (bool, np.bool_)) for value in values):
        return np.array(values, bool)
    if present and all(isinstance(value, (int, float, np.integer, np.floating)) for value in present):
        return np.array(values if len(present) == len(values) else [np.nan if v is None else v for v in values])
    return PackedStrings.of("" if value is None else text(value) for value in values)


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
