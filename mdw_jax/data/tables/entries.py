"""From tables to entries: one image with captions each, and the split that it belongs to."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mdw_jax.data.problems import LONGEST_CAPTION, Problems, caption_problem
from mdw_jax.data.record_table import at_line
from mdw_jax.data.records import pick
from mdw_jax.data.tables.cells import FileNames, captions_in, read_as_notes
from mdw_jax.data.tables.columns import (
    find_caption_columns,
    find_image_column,
    find_split_column,
    found_in_words,
    listed,
    url_message,
)
from mdw_jax.data.tables.table import Table
from mdw_jax.errors import UserError

STATUS = "status"  # a column of img2dataset, with values such as success and failed_to_download


def download_failed(row: Mapping) -> bool:
    """Whether a row (or a JSON beside an image) is of img2dataset, which could not fetch or use the image."""
    return str(row.get(STATUS)).startswith("failed")


class Columns(NamedTuple):
    """What is known of the columns: see `readers.folder.folder`; "" and () are found by their names."""

    image: str = ""
    captions: tuple[str, ...] = ()
    split: str = ""
    attributes: tuple[str, ...] = ()
    file_pattern: str = ""


class Entry(NamedTuple):
    """A row of a table.

    Attributes:
        name: file name of the image.
        captions: as they are written.
        split: what the split column says; "" without one.
        attributes: {column: value}.
        line: where it stands.
        place: says so, as in `Table.place`.
    """

    name: str
    captions: list
    split: str
    attributes: dict
    line: int
    place: str = "line {}"


def found_columns(table: Table, columns: Columns, where: str) -> Columns:
    """`columns`, with the names of those that are to be found.

    Raises:
        UserError: one is not there, or none has a name by which it could be found.
    """
    names = table.columns
    image = columns.image or find_image_column(names, where)
    captions = columns.captions or find_caption_columns([name for name in names if name != image], where)
    split = columns.split
    for name in (image, *captions, *columns.attributes, *([split] if split else [])):
        if name not in names and "/" not in name:  # paths are looked up row by row
            holder = f"row 1 of {where}" if table.of_first_row else where
            raise UserError(f"{holder} has no column '{name}'; it has {listed(names)}.")
    return columns._replace(image=image, captions=tuple(captions))


def entries_of(path: Path, table: Table, columns: Columns, problems: Problems, notes: list[str]) -> Iterator[Entry]:
    """The entries of one table; when all are through, `notes` has gained how it was read.

    Args:
        path: where the table is.
        table: the same, opened with `problems`.
        columns: what is known of its columns.
        problems: gets rows without an image's name, broken rows, failed downloads.
        notes: sentences for the user.

    Raises:
        UserError: what `found_columns` and the table raise, or cells that are no file names.
    """
    where = f"'{path}'"
    asked, columns = columns, found_columns(table, columns, where)
    read_as: Counter = Counter()
    captions_read_as: Counter = Counter()
    names = FileNames(columns.file_pattern, columns.image, where, read_as)
    status = [STATUS] * (STATUS in table.columns)
    for line, row in table.read(columns.image, *columns.captions, *columns.attributes, *filter(None, [columns.split]),
                                *status):
        if download_failed(row):
            problems.add("failed download", f"{at_line(table.place, line)} of {where} ({row[STATUS]})")
            continue
        try:
            name = names.of(_one(row, columns.image, line, where), line)
            captions = _captions(row, columns, (line, where), captions_read_as)
            split = str(_one(row, columns.split, line, where)) if columns.split else ""
            attributes = {column: _pick(row, column, line, where) for column in columns.attributes}
        except _NoColumn as error:
            problems.add("broken row", str(error))
            continue
        if name is None:
            problems.add("no image", f"{at_line(table.place, line)} of {where}")
            continue
        if name.startswith(("http://", "https://")):
            raise UserError(url_message(where, columns.image, columns.captions[0]))
        if nested := next((caption for caption in captions if isinstance(caption, dict)), None):
            raise UserError(f"column '{columns.captions[0]}' of {where} has nested values with {listed(nested)}; name one, "
                            f"as in data.caption_columns={columns.captions[0]}/{next(iter(nested))}.")
        yield Entry(name, captions, split, attributes, line, table.place)
    _note(notes, path, table, (asked, columns), captions_read_as, read_as)


class _NoColumn(Exception):
    """A row has not all columns."""


def _captions(row: dict, columns: Columns, place: tuple[int, str], read_as: Counter) -> list:
    """The captions of a row; of several columns those that are filled, if any is."""
    # What is too long to be a caption is cut, to be told as such and not to be kept.
    captions = [caption[:LONGEST_CAPTION + 1] if isinstance(caption, str) else caption
                for column in columns.captions for value in _pick(row, column, *place)
                for caption in captions_in(value, read_as)]
    if len(columns.captions) > 1:
        return [caption for caption in captions if caption_problem(caption) != "empty caption"] or captions
    return captions


def _note(notes: list[str], path: Path, table: Table, columns: tuple[Columns, Columns], captions: Counter,
          names: Counter) -> None:
    """Say how a table was read, where the user did not."""
    asked, used = columns
    found = found_in_words(asked, used)
    notes.append(f"'{path.name}' was read as {table.form}{': ' if found else ''}{', '.join(found)}.")
    notes += [*read_as_notes(path.name, table.read_as + captions), *read_as_notes(path.name, names, "image name")]
    if not used.split and (split := find_split_column(table.columns)):
        notes.append(f"column '{split}' of '{path.name}' was not used; data.split_column={split} reads the splits from it.")


def _one(row: dict, column: str, line: int, where: str):
    """The value of a column that has one."""
    values = _pick(row, column, line, where)
    return values[0] if len(values) == 1 else values or None


def _pick(row: dict, column: str, line: int, where: str) -> Sequence:
    if column in row:
        return [row[column]]
    try:
        return pick(row, column)
    except KeyError:
        raise _NoColumn(f"row {line} of {where} has no column '{column}'; it has {listed(row)}") from None
