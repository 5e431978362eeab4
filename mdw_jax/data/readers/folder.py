"""Images in folders or zip files with captions in a table: CSV, TSV, JSON lines or Parquet."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from mdw_jax.data.archives import locate
from mdw_jax.data.decoding import reason
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.records import Record, build, names, pick, unheld
from mdw_jax.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


def folder(annotations, images="", *, val_annotations="", test_annotations="", image_column: str = "image",
           caption_columns="caption", file_pattern: str = "{}", split_column: str = "", attribute_columns=(),
           train_split: str = "train", val_split: str = "val", test_split: str = "test", delimiter: str = "",
           **common) -> Pairs:
    """Read image files and a table that says which captions each has.

    annotations: a `.csv`, `.tsv`, `.jsonl` or `.parquet` file, text also gzipped (`.csv.gz`). CSV has a header line.
    images: where the images are, as in `sources.locate`; "" is the folder of the table.
    val_annotations, test_annotations: tables of their own for these splits; `annotations` is then train's.
    image_column: the image's file name under `images`. Rows with the same one are one image.
    file_pattern: the file name where the column holds only a part of it: "{}.jpg".
    caption_columns: one or several columns (a tuple, or a string with commas), each of one caption or a list of them;
      in JSON lines and Parquet "sentences/raw" goes into nested values.
    split_column: says the split of each row, with `train_split`, `val_split` and `test_split` as values; rows with
      other values are left out. "" means that all rows are train: val and test are then held out of it.
    attribute_columns: kept in `Split.attributes`, from the first row of an image; those of CSV are text.
    delimiter: of a CSV file, where it is not the usual one.
    common: see `records.build`.
    Raises UserError for a table that is missing, damaged or without these columns, for an image in two splits, and
    for what `records.build` and `sources.locate` raise.
    """
    path = Path(annotations)
    caption_columns, attribute_columns = names(caption_columns, "caption_columns"), names(attribute_columns)
    columns = (image_column, *caption_columns, *attribute_columns, *([split_column] if split_column else ()))

    def read(path: Path) -> list[dict]:
        return [{column: _pick(row, column, path, number) for column in columns}
                for number, row in enumerate(_rows(path, delimiter, columns), 1)]

    rows, others = read(path), {"val": val_annotations, "test": test_annotations}
    if split_column and any(others.values()):
        raise UserError(f"splits are told by column '{split_column}' or by tables of their own, not both; unset "
                        "split_column, or val_annotations and test_annotations.")
    if split_column:
        wanted = unheld(common, train=train_split, val=val_split, test=test_split)
        chosen = {split: [row for row in rows if row[split_column][:1] == [value]] for split, value in wanted.items()}
        _check_splits(chosen, rows, wanted, image_column, split_column, path)
    else:
        chosen = {"train": rows} | {split: read(Path(other)) for split, other in others.items() if other}
        _check_once(chosen, image_column, path)
    members = [(split, row) for split, part in chosen.items() for row in part]
    if wrong := [row[image_column] for _, row in members if [type(name) for name in row[image_column]] != [str]]:
        raise UserError(f"column '{image_column}' of '{path}' must hold one file name a row, not {wrong[0]}.")
    for _, row in members:
        row[image_column] = [file_pattern.replace("{}", row[image_column][0])]
    files = list(dict.fromkeys(row[image_column][0] for _, row in members))
    located = dict(zip(files, locate([[file] for file in files], images or path.parent)))
    found = {split: [] for split in chosen}
    for split, row in members:
        captions = tuple(caption for column in caption_columns for caption in row[column])
        attributes = {column: row[column][0] if len(row[column]) == 1 else json.dumps(row[column], default=str)
                      for column in attribute_columns}
        found[split].append(Record(located[row[image_column][0]], captions, attributes=attributes))
    return build(path.name.split(".")[0], found, **common)


def _check_splits(chosen: dict, rows: list, wanted: dict, image_column: str, split_column: str, path) -> None:
    for split, value in wanted.items():
        if not chosen[split]:
            there = sorted({str(row[split_column][0]) for row in rows if row[split_column]})
            raise UserError(f"column '{split_column}' of '{path}' has no row of split '{value}', only of "
                            f"{', '.join(there[:9]) or 'none'}; set {split}_split or holdout_{split}.")
    _check_once(chosen, image_column, path)


def _check_once(chosen: dict, image_column: str, path) -> None:
    split_of = {}
    for split, part in chosen.items():
        for row in part:
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
        opened = gzip.open if path.suffix.lower() == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            if kind in JSON_LINES:
                for line in file:
                    if line.strip():
                        yield _mapping(json.loads(line), path)
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
        raise UserError(f"a line of '{path}' is no JSON object; write one a row.")
    return value


def _parquet(path: Path, columns) -> Iterator[dict]:
    try:
        import pyarrow.parquet as parquet  # an optional dependency, and slow to import
    except ImportError as error:
        raise UserError("a Parquet table needs pyarrow: pip install 'mdw-jax[parquet]', or give a CSV file."
                        ) from error
    with parquet.ParquetFile(path) as file:
        there = file.schema_arrow.names
        roots = [name for name in there if any(column == name or column.startswith(f"{name}/") for column in columns)]
        for batch in file.iter_batches(columns=roots or there):
            yield from batch.to_pylist()
