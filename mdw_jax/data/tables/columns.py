"""Which columns of a table hold images, captions and splits, by the names that data sets give them."""

import re
from collections.abc import Iterable, Sequence

from mdw_jax.errors import UserError

# In the order in which one is taken where a table has several. To add a name, add it here.
IMAGE_COLUMNS = ("image", "images", "file_name", "filename", "image_name", "image_file", "image_path", "img_path",
                 "filepath", "file_path", "file", "path", "img", "picture", "photo", "image_id", "img_id", "jpg",
                 "key", "id")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "comment", "raw", "title", "sentence", "sentences",
                   "description", "alt_text", "alttext", "alt", "txt", "conversations", "messages",
                   "caption_str")
SPLIT_COLUMNS = ("split", "subset")
URL_COLUMNS = ("url", "image_url", "img_url")
SPLIT_NAMES = {"train": ("train", "training", "restval"), "val": ("val", "validation", "valid", "dev"),
               "test": ("test", "testing")}
"""What data sets call their splits, in columns and directories."""
_NUMBERED = re.compile(r"(caption|text|sentence|comment)s?[_ .]?\d+")
_IMAGE_FILE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif|ppm)(#\d+)?\"?$", re.IGNORECASE)


def is_image_file(name) -> bool:
    """Whether a text looks like the name of an image file, perhaps with the number of a caption ("a.jpg#0")."""
    return isinstance(name, str) and _IMAGE_FILE.search(name) is not None


def find_image_column(columns: Sequence[str], where: str) -> str:
    """The column of the images, by its name.

    Raises:
        UserError: no column has such a name.
    """
    found = first_called(columns, IMAGE_COLUMNS)
    if found is None and (url := first_called(columns, URL_COLUMNS)):
        raise UserError(url_message(where, url, first_called(columns, CAPTION_COLUMNS) or "caption"))
    if found is None:
        raise UserError(f"no column of {where} is called image, file_name or the like; it has {listed(columns)}: set "
                        "data.image_column.")
    return found


def find_caption_columns(columns: Sequence[str], where: str) -> tuple[str, ...]:
    """The columns of the captions, by their names: one, or those that are numbered ("caption_0", "caption_1").

    Raises:
        UserError: no column has such a name.
    """
    if (found := first_called(columns, CAPTION_COLUMNS)) is not None:
        name = re.escape(_plain(found))  # "caption", "caption_2", or pandas' "caption.1"
        return (found, *(column for column in columns if re.fullmatch(rf"{name}[_ .]?\d+", _plain(column))))
    if numbered := tuple(column for column in columns if _NUMBERED.fullmatch(_plain(column))):
        return numbered
    raise UserError(f"no column of {where} is called caption, text or the like; it has {listed(columns)}: set "
                    "data.caption_columns.")


def find_split_column(columns: Sequence[str]) -> str:
    """The column that holds the names of splits; "" if none is called so."""
    return first_called(columns, SPLIT_COLUMNS) or ""


def found_in_words(asked, used) -> list[str]:
    """Which columns were found, as a user did not name them: of two tuples with `image` and `captions`."""
    return [f"images in '{used.image}'"] * (not asked.image) + [
        f"captions in '{', '.join(used.captions)}'"] * (not asked.captions)


def knows(columns: Iterable[str]) -> bool:
    """Whether any of these cells is a name that columns have: then they are the header of a table."""
    known = {*IMAGE_COLUMNS, *CAPTION_COLUMNS, *SPLIT_COLUMNS, *URL_COLUMNS}
    names = [_plain(cell.strip().strip('"')) for cell in columns]
    return any(name in known or _NUMBERED.fullmatch(name) for name in names)


def fetching(url: str, caption: str = "caption", table: str = "TABLE", form: str = "csv") -> str:
    """The command that fetches the images of a table of addresses, into shards."""
    return (f"img2dataset --url_list {table} --input_format {form} --url_col {url} --caption_col {caption} "
            "--output_format webdataset --output_folder shards")


def url_message(where: str, url: str = "url", caption: str = "caption") -> str:
    """What to do about a table of addresses."""
    return (f"{where} holds addresses of images, not files; fetch them first: {fetching(url, caption)} "
            "(--input_format tsv or parquet where it is one), and then read shards with data.name=webdataset.")


def listed(columns: Iterable[str], most: int = 20) -> str:
    """Names of columns for a message, not all of too many."""
    names = [f"'{column}'" if not str(column).strip() else str(column)[:60] for column in columns]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _plain(column) -> str:
    """A column's name as those in the lists above are written."""
    return re.sub(r"[ -]", "_", str(column).strip().lower())


def first_called(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The column that is called by the first of these names that any is called by; None if none is."""
    by_name = {_plain(column): column for column in reversed(list(columns))}
    return next((by_name[name] for name in names if name in by_name), None)
