"""Data sets of the Hugging Face `datasets` library: from the Hub, `save_to_disk`, directories, Parquet and Arrow files."""

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from mdw_jax.data.decoding import Encoded, check_length, reason
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.problems import Problems, quoted
from mdw_jax.data.readers.hf_columns import Columns, check, found, image_parts, places, root_of, rows_of
from mdw_jax.data.readers.hf_source import load
from mdw_jax.data.readers.sidecar import split_called
from mdw_jax.data.record_table import Record, RecordTable, at_line
from mdw_jax.data.records import build, names, pick, splits_to_read, text
from mdw_jax.data.tables.cells import captions_in, is_turn, read_as_notes
from mdw_jax.data.tables.columns import SPLIT_NAMES, find_split_column
from mdw_jax.data.tables.entries import STATUS, download_failed
from mdw_jax.errors import UserError

_BATCH = 1000  # rows that are taken out of a table at a time


def hf(source, *, config: str = "", revision: str = "", cache: str | None = None, image_column: str = "",
       caption_columns="", key_column: str = "", attribute_columns=(), split_column: str = "", train_split: str = "",
       val_split: str = "", test_split: str = "", **common) -> Pairs:
    """Read a data set of the `datasets` library with an image column and captions.

    Args:
        source: a Hub name, a directory that `save_to_disk` wrote, a directory that `load_dataset` understands (Parquet
            files, images with `metadata.jsonl` or `.csv`), or Parquet or Arrow files: a path or a glob pattern. Where
            the names of files say a split, as in `train-00000-of-00001.parquet`, they are of that split.
        config, revision: of a Hub data set.
        cache: where `datasets` keeps what it fetches and converts; None: its own choice.
        image_column: an `Image` feature, bytes, or names of image files; it is read without decoding. "": found.
        caption_columns: one or several columns (a tuple, or a string with commas), each of one caption or a list of
            them, which may be written into a string as JSON; "sentences/raw" goes into nested values. "": found.
        key_column: names the image; rows of a split with the same key are one image. "": a digest of its bytes.
        attribute_columns: kept in `Split.attributes`.
        split_column: holds the split of each row; all splits of the source are then read together. "": the splits are
            those of the source.
        train_split, val_split, test_split: the names of splits, in the source or in `split_column`; "train+restval"
            joins two. "": those that are usual (`tables.columns.SPLIT_NAMES`; of a column with restval as train).
        common: see `records.build`.
    Raises:
        UserError: the source, a split or a column is not there, or what `records.build` raises.
    """
    name, problems, notes = Path(str(source)).name.split(".")[0], Problems(source), []
    tables = load(str(source), (config, revision, cache), notes)
    asked = Columns(image_column, names(caption_columns), key_column, names(attribute_columns), split_column)
    columns = found(next(iter(tables.values())), asked, f"'{source}'", notes)
    for table in tables.values():
        check(table, columns, f"'{source}'")
    wanted = splits_to_read(common, train=train_split, val=val_split, test=test_split)
    names_of = _names_of(wanted, tables, columns, f"'{source}'")
    needed = {part for parts in names_of.values() for part in parts}
    # Parts that are joined come one after another, whatever their order in the source, and wait for each other.
    joint = {part for parts in names_of.values() if len(parts) > 1 for part in parts}
    by_name: dict[str, list[Record] | RecordTable] = {part: [] if part in joint else RecordTable() for part in needed}
    read_as: Counter = Counter()
    directory = Path(source) if os.path.isdir(source) else Path(source).parent
    for split, table in tables.items():
        if columns.split or split in needed:
            reader = _Reader(columns, f"split '{split}' of '{source}'", directory, problems, read_as)
            for part, record in reader.records(table, split, needed):
                by_name[part].append(record)
    records = {split: _table([by_name[part] for part in parts]) for split, parts in names_of.items()}
    notes += [*_left_out(tables, columns, needed), *_unused_column(tables, columns, names_of)]
    notes += read_as_notes(name, read_as)
    if again := sum(table.repeated() for table in records.values()):
        notes.append(f"of '{name}', {again} row{'s' * (again != 1)} with the image of an earlier one (the same "
                     f"{columns.key or 'bytes'}): read as further captions of it.")
    return build(name, records, problems=problems, notes=notes, **common)


def _table(parts: Sequence[list[Record] | RecordTable]) -> RecordTable:
    first = parts[0]
    return first if isinstance(first, RecordTable) else RecordTable(itertools.chain(*parts))  # type: ignore[arg-type]


# ---- splits ----------------------------------------------------------------------------------------------------------

def _names_of(wanted: Mapping[str, str], tables: Mapping, columns: Columns, where: str) -> dict[str, list[str]]:
    """{split: its names in the source (in the split column)}.

    Raises:
        UserError: one is not there.
    """
    counts = _rows_of_splits(tables, columns)
    names_of: dict[str, list[str]] = {}
    for split, asked in wanted.items():
        folded = {name.strip().lower(): name for name in counts}
        usual = [folded[name] for name in SPLIT_NAMES[split] if name in folded]
        parts = [part.strip() for part in asked.split("+")] if asked else usual if columns.split else usual[:1]
        found = [part if part in counts else folded.get(part.lower()) for part in parts]
        if not found or None in found:
            absent = f" {quoted(parts[found.index(None)])}" if found else f" for {split}"
            holder = f"column '{columns.split}' of {where} has no value" if columns.split else f"{where} has no split"
            has = ", ".join(f"{name or 'an empty name'} ({count} rows)" for name, count in counts.items())
            train = [table for name, table in tables.items() if columns.split or name in names_of.get("train", [])]
            raise UserError(f"{holder}{absent}, only {has}; {_way_on(split, asked, wanted, (tables, train), columns)}.")
        names_of[split] = [part for part in found if part is not None]
    return names_of


def _way_on(split: str, asked: str, wanted: Mapping[str, str], tables: tuple[Mapping, Sequence], columns: Columns) -> str:
    """What to do about a split that is not there; `tables`: all, and those of train."""
    everything, train = tables
    column = "" if columns.split else find_split_column(next(iter(everything.values())).column_names)
    if column and {split_called(value) for value in _counts(everything, column)} >= set(wanted):
        return f"its column '{column}' says the split of each row: set data.split_column={column}"
    if split == "train":
        largest = max(everything, key=lambda name: len(everything[name]))
        number = max(1, _images(everything.values(), columns) // 10)
        holdouts = "".join(f" data.holdout_{other}={number}" for other in ("val", "test") if other in wanted)
        return ("set data.train_split to one of them" if columns.split or len(everything) > 1 else
                f"set data.train_split={largest}" + (f" and hold the others out of it:{holdouts}" if holdouts else ""))
    number = max(1, _images(train, columns) // 10)
    return (f"set data.{split}_split to one of them, or data.holdout_{split}={number} to hold a tenth of train out" if asked
            else f"set data.holdout_{split}={number} to hold a tenth of train out")


def _images(tables, columns: Columns) -> int:
    """About how many images tables have: rows of one image count once, by key, or by the length of the bytes."""
    seen = set()
    for table in tables:
        column = root_of(columns.key or columns.image, table.column_names)
        for batch in table.select_columns([column]).with_format("arrow").iter(_BATCH):
            for chunk in batch.column(0).chunks:
                seen |= set(map(str, chunk.to_pylist())) if columns.key else set(zip(*places(chunk)))
    return len(seen)


def _rows_of_splits(tables: Mapping, columns: Columns) -> Mapping[str, int]:
    """{split: its rows}, by the split column or by the splits of the source."""
    return _counts(tables, columns.split) if columns.split else {name: len(table) for name, table in tables.items()}


def _counts(tables: Mapping, column: str) -> Counter:
    """{value: rows} of a split column, over all tables."""
    counts: Counter = Counter()
    for table in tables.values():
        for batch in table.select_columns([column]).with_format("arrow").iter(10 * _BATCH):
            counts.update(_split_names(table, column, batch.column(0).to_pylist()))
    return counts


def _split_names(table, column: str, cells: Sequence) -> list[str]:
    labels = getattr(table.features[column], "names", None)  # of a ClassLabel, whose cells are numbers
    return ["" if cell is None else labels[cell] if labels else text(cell).strip() for cell in cells]


def _left_out(tables: Mapping, columns: Columns, needed: set[str]) -> list[str]:
    """Say which rows are of no split that was asked for."""
    counts = _rows_of_splits(tables, columns)
    others = ", ".join(f"{count} of {name or 'no split'}" for name, count in counts.items() if name not in needed)
    what = f"rows whose column '{columns.split}' names another split" if columns.split else "rows of other splits"
    return [f"{what} were left out: {others}."] if others else []


def _unused_column(tables: Mapping, columns: Columns, names_of: Mapping[str, Sequence[str]]) -> list[str]:
    """Say that a column tells other splits than the source."""
    column = find_split_column(next(iter(tables.values())).column_names)
    if columns.split or not column:
        return []
    other = sum(count for split, parts in names_of.items() for part in parts
                for value, count in _counts({part: tables[part]}, column).items() if split_called(value) not in ("", split))
    return [f"column '{column}' was not used, and names another split in {other} rows; data.split_column={column} reads "
            "the splits from it."] if other else []


# ---- rows ------------------------------------------------------------------------------------------------------------

class _Reader:
    """From the rows of a split to records.

    Args:
        columns: what is read.
        place: what the rows are of, for messages.
        directory: where names of files are looked up first.
        problems: gets rows that cannot be used.
        read_as: counts captions by how they were read, where that is not plain.
    """

    def __init__(self, columns: Columns, place: str, directory: Path, problems: Problems, read_as: Counter):
        self._columns, self._place, self._directory = columns, f"row {{}} of {place}", directory
        self._problems, self._read_as = problems, read_as

    def records(self, table, split: str, needed: set[str]) -> Iterator[tuple[str, Record]]:
        """(name of its split, record) of each row that can be used and is of a split that is needed."""
        columns, number = self._columns, 0
        paths = [*columns.captions, *columns.attributes, *filter(None, (columns.key, columns.split))]
        roots = {root_of(path, table.column_names) for path in paths}
        roots |= {name for name in table.column_names if name == STATUS}
        for batch in table.select_columns(sorted(roots | {columns.image})).with_format("arrow").iter(_BATCH):
            rows = rows_of(batch.select(sorted(roots)))
            parts = _split_names(table, columns.split, [row[columns.split] for row in rows]) if columns.split else [
                split] * len(rows)
            images = (image for chunk in batch.column(columns.image).chunks for image in _readers(chunk, self._directory))
            for row, part, image in zip(rows, parts, images, strict=True):
                number += 1
                if part in needed and (record := self._record(row, image, number)):
                    yield part, record

    def _record(self, row: Mapping, image: partial | None, number: int) -> Record | None:
        """One row; None where it cannot be used, which is counted."""
        columns, place = self._columns, at_line(self._place, number)
        if download_failed(row):
            self._problems.add("failed download", f"{place} ({row[STATUS]})")
            return None
        if image is None:
            self._problems.add("no image", place)
            return None
        if (image.func is _file and not os.path.isfile(image.args[0])) or (
                image.func is _remote and image.args[0].startswith("http")):  # nothing is fetched while training
            self._problems.add("absent image", f"{place} ({quoted(image.args[0])})")
            return None
        if columns.key:
            key = _first(row, columns.key)
            if key is None:
                self._problems.add("broken row", f"{place} has no '{columns.key}'")
                return None
            key = text(key)
        else:
            try:
                key = hashlib.sha256(image()).hexdigest()[:16]
            except (OSError, ValueError) as error:
                self._problems.add("broken image", f"{place} ({reason(error)})")
                return None
        captions = tuple(caption for column in columns.captions for cell in _cells(row, column)
                         for caption in captions_in(_plain(cell), self._read_as))
        attributes = {column: _first(row, column) for column in columns.attributes}
        return Record(Encoded(key, image), captions, attributes=attributes, line=number, place=self._place)


def _plain(cell):
    """A cell of captions: bytes as text, and the turns of a conversation as a list, not as two lists."""
    if isinstance(cell, bytes):  # surrogates are counted as a caption that is no Unicode
        return cell.decode(errors="surrogateescape")
    if isinstance(cell, list):
        return [_plain(member) for member in cell]
    if isinstance(cell, Mapping) and is_turn(cell) and all(isinstance(part, list) for part in cell.values()):
        return [dict(zip(cell, turn)) for turn in zip(*cell.values())]
    return cell


def _cells(row: Mapping, path: str) -> list:
    """The values at a path that the columns have; [None] where a nested one is missing."""
    if path in row:
        return [row[path]]
    try:
        return pick(row, path)
    except KeyError:
        return [None]


def _first(row: Mapping, path: str):
    """The first value at a path, and of a list there; None where there is none."""
    return next((value for cell in _cells(row, path) for value in pick(cell, "")), None)


def _readers(array, directory: Path) -> Iterator[partial | None]:
    """For each image what reads its bytes; None where there is no image. They stay where they are, not copied."""
    data, _ = image_parts(array)
    for row, (length, path) in enumerate(zip(*places(array))):
        if length:
            yield partial(_bytes, data, row)
        elif not path:
            yield None
        elif "://" in path:
            yield partial(_remote, path)
        else:
            beside = os.path.join(directory, path)
            yield partial(_file, beside if os.path.isfile(beside) else path)


def _bytes(data, row: int) -> bytes:
    cell = data[row]
    check_length(len(cell.as_buffer()))
    return cell.as_py()


def _file(path: str) -> bytes:
    check_length(os.stat(path).st_size)
    return Path(path).read_bytes()


def _remote(path: str) -> bytes:
    """A file inside an archive, as the library writes it ("zip://a.jpg::/data/train.zip"), or somewhere else."""
    from fsspec.core import url_to_fs  # a dependency of the datasets library

    files, name = url_to_fs(path)  # fsspec keeps archives open
    return files.cat_file(name)
