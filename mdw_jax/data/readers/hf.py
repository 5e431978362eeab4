"""Data sets of the Hugging Face `datasets` library: from the Hub, from `save_to_disk`, or from Parquet files."""

import glob
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from mdw_jax.data.decoding import Encoded, reason
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.records import Record, build, names, pick, splits_to_read, text
from mdw_jax.errors import UserError


def hf(source, *, config: str = "", revision: str = "", cache: str | None = None, image_column: str = "image",
       caption_columns="caption", key_column: str = "", attribute_columns=(), train_split: str = "train",
       val_split: str = "validation", test_split: str = "test", **common) -> Pairs:
    """Read a data set of the `datasets` library with an image column and captions.

    Args:
        source: a Hub name, a directory that `save_to_disk` wrote, a directory that `load_dataset` understands, or
            Parquet files (a path or a glob pattern; they are split "train").
        config, revision: of a Hub data set.
        cache: where `datasets` keeps what it fetches and converts; None: its own choice.
        image_column: an `Image` feature, or bytes; it is read without decoding.
        caption_columns: one or several columns (a tuple, or a string with commas), each of one caption or a list of
            them; "sentences/raw" goes into nested values.
        key_column: names the image; rows of a split with the same key are one image. "": a digest of its bytes.
        attribute_columns: kept in `Split.attributes`.
        train_split, val_split, test_split: the source's names; "train+restval" concatenates two.
        common: see `records.build`.
    Raises:
        UserError: the source, a split or a column is not there, or what `records.build` raises.
    """
    library = _library()
    splits = _load(library, str(source), config, revision, cache)
    caption_columns, attribute_columns = names(caption_columns, "caption_columns"), names(attribute_columns)
    wanted = splits_to_read(common, train=train_split, val=val_split, test=test_split)
    records = {}
    for split, name in wanted.items():
        parts = [part.strip() for part in name.split("+")]
        if missing := [part for part in parts if part not in splits]:
            raise UserError(f"'{source}' has no split '{missing[0]}', only {', '.join(splits)}; set {split}_split or "
                            f"holdout_{split}.")
        records[split] = _records(library, library.concatenate_datasets([splits[part] for part in parts]), source,
                                  image_column, caption_columns, key_column, attribute_columns)
    return build(Path(str(source)).name.split(".")[0], records, **common)


def _library():
    try:
        import datasets  # an optional dependency, and slow to import
    except ImportError as error:
        raise UserError("the reader 'hf' needs the datasets library: pip install 'mdw-jax[datasets]'.") from error
    return datasets


def _load(library, source: str, config: str, revision: str, cache: str | None) -> Mapping:
    """{split: Dataset} of `source`, of any of its kinds."""
    directory = Path(source)
    try:
        if (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file():
            loaded = library.load_from_disk(source)
        elif source.endswith(".parquet"):
            files = sorted(glob.glob(source)) or [source]
            loaded = library.load_dataset("parquet", data_files=files, cache_dir=cache)
        else:
            loaded = library.load_dataset(source, config or None, revision=revision or None, cache_dir=cache)
    except Exception as error:  # the library raises a dozen kinds, its own and those of network and file systems
        raise UserError(f"cannot load the data set '{source}' ({reason(error)}); check its name or path, and the "
                        "network if it is on the Hub.") from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _records(library, table, source, image_column, caption_columns, key_column, attribute_columns) -> list[Record]:
    columns = (*caption_columns, *attribute_columns, *([key_column] if key_column else ()))
    roots = {column: next((name for name in sorted(table.column_names, key=len, reverse=True)
                           if column == name or column.startswith(f"{name}/")), None)
             for column in (image_column, *columns)}
    for column, root in roots.items():
        if root is None:
            raise UserError(f"'{source}' has no column '{column}'; it has {', '.join(table.column_names)}.")
    try:
        images = table.select_columns([image_column]).cast_column(image_column, library.Image(decode=False))
    except Exception as error:
        raise UserError(f"column '{image_column}' of '{source}' cannot be read as images ({reason(error)}); give the "
                        "one that holds them.") from error
    records = []
    try:
        for row in table.select_columns(sorted({roots[column] for column in columns})):
            read = partial(_read, images, image_column, len(records))
            key = text(pick(row, key_column)[0]) if key_column else hashlib.sha256(read()).hexdigest()[:16]
            captions = tuple(caption for column in caption_columns for caption in pick(row, column))
            attributes = {column: pick(row, column)[0] for column in attribute_columns}
            records.append(Record(Encoded(key, read), captions, attributes=attributes))
    except (KeyError, IndexError, OSError, ValueError) as error:
        raise UserError(f"row {len(records)} of '{source}' cannot be read ({reason(error)}); check the columns named, "
                        "and the data.") from error
    return records


def _read(images, column: str, row: int) -> bytes:
    """The encoded bytes of an image; some data sets hold only the path of a file."""
    cell = images[row][column]
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("the row has no image")
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
