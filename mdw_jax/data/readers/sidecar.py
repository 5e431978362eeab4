"""Directories without a table: `x.jpg` beside `x.txt`, as img2dataset and the trainers of diffusion models have them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mdw_jax.data.caption_lines import captions_of, check_mode, find_mode, lines_of, several_lines
from mdw_jax.data.problems import Problems, quoted
from mdw_jax.data.tables.columns import SPLIT_NAMES, find_caption_columns, is_image_file
from mdw_jax.data.tables.entries import Entry, download_failed
from mdw_jax.errors import UserError
from mdw_jax.io.files import read_json

TEXTS = (".txt", ".caption", ".cap")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "metadata.json")
"""Tables that lie in the directory of their images, as the `datasets` library has them."""
NO_DATA = re.compile(r"\.|readme|licen[sc]e|nshards|requirements", re.IGNORECASE)
"""How files begin that hold no captions, whatever their form."""
_LARGEST_TEXT = 2**20


def split_called(name: str) -> str:
    """`train`, `val` or `test`, of which this is a name; "" of none."""
    return next((split for split, names in SPLIT_NAMES.items() if name.strip().lower() in names), "")


def split_directories(directory: Path) -> dict[str, Path]:
    """{split: its directory} of the directories in `directory` that are called as splits are."""
    found: dict[str, Path] = {}
    for child in sorted(path for path in directory.iterdir() if path.is_dir()):
        if split := split_called(child.name):
            if split in found:
                raise UserError(f"'{found[split].name}' and '{child.name}' in '{directory}' are both called as "
                                f"split '{split}' is; leave one.")
            found[split] = child
    return found


def metadata_of(directory: Path) -> Path | None:
    """The table of a directory's images, where there is one."""
    return next((directory / name for name in METADATA if (directory / name).is_file()), None)


def sidecar_entries(directory: Path, caption_lines: str, problems: Problems, notes: list[str]) -> Iterator[Entry]:
    """The images of a directory and all below it, each with the text of the same name beside it.

    Args:
        directory: the directory; names of images are relative to it.
        caption_lines: what several lines of a text are: see `caption_lines.captions_of`; "": found out.
        problems: gets images without a text, texts without an image, texts that are not in UTF-8.
        notes: sentences for the user.

    Raises:
        UserError: there are no images, or none has a text.
    """
    check_mode(caption_lines)
    images, texts, records = _files(directory)
    if not images or not (texts or records.keys() & images.keys()):
        raise UserError(f"'{directory}' holds {len(images)} images and {len(texts)} texts beside them "
                        f"({', '.join(TEXTS)}); give a table of the captions in data.annotations, or write each caption "
                        "into x.txt beside x.jpg.")
    read = {}
    for stem, image in images.items():
        if stem in texts:
            text = texts[stem]
            try:
                if text.stat().st_size > _LARGEST_TEXT:
                    raise ValueError("it is too long for a caption")
                read[image] = text.read_text(encoding="utf-8-sig")
            except (OSError, ValueError) as error:
                problems.add("caption not in Unicode", f"{quoted(str(text))} ({error})")
        elif stem in records:
            read[image] = _caption_of(records[stem], problems)
        else:
            problems.add("no caption", f"{quoted(image)}, beside which there is no text")
    for stem in records.keys() - images.keys():  # of img2dataset, for what it could not fetch
        if download_failed(_read_record(records[stem])):
            problems.add("failed download", quoted(str(records[stem])))
    for stem in texts.keys() - images.keys():
        problems.add("no image", f"{quoted(str(texts[stem]))}, beside which there is no image")
    several = sum(len(lines_of(text)) > 1 for text in read.values())
    mode = caption_lines or find_mode(list(read.values()))
    notes.append(f"'{directory.name}' was read as images with texts of the same name.")
    if several:
        notes.append(several_lines(several, f"'{directory.name}'", mode))
    for name, written in read.items():
        yield Entry(name, captions_of(written, mode) or [""], "", {}, 0)


def _read_record(path: Path) -> dict:
    """The JSON object beside an image; {} for another file."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _caption_of(path: Path, problems: Problems) -> str:
    """The caption in the JSON beside an image; "" where there is none, which is a problem of its own."""
    record = _read_record(path)
    if not record:
        problems.add("unreadable json", quoted(str(path)))
        return ""
    caption = record.get(find_caption_columns(list(record), f"'{path}'")[0])
    return caption if isinstance(caption, str) else ""


def _files(directory: Path) -> tuple[dict[str, str], dict[str, Path], dict[str, Path]]:
    """{stem: image}, {stem: text} and {stem: JSON} below a directory, by paths without their extensions, in order."""
    images: dict[str, str] = {}
    texts: dict[str, Path] = {}
    records: dict[str, Path] = {}
    for parent, _, files in sorted(os.walk(directory)):
        if any(part.startswith(".") for part in Path(parent).relative_to(directory).parts):
            continue  # caches, checkpoints of notebooks
        for file in sorted(file for file in files if not NO_DATA.match(file)):
            path = Path(parent) / file
            stem = str(path.with_suffix(""))
            if path.suffix.lower() in TEXTS and is_image_file(stem):
                stem = str(Path(stem).with_suffix(""))  # x.jpg.txt
            if is_image_file(file):
                if stem in images:
                    raise UserError(f"'{images[stem]}' and '{path.name}' in '{parent}' have one text between them; rename "
                                    "one.")
                images[stem] = path.relative_to(directory).as_posix()
            elif path.suffix.lower() in TEXTS:
                if stem in texts:
                    raise UserError(f"'{texts[stem]}' and '{path.name}' are both texts of one image; leave one.")
                texts[stem] = path
            elif path.suffix.lower() == ".json":
                records[stem] = path
    return images, texts, records
