"""Images in directories or zip files with captions in a table: CSV, TSV, JSON lines or Parquet."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from mdw_jax.data.archives import locate
from mdw_jax.data.decoding import reason
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.records import Record, build, names, pick, splits_to_read
from mdw_jax.errors import UserError
from mdw_jax.io.files import parse_json

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


def folder(annotations, images="", *, val_annotations="", test_annotations="", image_column: str = "image",
           caption_columns="caption", file_pattern: str = "{}", split_column: str = "", attribute_columns=(),
           train_split: str = "train", val_split: str = "val", test_split: str = "test", delimiter: str = "",
           **common) -> Pairs:
    """Read image files and a table of their captions.

    Args:
        annotations: a `.csv`, `.tsv`, `.jsonl` or `.parquet` file, text also gzipped (`.csv.gz`). CSV has a header.
        images: where the images are, as in `archives.locate`; "" is the directory of the table.
        val_annotations, test_annotations: tables of these splits alone; `annotations` is then train's.
        image_column: the image's file name under `images`. Rows with the same one are one image.
        caption_columns: one or several columns (a tuple, or a string with commas), each of one caption or a list of
            them; in JSON lines and Parquet "sentences/raw" goes into nested values.
        file_pattern: the file name where the column holds only a part of it: "{}.jpg".
        split_column: holds the split of each row, with `train_split`, `val_split` and `test_split` as values; rows
            with other values are left out. "" means that all rows are train: val and test are then held out of it.
        attribute_columns: kept in `Split.attributes`, from the first row of an image; those of CSV are text.
        train_split, val_split, test_split: see `split_column`.
        delimiter: of a CSV file, where it is not the usual one.
        common: see `records.build`.
    Raises:
        UserError: a table that is missing, damaged or without these columns, an image in two splits, and what
            `records.build` and `archives.locate` raise.
    """
    path = Path(annotations)
    caption_columns, attribute_columns = names(caption_columns, "caption_columns"), names(attribute_columns)
    columns = (image_column, *caption_columns, *attribute_columns, *([split_column] if split_column else ()))
    rows, other_tables = _table(path, delimiter, columns), {"val": val_annotations, "test": test_annotations}
    if split_column and any(other_tables.values()):
        raise UserError(f"splits come from column '{split_column}' or from tables of their own, not both; unset "
                        "split_column, or val_annotations and test_annotations.")
    if split_column:
        wanted = splits_to_read(common, train=train_split, val=val_split, test=test_split)
        splits = {split: [row for row in rows if row[split_column][:1] == [value]] for split, value in wanted.items()}
        _check_splits(splits, rows, wanted, split_column, path)
    else:
        splits = {"train": rows} | {split: _table(Path(table), delimiter, columns)
                                    for split, table in other_tables.items() if table}
    _check_once(splits, image_column, path)
    _complete_file_names(splits, image_column, file_pattern, path)
    files = list(dict.fromkeys(row[image_column][0] for members in splits.values() for row in members))
    located = dict(zip(files, locate([[file] for file in files], images or path.parent)))
    records = {split: [_record(row, located[row[image_column][0]], caption_columns, attribute_columns)
                       for row in members] for split, members in splits.items()}
    return build(path.name.split(".")[0], records, **common)


def _table(path: Path, delimiter: str, columns) -> list[dict[str, list]]:
    """The rows of a table as {column: its values, several where the column is nested}."""
    return [{column: _pick(row, column, path, number) for column in columns}
            for number, row in enumerate(_rows(path, delimiter, columns), 1)]


def _complete_file_names(splits: Mapping[str, list], image_column: str, file_pattern: str, path) -> None:
    """Fill the pattern of file names in, in place."""
    for row in (row for members in splits.values() for row in members):
        if [type(name) for name in row[image_column]] != [str]:
            raise UserError(f"column '{image_column}' of '{path}' must hold one file name in each row, not "
                            f"{row[image_column]}.")
        row[image_column] = [file_pattern.replace("{}", row[image_column][0])]


def _record(row: dict[str, list], image, caption_columns, attribute_columns) -> Record:
    captions = tuple(caption for column in caption_columns for caption in row[column])
    attributes = {column: row[column][0] if len(row[column]) == 1 else json.dumps(row[column], default=str)
                  for column in attribute_columns}
    return Record(image, captions, attributes=attributes)


def _check_splits(splits: Mapping[str, list], rows: list, wanted: dict, split_column: str, path) -> None:
    for split, value in wanted.items():
        if not splits[split]:
            values = sorted({str(row[split_column][0]) for row in rows if row[split_column]})
            raise UserError(f"column '{split_column}' of '{path}' has no row of split '{value}', only of "
                            f"{', '.join(values[:9]) or 'none'}; set {split}_split or holdout_{split}.")


def _check_once(splits: Mapping[str, list], image_column: str, path) -> None:
    split_of = {}
    for split, members in splits.items():
        for row in members:
            if split_of.setdefault(str(row[image_column]), split) != split:
                raise UserError(f"image {row[image_column]} of '{path}' is in two splits; put all its rows into one.")


def _pick(row, column: str, path, number: int) -> list:
    try:
        return pick(row, column)
    except KeyError:
        raise UserError(f"row {number} of '{path}' has no column '{column}'; it has {', '.join(map(str, row))}."
                        ) from None


def _rows(path: Path, delimiter: str, columns) -> Iterator[dict]:
    """The rows of a table as dicts; of Parquet only the columns asked for."""
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix.lower() != ".gz"), "").lower()
    if kind not in (*DELIMITERS, *JSON_LINES, ".parquet"):
        raise UserError(f"'{path}' is of no known kind; give a .csv, .tsv, .jsonl or .parquet file.")
    if not path.is_file():
        raise UserError(f"there is no table '{path}'; give the path of the captions.")
    try:
        if kind == ".parquet":
            yield from _parquet(path, columns)
            return
        open_text = gzip.open if path.suffix.lower() == ".gz" else open
        with open_text(path, "rt", encoding="utf-8-sig", newline="") as file:
            if kind in JSON_LINES:
                for line in file:
                    if line.strip():
                        yield _mapping(parse_json(line, object), path)
            else:
                reader = csv.DictReader(file, delimiter=delimiter or DELIMITERS[kind], strict=True,
                                        skipinitialspace=True)
                for row in reader:
                    row.pop(None, None)  # more cells than the header has names
                    yield {(name or "").strip(): value for name, value in row.items()}
    except (OSError, EOFError, zlib.error, ValueError, csv.Error, RecursionError) as error:
        raise UserError(f"'{path}' is not a readable {kind[1:]} table ({reason(error)}); fetch it again.") from error


def _mapping(value, path) -> dict:
    if not isinstance(value, dict):
        raise UserError(f"a line of '{path}' is no JSON object; write one per line.")
    return value


def _parquet(path: Path, columns) -> Iterator[dict]:
    try:
        import pyarrow.parquet as parquet  # an optional dependency, and slow to import
    except ImportError as error:
        raise UserError("a Parquet table needs pyarrow: pip install 'mdw-jax[parquet]', or give a CSV file."
                        ) from error
    with parquet.ParquetFile(path) as file:
        stored = file.schema_arrow.names
        roots = [name for name in stored if any(column == name or column.startswith(f"{name}/") for column in columns)]
        for batch in file.iter_batches(columns=roots or stored):
            yield from batch.to_pylist()
