"""Columns of a data set of the `datasets` library: found by their types and names, checked, and taken apart."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mdw_jax.data.tables.cells import is_turn
from mdw_jax.data.tables.columns import (
    CAPTION_COLUMNS,
    find_caption_columns,
    find_image_column,
    found_in_words,
    is_image_file,
    listed,
    url_message,
)
from mdw_jax.errors import UserError

_SAMPLE = 1000  # rows in which the first cell that is not empty is looked for


class Columns(NamedTuple):
    """What is read of a row; names may be paths into nested values.

    Attributes:
        image: the column of the image.
        captions: those of its captions.
        key: names the image; "": a digest of its bytes.
        attributes: those that are kept.
        split: holds the name of the split; "": that of the data set itself.
    """

    image: str
    captions: tuple[str, ...]
    key: str
    attributes: tuple[str, ...]
    split: str


def found(table, asked: Columns, where: str, notes: list[str]) -> Columns:
    """The columns, with those found that are not given."""
    types = {field.name: field.type for field in table.features.arrow_schema}
    image = asked.image or _find_images(table, types, where)
    captions = asked.captions
    if not captions:
        others = [name for name, kind in types.items() if name not in (image, asked.split) and _holds_text(kind)]
        captions = tuple(_into(column, types[column]) for column in find_caption_columns(others, where))
    used = asked._replace(image=image, captions=captions)
    if words := found_in_words(asked, used):
        notes.append(f"{where} was read with {' and '.join(words)}.")
    return used


def _find_images(table, types: Mapping, where: str) -> str:
    """The column of images: an `Image` feature, or bytes, or else names of image files."""
    features = [name for name, feature in table.features.items() if type(feature).__name__ == "Image"]
    pictures = features or [name for name, kind in types.items()
                            if _image_form(kind) == "bytes" and name.strip().lower() not in CAPTION_COLUMNS]
    if pictures:
        return pictures[0] if len(pictures) == 1 else find_image_column(pictures, where)
    samples = {name: _sample(table, name) for name, kind in types.items() if _image_form(kind) == "name"}
    addresses = [name for name, cell in samples.items() if cell.startswith(("http://", "https://"))]
    files = [name for name, cell in samples.items() if name not in addresses and is_image_file(cell)]
    if files:
        return files[0] if len(files) == 1 else find_image_column(files, where)
    if addresses:
        raise UserError(url_message(where, addresses[0]))
    raise UserError(f"no column of {where} holds images, as bytes or as names of files; it has {listed(types)}: set "
                    "data.image_column.")


def _sample(table, column: str) -> str:
    """The first of the first cells that is not empty, of a column of text or of names of files; "" for none."""
    batch = next(table.select_columns([column]).with_format("arrow").iter(_SAMPLE), None)
    cells = batch.column(0).to_pylist() if batch is not None else []
    return next(filter(None, (cell["path"] if isinstance(cell, Mapping) else cell for cell in cells)), "")


def check(table, columns: Columns, where: str) -> None:
    """Raises UserError for a column that is not there, or holds something else."""
    types = {field.name: field.type for field in table.features.arrow_schema}
    settings = {"image_column": (columns.image,), "caption_columns": columns.captions, "key_column": (columns.key,),
                "attribute_columns": columns.attributes, "split_column": (columns.split,)}
    for setting, paths in settings.items():
        for path in filter(None, paths):
            root = root_of(path, list(types))
            if not root:
                raise UserError(f"{where} has no column '{path}'; it has {listed(types)}: set data.{setting}.")
            leaf, rest = _at(types[root], path[len(root):].strip("/"))
            if rest:
                inner = f"nested values with {listed(_fields(leaf))}" if _fields(leaf) else "no nested values"
                raise UserError(f"{where} has no column '{path}': '{root}' has {inner}; set data.{setting}.")
            if path == columns.split and path not in types:
                raise UserError(f"{where} has '{path}' inside of '{root}'; data.split_column must be a column of its own.")
            if setting == "caption_columns":
                _check_captions(path, leaf, where)
    kind = types.get(columns.image)
    if not _image_form(kind):
        raise UserError(f"column '{columns.image}' of {where} cannot be read as images: it holds {kind or 'parts'}; set "
                        "data.image_column to one of bytes or of names of files.")
    if _image_form(kind) == "name" and _sample(table, columns.image).startswith(("http://", "https://")):
        raise UserError(url_message(where, columns.image, columns.captions[0]))


def _check_captions(path: str, leaf, where: str) -> None:
    fields = _fields(leaf)
    if fields and not is_turn(fields):
        raise UserError(f"column '{path}' of {where} has nested values with {listed(fields)}; name one, as in "
                        f"data.caption_columns={_into(path, leaf)}.")
    if not fields and not _holds_text(leaf):
        raise UserError(f"column '{path}' of {where} holds {leaf}, no captions; set data.caption_columns.")


def root_of(path: str, columns: Sequence[str]) -> str:
    """The column that a path leads into ("sentences/raw" into "sentences"); "" if there is none."""
    return next((name for name in sorted(columns, key=len, reverse=True)
                 if path == name or path.startswith(f"{name}/")), "")


def _at(kind, path: str):
    """The Arrow type at a path, and what of the path leads nowhere."""
    while hasattr(kind, "value_type") and not _fields(kind):
        kind = kind.value_type
    fields = _fields(kind)
    if path and (name := root_of(path, list(fields))):
        return _at(fields[name], path[len(name):].strip("/"))
    return kind, path


def _fields(kind) -> dict:
    """{name: type} of a struct; {} of another type."""
    return {field.name: field.type for field in kind} if str(kind).startswith("struct<") else {}


def _into(column: str, kind) -> str:
    """The column, or the path to what its nested values call a caption."""
    leaf, _ = _at(kind, "")
    fields = _fields(leaf)
    if not fields or is_turn(fields):
        return column
    known = [name for name in CAPTION_COLUMNS if name in fields]
    return f"{column}/{(known or list(fields))[0]}"


def _holds_text(kind) -> bool:
    """Whether a type is text, or lists of it, or nested values; bytes may be text, and a column of nulls anything."""
    leaf, _ = _at(kind, "")
    return bool(_fields(leaf)) or any(word in str(leaf) for word in ("string", "binary", "null"))


def _image_form(kind) -> str:
    """`bytes`, `name` (of a file), or "" for what can be no image."""
    spelled, fields = str(kind), _fields(kind) if kind is not None else {}
    if fields:
        return "bytes" if "binary" in str(fields.get("bytes")) else "name" if "string" in str(fields.get("path")) else ""
    return ("bytes" if spelled in ("binary", "large_binary", "binary_view") else
            "name" if spelled in ("string", "large_string", "string_view") else "")


def image_parts(array) -> tuple:
    """(bytes, names of files) of images, as Arrow arrays; None where the column has no such thing."""
    if fields := _fields(array.type):
        parts = dict(zip(fields, array.flatten()))
        return parts.get("bytes"), parts.get("path")
    return (array, None) if _image_form(array.type) == "bytes" else (None, array)


def places(array) -> tuple[list, list]:
    """Lengths of the bytes and names of the files of images; None where there are none."""
    from pyarrow import compute  # an optional dependency, of the datasets library

    data, paths = image_parts(array)
    lengths: list = [None] * len(array)
    names: list = lengths
    if data is not None and "view" in str(data.type):  # which `compute` has no lengths of
        lengths = [len(cell.as_buffer()) if cell.is_valid else None for cell in data]
    elif data is not None and "binary" in str(data.type):
        lengths = compute.binary_length(data).to_pylist()
    if paths is not None and "string" in str(paths.type):
        names = paths.to_pylist()
    return lengths, names


def rows_of(batch) -> list[dict]:
    """The rows of a batch (a table of Arrow); where a text is not in UTF-8, all texts of the batch are bytes."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        import pyarrow  # an optional dependency, of the datasets library

        return batch.cast(pyarrow.schema([field.with_type(_as_bytes(field.type)) for field in batch.schema])).to_pylist()


def _as_bytes(kind):
    """An Arrow type with bytes in the place of text."""
    import pyarrow

    if fields := _fields(kind):
        return pyarrow.struct([(name, _as_bytes(inner)) for name, inner in fields.items()])
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return (pyarrow.list_ if pyarrow.types.is_list(kind) else pyarrow.large_list)(_as_bytes(kind.value_type))
    return pyarrow.binary() if str(kind) == "string" else pyarrow.large_binary() if str(kind) == "large_string" else kind
