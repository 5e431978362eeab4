"""Images in directories or zip files with captions in a table of any form, or in a text beside each image."""

import glob
import itertools
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdw_jax.data.archives import locate
from mdw_jax.data.decoding import Encoded
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.problems import Problems, quoted
from mdw_jax.data.readers.sidecar import metadata_of, sidecar_entries, split_called, split_directories
from mdw_jax.data.record_table import Record
from mdw_jax.data.records import SPLITS, build, names
from mdw_jax.data.tables.budget import Held
from mdw_jax.data.tables.cells import FileNames
from mdw_jax.data.tables.columns import SPLIT_NAMES, find_split_column
from mdw_jax.data.tables.entries import Columns, Entry, entries_of
from mdw_jax.data.tables.lines import lines_of
from mdw_jax.data.tables.table import Options, Table, open_table
from mdw_jax.data.uncaptioned import uncaptioned_note
from mdw_jax.errors import UserError


class Image:
    """The captions of one image so far, and their numbers among those of the split, in the order of the table."""

    __slots__ = ("captions", "numbers", "attributes", "line", "place")

    def __init__(self, entry: Entry):
        self.captions: list = []
        self.numbers = array("q")
        self.attributes, self.line, self.place = entry.attributes, entry.line, entry.place


class Source(NamedTuple):
    """One table, or directory without one, of `data.annotations`.

    Attributes:
        path: the table or directory.
        split: the split that all of it belongs to; "": as its columns or lists say.
        prefix: the directory of its images under that of all images; "".
    """

    path: Path
    split: str = ""
    prefix: str = ""


def folder(annotations, images="", *, val_annotations="", test_annotations="", train_list="", val_list="", test_list="",
           image_column: str = "", caption_columns="", file_pattern: str = "", split_column: str = "",
           attribute_columns=(), train_split: str = "", val_split: str = "", test_split: str = "", delimiter: str = "",
           quoting: str = "", encoding: str = "", caption_lines: str = "", **common) -> Pairs:
    """Read image files and their captions.

    Args:
        annotations: a table (CSV; text separated by tabs, pipes or semicolons; JSON lines, arrays, COCO's captions,
            captions by file name; Parquet, Arrow; text also gzipped), a glob or several of these, separated by commas; or
            a directory with `metadata.jsonl` (csv, parquet), or with `x.txt` beside `x.jpg`. What is in a file decides
            how it is read. Directories called train, val and test inside are the splits.
        images: where the images are, as in `archives.locate`; "" is the directory of the table.
        val_annotations, test_annotations: likewise, of these splits alone; `annotations` is then train's.
        train_list, val_list, test_list: files with the name of an image in each line, which are these splits
            (`Flickr_8k.trainImages.txt`); images in none are left out.
        image_column: the image's file name under `images`; rows with the same one are one image. "": found by its name.
        caption_columns: one or several columns (a tuple, or a string with commas), each of one caption or a list of
            them; in JSON and Parquet "sentences/raw" goes into nested values. "": found by their names.
        file_pattern: the file name where the column holds only a part of it: "{}.jpg", "{:012d}.jpg".
        split_column: holds the split of each row; rows with other values are left out. "" means a column `split` where
            nothing else tells the splits, and otherwise that all rows are train.
        attribute_columns: kept in `Split.attributes`, from the first row of an image; those of CSV are text.
        train_split, val_split, test_split: values of `split_column`, several with "+"; "": those of `SPLIT_NAMES`.
        delimiter: of a text table: one character, or tab, comma, pipe, semicolon; "": found out.
        quoting: of a text table: `csv`, `none`; "": found out (commas and semicolons with marks, tabs and pipes without).
        encoding: of a text table, such as latin-1; "": UTF-8.
        caption_lines: what several lines in a text beside an image are: `split`: a caption each, `join`: one caption; "":
            found out.
        common: see `records.build`.
    Raises:
        UserError: a table that is missing, damaged or without these columns, an image in two splits, and what
            `records.build` and `archives.locate` raise.
    """
    columns = Columns(image_column, names(caption_columns), split_column, names(attribute_columns), file_pattern)
    sources = _sources(annotations, {"val": val_annotations, "test": test_annotations})
    several = len(sources) > 1
    options, problems, notes = Options(delimiter, quoting, encoding), Problems("" if several else sources[0].path), []
    lists = {split: path for split, path in zip(SPLITS, (train_list, val_list, test_list), strict=True) if path}
    held_out = [split for split in ("val", "test") if common.get(f"holdout_{split}")]
    tables_tell = any(source.split for source in sources)
    if sum(map(bool, (split_column, lists, tables_tell))) > 1:
        raise UserError("splits come from data.split_column, lists of images, or tables of their own: set one of these.")
    _refuse_unused(sources, columns, options, caption_lines)
    table = _open(sources[0], problems, options)
    if table and not (split_column or lists or tables_tell or held_out):
        columns = columns._replace(split=find_split_column(table.columns))
        if columns.split:
            notes.append(f"the splits are those of column '{columns.split}'.")
    values = {"train": train_split, "val": val_split, "test": test_split}
    splits = _Splits(columns.split, values, _read_lists(lists, file_pattern, options), held_out)
    notes += _unread(sources)
    for source in sources:
        table = table if source is sources[0] else _open(source, problems, options)
        held = Held(source.path, table is not None and table.packed)
        splits.add_all(source, several, entries_of(source.path, table, columns, problems, notes) if table else
                       sidecar_entries(source.path, caption_lines, problems, notes), held)
    splits.check(sources[0].path, notes, problems)
    notes += _uncaptioned(splits, sources, images)
    records = _located(splits, images or _directories(sources), columns, (problems, notes, sources[0].path))
    return build(_name(sources[0].path), records, problems=problems, notes=notes, **common)


def _refuse_unused(sources: Sequence[Source], columns: Columns, options: Options, caption_lines: str) -> None:
    """Raises UserError for settings of tables where there is none, or of texts beside images where all are tables."""
    tables = [source.path.is_file() for source in sources]
    if caption_lines and all(tables):
        raise UserError(f"data.caption_lines is of texts beside images, and '{sources[0].path}' is a table; leave it out.")
    names = {"image": "image_column", "captions": "caption_columns", "split": "split_column",
             "attributes": "attribute_columns"}
    settings = {names.get(name, name): value for name, value in (columns._asdict() | options._asdict()).items()}
    if not any(tables) and (unused := next((name for name, value in settings.items() if value), None)):
        raise UserError(f"data.{unused} is of tables, and '{sources[0].path}' is a directory without one; leave it out, or "
                        "name the table in data.annotations.")


def _open(source: Source, problems: Problems, options: Options) -> Table | None:
    """The table of a source; None for a directory without one."""
    return open_table(source.path, problems, options) if source.path.is_file() else None


class _Splits:
    """The images of each split, filled entry by entry.

    Args:
        column: the split column; "" without one.
        values: {split: its values in the column, joined by "+"; "": the usual ones}.
        lists: {name of an image: its split}; {} without lists.
        held_out: splits that are not read, as they will be held out of train.

    Raises:
        UserError: there are values, and no column.
    """

    def __init__(self, column: str, values: dict[str, str], lists: dict[str, str], held_out: Sequence[str]):
        if any(values.values()) and not column:
            raise UserError(f"data.{next(split for split in SPLITS if values[split])}_split names a value of "
                            "data.split_column, which is not set; set it, or leave the names of splits out.")
        self.images: dict[str, dict[str, Image]] = {split: {} for split in SPLITS}
        self.captions = dict.fromkeys(SPLITS, 0)
        self.column, self.lists, self.held_out, self.values = column, lists, held_out, values
        self.left_out: dict[str, int] = {}
        self._of_others: set[str] = set()  # names of images of splits that are not read
        self.split_of = {value.strip().lower(): split for split in SPLITS
                         for value in (values[split].split("+") if values[split] else SPLIT_NAMES[split])}

    def add_all(self, source: Source, several: bool, entries: Iterator[Entry], held: Held) -> None:
        """Take the entries of a source; `several`: messages name it. UserError for more than `held` gives."""
        place = ""  # one for all entries of a table
        for entry in entries:
            place = place or (f"{entry.place} of '{source.path}'" if several else entry.place)
            new = self.add(entry._replace(name=f"{source.prefix}{entry.name}", place=place), source)
            held.add(entry.line, new, [*entry.captions, entry.name, *entry.attributes.values()] if new else entry.captions)

    def named(self) -> Iterator[str]:
        """The names of all images, those of splits that are not read too."""
        yield from itertools.chain(self._of_others, *self.images.values())

    def add(self, entry: Entry, source: Source) -> bool:
        """Take an entry into its split; whether its image was in none before."""
        split: str | None = source.split or "train"
        if self.column:
            split = self.split_of.get(entry.split.strip().lower())
        elif self.lists:
            split = self.lists.get(entry.name) or self.lists.get(os.path.basename(entry.name))
        if split is None or split in self.held_out:
            what = entry.split if self.column else "in no list" if split is None else split
            self.left_out[what] = self.left_out.get(what, 0) + 1
            new = entry.name not in self._of_others
            self._of_others.add(entry.name)
            return new
        image = self.images[split].get(entry.name)
        new = image is None
        if image is None:
            image = self.images[split][entry.name] = Image(entry)
        image.captions += entry.captions
        image.numbers.extend(range(self.captions[split], self.captions[split] + len(entry.captions)))
        self.captions[split] += len(entry.captions)
        return new

    def check(self, path: Path, notes: list[str], problems: Problems) -> None:
        """Say what was left out.

        Raises:
            UserError: an image is in two splits, or a split that the column or the lists should tell has no images.
        """
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            if both := self.images[first].keys() & self.images[second].keys():
                them = f"images of '{path}' are" if len(both) > 1 else f"image of '{path}' is"
                raise UserError(f"{len(both)} {them} in two splits, {first} and {second}, the first is "
                                f"{quoted(min(both))}; put all rows of an image into one.")
        if self.left_out:
            parts = ", ".join(f"{count} of {value or 'no split'}" if self.column else f"{count} {value}"
                              for value, count in self.left_out.items())
            notes.append(f"rows of '{path.name}' that are in none of the splits read were left out: {parts}.")
        for split in SPLITS:
            if not self.images[split] and (self.column or self.lists) and split not in self.held_out:
                where = f"column '{self.column}'" if self.column else "the lists of images"
                asked = self.values[split] or split
                values = ", ".join([*(f"{value or 'empty'} ({count} rows)" for value, count in self.left_out.items()),
                                    *(self.values[name] or name for name in SPLITS if self.images[name])])
                hold = f" or hold some out of train with data.holdout_{split}" * (split != "train")
                lost = f" that can be used ({problems})" if problems.counts else ""
                raise UserError(f"{where} of '{path}' has no image of split '{asked}'{lost}, only of {values or 'none'}; "
                                f"set data.{split}_{'split' if self.column else 'list'}{hold}.")


def _sources(annotations, others: dict[str, object]) -> list[Source]:
    """All tables, and directories without one, that the settings name."""
    sources = _expanded(annotations)
    others = {split: path for split, path in others.items() if path}
    if others:
        if any(source.split for source in sources):
            raise UserError(f"'{annotations}' has directories of its own for train, val and test, and data."
                            f"{next(iter(others))}_annotations is set too; leave one out.")
        sources = [source._replace(split="train") for source in sources]
        sources += [source._replace(split=split) for split, path in others.items() for source in _expanded(path)]
    return sources


def _expanded(annotations) -> list[Source]:
    entries = annotations if isinstance(annotations, (list, tuple)) else [annotations]
    pieces = [piece for entry in map(os.fspath, entries)
              for piece in ([entry] if os.path.exists(os.path.expanduser(entry)) else entry.split(","))]
    sources: list[Source] = []
    for piece in (os.path.expanduser(piece.strip()) for piece in pieces if piece.strip()):
        matches = [piece] if os.path.exists(piece) else sorted(glob.glob(piece))
        if not matches:
            raise UserError(f"there is no table '{piece}'; give the path of the captions.")
        sources += [source for match in matches for source in _of_path(Path(match))]
    if not sources:
        raise UserError("no table is given; set data.annotations to the path of the captions.")
    return sources


def _of_path(path: Path) -> Iterator[Source]:
    """A table, or what a directory stands for."""
    if not path.is_dir():
        yield Source(path)
        return
    table, directories = metadata_of(path), split_directories(path)
    if table is not None:
        yield Source(table)
    elif "train" in directories:
        for split, directory in directories.items():
            yield Source(metadata_of(directory) or directory, split, f"{directory.name}/")
    elif parts := sorted(part for part in path.iterdir() if part.name.startswith("part-")):
        yield from (Source(part) for part in parts if part.stat().st_size)  # as Spark writes a table
    else:
        yield Source(path)


def _unread(sources: Sequence[Source]) -> list[str]:
    """What lies beside the directories of splits and is not read, in a sentence."""
    if not sources[0].prefix:
        return []
    root, read = _directories(sources)[0], {source.prefix.rstrip("/") for source in sources}
    others = [entry.name for entry in sorted(Path(root).iterdir())
              if entry.is_dir() and entry.name not in read and not entry.name.startswith(".")]
    return [f"directories beside those of the splits are not read: {', '.join(others)}."] * bool(others)


def _uncaptioned(splits: _Splits, sources: Sequence[Source], images) -> list[str]:
    """How many images no row names, in a sentence; of directories without a table those without a text are problems."""
    if any(source.path.is_dir() for source in sources):
        return []
    return uncaptioned_note(splits.named(), images or _directories(sources), sources[0].path.name, bool(images))


def _directories(sources: Sequence[Source]) -> list[str]:
    """Where images are if nothing else is said: in the directories of their tables."""
    found: dict[str, None] = {}
    for source in sources:
        directory = source.path if source.path.is_dir() else source.path.parent
        found[str(directory.parent if source.prefix else directory)] = None
    return list(found)


def _read_lists(lists: dict[str, str], pattern: str, options: Options) -> dict[str, str]:
    """{name of an image: its split} of the files that list the images of each split."""
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        if not Path(path).is_file():
            raise UserError(f"there is no list of images '{path}'; set data.{split}_list to the path of one.")
        file_names = FileNames(pattern, f"{split}_list", f"'{path}'", Counter())
        for number, line in lines_of(Path(path), options.encoding):
            name = file_names.of(line, number)
            if name is not None and split_of.setdefault(name, split) != split:
                raise UserError(f"image {quoted(name)} in line {number} of '{path}' is also in the list of "
                                f"{split_of[name]}; put it into one.")
    return split_of


def _located(splits: _Splits, images, columns: Columns, source: tuple[Problems, list[str], Path]
             ) -> dict[str, Iterator[Record]]:
    """The records of each split; images that are absent are problems."""
    problems, notes, path = source
    files = list(dict.fromkeys(name for members in splits.images.values() for name in members))
    place = {"table": str(path), "column": columns.image}
    located = dict(zip(files, locate([[file] for file in files], images, Problems(), **place), strict=True))
    bare = {file: re.split(r"[/\\]", file)[-1] for file in files}
    absent = [file for file in files if located[file] is None]
    # Tables often have the directories of another machine. Names that two images share would lead to one of them.
    by_name = len(set(bare.values())) == len(files)
    again = locate([[file, *([bare[file]] if by_name else [])] for file in absent], images, problems, **place)
    located |= zip(absent, again, strict=True)
    if found := sum(image is not None for image in again):
        notes.append(f"{found} image{'s' * (found != 1)} of '{path.name}' were found by the names of their files alone, "
                     f"without the directories before them (such as '{absent[0][:-len(bare[absent[0]])]}').")
    first = dict(zip(SPLITS, (0, *np.cumsum([splits.captions[split] for split in SPLITS]).tolist()), strict=False))
    return {split: _records(members, located, first[split]) for split, members in splits.images.items()}


def _records(members: dict[str, Image], located: dict[str, Encoded | None], first: int) -> Iterator[Record]:
    """The records of a split, whose images are given free one by one: they and the records do not fit side by side."""
    for name in list(members):
        image, encoded = members.pop(name), located[name]
        if encoded is not None:
            yield Record(encoded, image.captions, [first + number for number in image.numbers], _attributes(image),
                         image.line, image.place)


def _attributes(image: Image) -> dict:
    """One value for each column; lists and nested values as JSON."""
    first = {column: values[0] if len(values) == 1 else values for column, values in image.attributes.items()}
    return {column: json.dumps(value, default=str) if isinstance(value, (list, tuple, dict)) else value
            for column, value in first.items()}


def _name(path: Path) -> str:
    """What the data set is called: after its table, or the directory of one that has the name of all such tables."""
    stem = path.name.split(".")[0]
    return path.resolve().parent.name if stem == "metadata" or split_called(stem) else stem
