"""What a user's files are: from paths to a reader and its settings."""

import itertools
import os
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mdw_jax.data.problems import Problems
from mdw_jax.data.readers.sidecar import NO_DATA, TEXTS, metadata_of, split_called, split_directories
from mdw_jax.data.tables import arrow_rows
from mdw_jax.data.tables.columns import (
    SPLIT_NAMES,
    find_caption_columns,
    find_image_column,
    find_split_column,
    is_image_file,
    url_message,
)
from mdw_jax.data.tables.lines import head
from mdw_jax.data.tables.table import Table, open_table
from mdw_jax.errors import UserError

_DEEP = 3  # levels of directories in which tables are looked for
_MOST_FILES = 20_000  # names looked at in one directory: of more, the first tell its form
_SHARD_ENDS = (".tar", ".tar.gz", ".tgz")
_TABLE_ENDS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".token", ".psv", ".gz")
_LIST = re.compile(r"(train|val|dev|test)_?images?$")


class Detection(NamedTuple):
    """What files were taken for.

    Attributes:
        form: in words.
        name: the reader, `data.name`.
        settings: its settings, as they stand in the data section of a config.
        has: the splits that the files themselves tell apart.
    """

    form: str
    name: str
    settings: dict[str, object]
    has: tuple[str, ...]


def detect(paths: Sequence[str | os.PathLike]) -> Detection:
    """Find the reader of some files and its settings.

    Args:
        paths: directories, tables, zip files of images, tar shards: all of one data set.

    Raises:
        UserError: a path is not there, nothing of a known form is found, or several tables could hold the captions.
    """
    roots = [Path(os.path.expanduser(path)) for path in paths]
    if not roots:
        raise UserError("no path is roots; name the directory or the files of a data set.")
    if missing := [path for path in roots if not path.exists()]:
        raise UserError(f"there is no '{missing[0]}'; check the path.")
    directories, files = [path for path in roots if path.is_dir()], [path for path in roots if not path.is_dir()]
    if len(roots) == 1 and directories and (found := _of_directory(directories[0])):
        return found
    shards = [path for path in roots if path.name.endswith(_SHARD_ENDS) or (path.is_dir() and any(path.glob("*.tar")))]
    if len(roots) == 1 and _holds_images(roots[0]):
        return _of_arrow(roots, roots[0])
    if shards:
        if others := [path for path in roots if path not in shards]:
            raise UserError(f"'{shards[0]}' is of tar shards, and '{others[0]}' is not; give the shards alone.")
        return _of_shards(shards)
    zips = [path for path in files if path.suffix.lower() == ".zip"]
    tables = [path for path in files if path not in zips] or [path for root in directories for path in _tables(root)]
    if not tables:
        return _without_table(directories, zips)
    images = ",".join(map(str, [*zips, *directories]))
    if len(tables) == 1 and _is_karpathy(tables[0]):
        return Detection("Karpathy's JSON", "karpathy",
                         {"annotations": str(tables[0]), "images": images or str(tables[0].parent)},
                         ("train", "val", "test"))
    try:
        return _of_tables(tables, images)
    except UserError:
        if not files and (found := _sidecar(directories)):  # what looked like tables were other files
            return found
        raise


def _of_directory(root: Path) -> Detection | None:
    """What one directory is that tells by itself; None: look for a table in it."""
    if (root / "meta" / "esc50.csv").is_file() or (root / "esc50_logmel.npz").is_file():
        return Detection("ESC-50", "esc50", {"source": str(root)}, ("train", "val", "test"))
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return Detection("a data set that the datasets library saved", "hf", {"source": str(root)}, _dict_splits(root))
    if (root / "dataset_info.json").is_file() and any(".array_record" in path.name for path in root.iterdir()):
        return Detection("a data set that TensorFlow Datasets prepared", "tfds", {"source": str(root)}, ())
    directories = split_directories(root)
    if shards := [path for path in directories.values() if any(path.glob("*.tar"))]:
        return _of_shards(shards)
    if tars := sorted(root.rglob("*.tar")):
        flat = {path.parent for path in tars} == {root} and not any(map(_split_in, tars))
        return _of_shards([root] if flat else tars)
    if with_images := [path for path in _others_near(root) if _holds_images(path)]:
        parents = {path.parent for path in with_images}
        return _of_arrow(with_images, parents.pop() if len(parents) == 1 else root)
    if metadata_of(root) or (directories and all(metadata_of(path) for path in directories.values())):
        return Detection("images with a metadata table beside them", "folder", {"annotations": str(root)},
                         () if metadata_of(root) else tuple(directories))
    return None


def _of_arrow(paths: Sequence[Path], source: Path) -> Detection:
    """Parquet or Arrow files that hold images, at or below `source`."""
    column, has = _hf_splits(paths)
    return Detection("Parquet or Arrow files with the images in them", "hf",
                     {"source": str(source), **({"split_column": column} if column else {})}, has)


def _of_shards(shards: Sequence[Path]) -> Detection:
    """Tar shards, or directories of them; each belongs to the split that its name names, else to train."""
    by_split: dict[str, list[str]] = {}
    for path in shards:
        split = split_called(path.name) if path.is_dir() else _split_in(path)
        by_split.setdefault(split or "train", []).append(str(path))
    if "train" not in by_split:  # only one split is named: there is nothing to tell it from
        by_split = {"train": [path for paths in by_split.values() for path in paths]}
    return Detection("shards of images and texts (WebDataset)", "webdataset",
                     {f"{split}_shards": "::".join(paths) for split, paths in by_split.items()},
                     tuple(by_split) if len(by_split) > 1 else ())


def _without_table(directories: Sequence[Path], zips: Sequence[Path]) -> Detection:
    """Directories of images with texts beside them."""
    if found := _sidecar(directories):
        return found
    what = ", ".join(map(str, [*directories, *zips]))
    raise UserError(f"no table of captions and no texts beside images are found in '{what}'; give a table of images and "
                    "captions too, as in mdw inspect photos/ captions.csv.")


def _sidecar(directories: Sequence[Path]) -> Detection | None:
    """Images with texts beside them; None where there are none."""
    for root in directories:
        splits = split_directories(root)
        texts = {str(path.with_suffix("")) for path in _others_near(root) if path.suffix.lower() in (*TEXTS, ".json")}
        if any(str(path.with_suffix("")) in texts for path in _images_near(root)):
            return Detection("images with a text of the same name beside each", "folder", {"annotations": str(root)},
                             tuple(splits) if "train" in splits else ())
    return None


def _of_tables(tables: Sequence[Path], images: str) -> Detection:
    """A table, or one for each split, with lists of the images of each split where they are there."""
    lists = {split: path for path in tables if (split := _list_split(path))}
    usable: dict[Path, Table] = {}
    refused: list[str] = []
    for path in tables:
        if path in lists.values():
            continue
        try:
            usable[path] = _usable(path)
        except UserError as error:
            refused.append(str(error))
    if not usable:
        raise UserError(refused[0] if refused else f"'{tables[0]}' lists images; give the table of their captions too.")
    by_split = {split: path for path in usable if (split := _split_in(path))}
    settings: dict[str, object]
    if len(usable) == 1:
        [(path, table)] = usable.items()
        settings, has = {"annotations": str(path)}, _table_splits(table, path)
    elif len(by_split) == len(usable) and "train" in by_split:
        path, table, has = by_split["train"], usable[by_split["train"]], tuple(by_split)
        settings = {"annotations" if split == "train" else f"{split}_annotations": str(path)
                    for split, path in by_split.items()}
    else:
        raise UserError(f"{len(usable)} tables could hold the captions: {', '.join(sorted(str(p) for p in usable)[:8])}; "
                        "name one, with the directory of the images.")
    column = find_split_column(table.columns)
    if column and len(usable) == 1 and has:
        settings["split_column"] = column
    elif lists and len(usable) == 1:
        settings |= {f"{split}_list": str(path) for split, path in lists.items()}
        has = tuple(lists)
    if images and images != str(path.parent):
        settings["images"] = images
    if pattern := _pattern(path, table):
        settings["file_pattern"] = pattern
    return Detection(table.form, "folder", settings, has)


def _usable(path: Path) -> Table:
    """The table at a path, with columns of images and captions. Raises UserError for another."""
    table = open_table(path, Problems())
    image = find_image_column(table.columns, f"'{path}'")
    find_caption_columns([name for name in table.columns if name != image], f"'{path}'")
    first = next(table.read(image), (0, {}))[1].get(image)
    if isinstance(first, str) and first.startswith(("http://", "https://")):
        raise UserError(url_message(f"'{path}'", image))
    return table


def _pattern(path: Path, table: Table) -> str:
    """How files are called after numbers, from the images that lie by the table; "" where cells are names already."""
    image = find_image_column(table.columns, f"'{path}'")
    rows = itertools.islice(open_table(path, Problems()).read(image), 5)
    cells = [str(row[image]) for _, row in rows if row.get(image) is not None]
    if not cells or any(map(is_image_file, cells)) or not all(cell.isdigit() for cell in cells):
        return ""
    stems = {entry.name for entry in _images_near(path.parent)}
    for extension in (".jpg", ".jpeg", ".png", ".webp"):
        for digits in (0, 12, 6, 8, 9, 10, 5, 7):
            if all((f"{int(cell):0{digits}d}" if digits else cell) + extension in stems for cell in cells):
                return f"{{:0{digits}d}}{extension}" if digits else f"{{}}{extension}"
    return ""


def _images_near(root: Path) -> Iterator[Path]:
    return (path for path in _files(root) if is_image_file(path.name))


def _table_splits(table: Table, path: Path) -> tuple[str, ...]:
    """The splits that a column tells, if it tells more than train."""
    column = find_split_column(table.columns)
    if not column:
        return ()
    return _in_order({split_called(str(row.get(column))) for _, row in open_table(path, Problems()).read(column)})


def _in_order(seen: Container[str]) -> tuple[str, ...]:
    """The splits among `seen`; none without train, which there is nothing to tell from."""
    return tuple(split for split in SPLIT_NAMES if split in seen) if "train" in seen else ()


def _tables(root: Path) -> list[Path]:
    """Files in a directory that may be tables, and not what stands beside an image."""
    stems = {path.with_suffix("") for path in _images_near(root)}
    return [path for path in _others_near(root) if path.name.lower().endswith(_TABLE_ENDS) and not NO_DATA.match(path.name)
            and not path.name.lower().endswith("_stats.json")
            and not (path.suffix.lower() in (*TEXTS, ".json") and path.with_suffix("") in stems)]


def _others_near(root: Path) -> Iterator[Path]:
    return (path for path in _files(root) if not is_image_file(path.name))


def _files(root: Path) -> Iterator[Path]:
    """Files below a directory, not too deep and not too many, in order."""
    for parent, directories, files in os.walk(root):
        directories.sort()
        if len(Path(parent).relative_to(root).parts) >= _DEEP:
            directories.clear()
        yield from (Path(parent) / name for name in sorted(files)[:_MOST_FILES])


def _holds_images(path: Path) -> bool:
    """Whether a Parquet or Arrow file holds images themselves."""
    if path.suffix not in (".parquet", ".arrow") or not path.is_file():
        return False
    types = arrow_rows.column_types(path, f"'{path}'")
    return any("bytes: binary" in kind or kind in ("binary", "large_binary") for kind in types.values())


def _hf_splits(paths: Sequence[Path]) -> tuple[str, tuple[str, ...]]:
    """The column of these files that tells the splits, or "", and the splits that the files tell apart."""
    column = find_split_column(tuple(arrow_rows.column_types(paths[0], f"'{paths[0]}'")))
    if column:
        seen = {split_called(str(row[column])) for path in paths
                for _, row in arrow_rows.rows(path, f"'{path}'", column)}
        if len(has := _in_order(seen)) > 1:
            return column, has
    return "", _in_order({_split_in(path) for path in paths})


def _dict_splits(root: Path) -> tuple[str, ...]:
    return tuple(split_directories(root)) if (root / "dataset_dict.json").is_file() else ()


def _is_karpathy(path: Path) -> bool:
    start = head(path)
    return start[:1] == b"{" and all(key in start for key in (b'"sentences"', b'"images"', b'"raw"'))


def _split_in(path: Path) -> str:
    """The split that the name of a file names; "" if none."""
    words = re.findall("[a-z]+", path.name.lower())
    return next((split for split, names in SPLIT_NAMES.items() if not set(names).isdisjoint(words)), "")


def _list_split(path: Path) -> str:
    """The split of a list of images, as Flickr8k has them ("Flickr_8k.devImages.txt"); "" for another file."""
    match = _LIST.search(path.stem.lower())
    if match is None:
        return ""
    return "val" if match[1] == "dev" else match[1]
