"""Rows of JSON files: lines, arrays, COCO's annotations, captions by file name; arrays are read piece by piece."""

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mdw_jax.data.problems import Problems, quoted
from mdw_jax.data.tables import lines
from mdw_jax.data.tables.columns import SPLIT_NAMES, is_image_file, knows, listed
from mdw_jax.data.tables.lines import lines_of, open_bytes
from mdw_jax.errors import UserError
from mdw_jax.io.files import parse_json

_CHUNK = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")
_LARGEST_OBJECT = lines.LONGEST_LINE  # characters of one object of an array
DOCUMENT_HELD, DOCUMENT_TIMES = 2**31, 16
"""The values of a JSON document may take so many bytes of memory, and a larger file so many times its size."""


def kind_of(path: Path, sample: str) -> str:
    """What a JSON file is: `array`, `lines` (several objects) or `document` (one object)."""
    if sample.lstrip().startswith("["):
        return "array"
    filled = (line for _, line in lines_of(path) if line.strip())
    try:
        parse_json(next(filled, "").strip().rstrip(","))
    except (UserError, ValueError):  # longer than a line can be, as COCO's single one; over several lines; or damaged
        return "document"
    second = next(filled, "")
    return "lines" if second.lstrip().startswith("{") else "document"


def line_rows(path: Path, encoding: str, where: str, problems: Problems) -> Iterator[tuple[int, dict]]:
    """(number of the line, object) of JSON lines; lines that hold no object are broken rows."""
    for number, line in lines_of(path, encoding, where):
        if line.strip():
            try:
                yield number, parse_json(line.strip().rstrip(","))
            except ValueError as error:
                problems.add("broken row", f"line {number} of {where} is no JSON object ({error}): "
                             f"{quoted(line.strip(), 80)}")


def array_rows(path: Path, where: str) -> Iterator[tuple[int, dict]]:
    """(number of the entry from 1, object) of a JSON array of objects, which need not fit into memory.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    decoder, number, text, place, at_end = json.JSONDecoder(), 0, "", 0, False
    decode = codecs.getincrementaldecoder("utf-8-sig")()
    with open_bytes(path) as file:
        while True:
            place = _after_space(text, place)
            if text[place:place + 1] == ("[" if number == 0 else "," if number > 1 else ""):
                place, number = _after_space(text, place + 1), number or 1
            if number and text[place:place + 1] == "]":
                return
            error: Exception | None = None
            if number and place < len(text):
                try:
                    value, place = decoder.raw_decode(text, place)
                except (ValueError, RecursionError) as failure:
                    error = failure
                else:
                    if not isinstance(value, dict):
                        raise UserError(f"entry {number} of {where} is no object but {quoted(json.dumps(value), 80)}; give "
                                        "an array of objects, each with an image and its caption.")
                    yield number, value
                    number += 1
                    continue
            if at_end or len(text) - place > _LARGEST_OBJECT or isinstance(error, RecursionError):
                raise UserError(f"entry {max(number, 1)} of {where} is damaged or cut off ({error or 'the file ends'}): "
                                f"{quoted(text[place:place + 200], 80)}; fix it, or fetch the file again.")
            try:
                chunk = file.read(_CHUNK)
                text, place, at_end = text[place:] + decode.decode(chunk, final=not chunk), 0, not chunk
            except UnicodeDecodeError as failure:
                raise UserError(f"entry {number} of {where} or one soon after it is not in UTF-8 ({failure.reason}); "
                                "convert the file to UTF-8.") from None


def _after_space(text: str, place: int) -> int:
    """The first place from `place` on that is no white space."""
    return _SPACE.match(text, place).end()  # type: ignore[union-attr]


def document_rows(path: Path, where: str) -> tuple[str, Iterator[tuple[int, dict]]]:
    """(what it is in words, its rows) of one JSON object: COCO's captions, or captions by file name.

    Raises:
        UserError: it is damaged, or of another form.
    """
    data = lines.document(path, where)
    try:
        document = parse_json(data, memory=document_memory(path))
    except ValueError as error:
        raise UserError(f"{where} is not readable JSON ({error}); fetch it again, or write one object per line.") from None
    if is_karpathy(document):
        raise UserError(f"{where} is in Karpathy's schema; read it with data.name=karpathy.")
    if isinstance(document.get("images"), list) and isinstance(document.get("annotations"), list):
        return "COCO's captions", _coco_rows(document, where)
    if document and all(map(is_image_file, document)):
        if repeated := _repeated_name(data):
            raise UserError(f"{where} has the name '{repeated}' twice, and only the last would be read; give each once.")
        return "captions by file name", enumerate(
            ({"image": name, "caption": captions} for name, captions in document.items()), 1)
    if (rows := _oriented(document)) is not None:
        return "JSON as pandas writes it", enumerate(rows, 1)
    lists = [value for value in document.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) > 1 and set(document) <= {name for names in SPLIT_NAMES.values() for name in names}:
        return "JSON arrays of the splits", enumerate(
            ({**_mapping(row, n, where), "split": split} for split, rows in document.items()
             for n, row in enumerate(rows, 1)), 1)
    if len(lists) == 1 and "annotations" not in document:
        return "an array of objects", enumerate((_mapping(row, number, where) for number, row in enumerate(lists[0], 1)), 1)
    if document and not lists and all(not isinstance(value, dict) for value in document.values()):
        return "JSON lines", iter([(1, document)])
    raise UserError(f"{where} is a JSON object of no known form, with the keys {listed(document)}; give Karpathy's or "
                    "COCO's JSON, an array of objects or JSON lines with an image and a caption each, or captions by file "
                    "name.")


def document_memory(path: Path) -> int:
    """The bytes of memory that the values of a JSON document may take."""
    return max(DOCUMENT_HELD, DOCUMENT_TIMES * path.stat().st_size)


def is_karpathy(document: Any) -> bool:
    """Whether a JSON value is in the schema of Karpathy's splits."""
    images = document.get("images") if isinstance(document, dict) else None
    return isinstance(images, list) and bool(images) and isinstance(images[0], dict) and "sentences" in images[0]


def _oriented(document: dict) -> list[dict] | None:
    """The rows of a table as `DataFrame.to_json` writes it: by columns (its default, or lists), by index, split; None: no
    such."""
    values = list(document.values())
    if set(document) >= {"columns", "data"} and isinstance(document["data"], list):
        return [dict(zip(document["columns"], row, strict=False)) for row in document["data"]]
    if not (values and knows(map(str, document))) and all(
            isinstance(value, dict) and knows(map(str, value)) for value in values):
        return values
    lengths = {len(value) for value in values if isinstance(value, (dict, list))}
    if len(values) > 1 and knows(document) and len(lengths) == 1:
        if all(isinstance(value, dict) for value in values):
            return [{name: column.get(key) for name, column in document.items()} for key in values[0]]
        if all(isinstance(value, list) for value in values) and len(values[0]) > 1 and isinstance(values[0][0], str):
            return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    return None


def _repeated_name(data: bytes) -> str | None:
    """The first name that one object of a JSON text has twice."""
    found: list[str] = []

    def watch(pairs):
        if not found and len(pairs) > len(names := dict(pairs)):
            found.append(next(name for name in names if sum(other == name for other, _ in pairs) > 1))

    json.loads(data, object_pairs_hook=watch)
    return found[0] if found else None


def _coco_rows(document: Mapping, where: str) -> Iterator[tuple[int, dict]]:
    """The rows of COCO's `captions_*.json`: one for each annotation."""
    try:
        names: dict = {}
        for image in document["images"]:
            if names.setdefault(image["id"], image["file_name"]) != image["file_name"]:
                raise UserError(f"{where} has two images of id {image['id']}, '{names[image['id']]}' and "
                                f"'{image['file_name']}': it was put together of several files; give these one by one.")
        bare = dict(names)
        for number, row in enumerate(document["annotations"], 1):
            caption = row["caption"]
            bare.pop(row["image_id"], None)
            yield number, {"image": names[row["image_id"]], "id": row.get("id"), "image_id": row["image_id"],
                           "caption": caption.strip() if isinstance(caption, str) else caption}
        for number, name in bare.items():  # images without captions are problems, and not left out in silence
            yield 0, {"image": name, "id": None, "image_id": number, "caption": []}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} has images and annotations but is not COCO's captions ({type(error).__name__}: {error}); "
                        "images need id and file_name, annotations image_id and caption.") from None


def _mapping(row, number: int, where: str) -> dict:
    if not isinstance(row, dict):
        raise UserError(f"entry {number} of {where} is no object but {quoted(str(row), 80)}; fix it.")
    return row
