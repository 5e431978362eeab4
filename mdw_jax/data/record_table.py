"""From a reader's records, one after another, to the images of a split in columns, each image once."""

import dataclasses
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mdw_jax.data.decoding import Encoded
from mdw_jax.data.encoded_columns import EncodedBuilder, EncodedColumns
from mdw_jax.data.problems import Problems, caption_problem, quoted
from mdw_jax.io.packed_strings import PackedStrings, StringPacker


class Record(NamedTuple):
    """An image and its captions.

    Attributes:
        image: the image as it is stored.
        captions: its captions, as they are written: `RecordTable` checks them.
        caption_ids: the data set's own numbers of the captions, one each; (): `records.build` counts.
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


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRows:
    """N images with their K captions, in columns.

    Attributes:
        images: as they are stored.
        captions: those of the first image, then those of the second, ...
        ends: (N + 1,) int64, how many captions come before each image, and in all.
        caption_ids: (K,) int64, the data set's own numbers of the captions.
        attributes: {column: N values}.
        lines: (N,) int64, and
        place_of: (N,) int32, row of `places`: where each image stands, for messages.
        places: `Record.place`, each once.
    """

    images: EncodedColumns
    captions: PackedStrings
    ends: np.ndarray
    caption_ids: np.ndarray
    attributes: Mapping[str, list]
    lines: np.ndarray
    place_of: np.ndarray
    places: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> "ImageRows":
        """Some of the images, in the order of `rows`."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        counts = np.diff(self.ends)[rows]
        ends = np.concatenate([[0], np.cumsum(counts)])
        captions = np.arange(ends[-1]) + np.repeat(self.ends[:-1][rows] - ends[:-1], counts)
        return dataclasses.replace(
            self, images=self.images[rows], captions=self.captions[captions], ends=ends,
            caption_ids=self.caption_ids[captions], lines=self.lines[rows], place_of=self.place_of[rows],
            attributes={name: [values[row] for row in rows] for name, values in self.attributes.items()})

    def place(self, row: int) -> str:
        """Where an image is, in words."""
        return image_place(self.images.keys[row], self.places[int(self.place_of[row])], int(self.lines[row]))


class RecordTable:
    """The records of a split, or of a part of one. What cannot be used of them is counted and not kept.

    Attributes:
        problems: what cannot be used.
        read: how many captions were in the records, usable or not.
    """

    def __init__(self, records: Iterable[Record] = ()):
        self.problems, self.read = Problems(), 0
        self._images, self._captions, self._hashes = EncodedBuilder(), StringPacker(), array("q")
        self._kept = array("b")
        self._ends, self._numbers, self._counted = array("q", [0]), array("q"), array("b")
        self._attributes: dict[str, list] = {}
        self._lines, self._places_of = array("q"), array("i")
        self._places: dict[str, int] = {}
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        """How many records were given, usable or not."""
        return len(self._kept)

    def append(self, record: Record) -> None:
        """Add a record: its captions that can be used, and its image if there is one."""
        first, before = self.read, len(self._captions)
        self.read += len(record.captions)
        numbers = record.caption_ids or range(first, self.read)
        for nth, (caption, number) in enumerate(zip(record.captions, numbers, strict=True), 1):
            if why := caption_problem(caption):
                self.problems.add(why, _place(record, nth))
            else:
                self._captions.append(caption)
                self._numbers.append(number)
                self._counted.append(not record.caption_ids)
        self._hashes.append(hash(record.image.key))
        if not record.captions:
            self.problems.add("no caption", _place(record))
        self._kept.append(len(self._captions) > before)
        if not self._kept[-1]:
            return
        self._ends.append(len(self._captions))
        self._images.append(record.image)
        before = len(self._ends) - 2  # images
        for name in {**self._attributes, **record.attributes}:  # records of a reader of one's own may differ in them
            self._attributes.setdefault(name, [None] * before).append(record.attributes.get(name))
        self._lines.append(record.line)
        self._places_of.append(self._places.setdefault(record.place, len(self._places)))

    def repeated(self) -> int:
        """How many records have the key of an earlier one."""
        return len(self._hashes) - len(np.unique(np.frombuffer(self._hashes, np.int64)))

    def rows(self, first: int) -> ImageRows:
        """The images, each once, with the captions of all its records; the table is not used afterwards.

        Args:
            first: the number of the first caption, where the data set has no numbers of its own.
        """
        numbers = np.frombuffer(self._numbers, np.int64)
        numbers = np.where(np.frombuffer(self._counted, bool), numbers + first, numbers)
        rows = ImageRows(self._images.built(), self._captions.packed(), np.frombuffer(self._ends, np.int64), numbers,
                         self._attributes, np.frombuffer(self._lines, np.int64),
                         np.frombuffer(self._places_of, np.int32), list(self._places))
        return _each_once(rows, np.frombuffer(self._hashes, np.int64)[np.frombuffer(self._kept, bool)])


def _each_once(rows: ImageRows, hashes: np.ndarray) -> ImageRows:
    """Images of one key as one image, at the place of the first, with the captions of all in order.

    Args:
        rows: images whose keys may repeat.
        hashes: (N,) int64 of the keys: only where these are equal are the keys themselves compared.
    """
    in_order = np.sort(hashes)
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    if not len(repeated):
        return rows
    first_of = np.arange(len(rows))
    first: dict[str, int] = {}
    for row in np.flatnonzero(np.isin(hashes, repeated)).tolist():
        first_of[row] = first.setdefault(rows.images.keys[row], row)
    grouped = rows.take(np.argsort(first_of, kind="stable"))
    kept, counts = np.unique(first_of, return_counts=True)
    starts = np.cumsum(counts) - counts
    once = grouped.take(starts)
    ends = grouped.ends[np.concatenate([starts, [len(rows)]])]
    return dataclasses.replace(once, captions=grouped.captions, ends=ends, caption_ids=grouped.caption_ids)


def _place(record: Record, nth: int = 1) -> str:
    """Where an image is, or its caption number `nth`."""
    key = record.image.key
    if len(record.captions) > 1:
        where = at_line(record.place, record.line)
        return f"caption {nth} of {quoted(key)}{f', whose first is in {where}' if where else ''}"
    return image_place(key, record.place, record.line)


def image_place(key: str, place: str, line: int) -> str:
    """Where an image is, in words, by its key and `Record.place` and `line`."""
    where = at_line(place, line)
    return f"{quoted(key)}{f', {where}' if where else ''}"


def at_line(place: str, line: int) -> str:
    """Where a line (row) is, in words, by `Record.place`; "" for none."""
    return place.replace("{}", str(line), 1) if line else ""
