"""Reading JSON that may be damaged, writing files so that no reader ever sees half of one, and hashing."""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mdw_jax.io.packed_strings import PackedStrings
from mdw_jax.runtime.processes import is_main

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{12}\.mdw-part", re.DOTALL)  # the names that `replacing` makes
MAX_JSON_BYTES, MAX_JSON_DEPTH, MAX_JSON_MEMORY = 1 << 28, 64, 1 << 30  # what this package writes stays far below
_JSON_COSTS = {"{": 240, "[": 64, ":": 100, ",": 60}  # bytes of memory, at most, that a value takes beside its characters
_JSON_DEAREST = 50  # times its length, which no JSON text takes
_JSON_NAMES: dict[type, str] = {dict: "an object", list: "an array", str: "a string"}


def write_atomically(path, data: bytes) -> Path:
    """Write `data` to `path` through a temporary name, fsync and rename. With several processes, only process 0 writes.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    if not is_main():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # the system does not name the file when a disk is full
        raise
    _sync_directory(path.parent)
    return path


@contextlib.contextmanager
def replacing(path, mode: str = "wb", **options) -> Iterator[IO]:
    """A file under a temporary name beside `path`, which takes its place when the block ends without an error.

    Args:
        path: a file, or none yet; its directory exists. Permissions follow the umask.
        mode, **options: as `open` takes them.

    Raises:
        OSError: it cannot be made, or not be put into its place; what was at `path` is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.mdw-part")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), mode, **options) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(directory: Path) -> None:
    """Remove what killed processes left of `replacing` in a directory and below it; links are not followed."""
    for place, _, names in os.walk(directory):
        for name in filter(_UNFINISHED.fullmatch, names):
            Path(place, name).unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut, on file systems that can."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path, kind: type | tuple[type, ...] = dict, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file that may be damaged or of another program.

    Args:
        path: the file.
        kind: the type its outermost value must have.
        max_bytes: a larger file is refused before it is parsed.

    Returns:
        The value, of type `kind`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, nested too deeply, no JSON, or of another type; the message is a short reason.
    """
    return parse_json(read_at_most(path, max_bytes), kind)


def parse_json(data: bytes | str, kind: type | tuple[type, ...] = dict, memory: int = MAX_JSON_MEMORY) -> Any:
    """The value of type `kind` that a JSON text holds.

    Args:
        data: the text.
        kind: as in `read_json`.
        memory: bytes that its values may take; a text of many tiny ones, which take fifty times their characters, is
            refused before it is parsed.

    Raises:
        ValueError: as `read_json` does.
    """
    if len(data) * _JSON_DEAREST > memory and (taken := _json_memory(data)) > memory:
        raise ValueError(f"its values would take some {taken:,} bytes of memory, and may take {memory:,}")
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_JSON_DEPTH} levels deep") from None
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise ValueError(f"the outermost value is not {' or '.join(_JSON_NAMES.get(k, k.__name__) for k in kinds)}")
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [child for parent in level if isinstance(parent, (dict, list))
                 for child in (parent.values() if isinstance(parent, dict) else parent)]
        if not level:
            return value
    raise ValueError(f"nested more than {MAX_JSON_DEPTH} levels deep")


def _json_memory(data: bytes | str) -> int:
    """About how many bytes of memory the values of a JSON text take, not less than they do."""
    count = data.count if isinstance(data, str) else lambda sign: data.count(sign.encode())
    return len(data) + sum(cost * count(sign) for sign, cost in _JSON_COSTS.items())


def parse_json_lines(data: bytes) -> list[dict]:
    """The values of a text with one JSON object per line. Raises ValueError as `read_json` does."""
    return [parse_json(line) for line in data.splitlines()]


def read_at_most(path, max_bytes: int) -> bytes:
    """The bytes of a file. Raises OSError if it cannot be read, ValueError if it is larger."""
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes:,} bytes")
    return data


def write_json(path, value) -> Path:
    """Write `value` as indented JSON, atomically."""
    return write_atomically(path, json_bytes(value))


def json_bytes(value) -> bytes:
    """Indented JSON with sorted names."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def npy_bytes(array) -> bytes:
    """An array as the bytes of a .npy file, never pickled."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def write_array(path, array) -> Path:
    """Write one array as a .npy file, atomically."""
    return write_atomically(path, npy_bytes(array))


def write_arrays(path, **arrays) -> Path:
    """Write named arrays as a compressed .npz file, atomically; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return write_atomically(path, buffer.getvalue())


def csv_bytes(columns: Sequence[str], rows: Sequence[Mapping]) -> bytes:
    """A CSV with a header; a column that a row lacks is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_csv(path, columns: Sequence[str], rows: Sequence[Mapping]) -> Path:
    """Write `csv_bytes` atomically."""
    return write_atomically(path, csv_bytes(columns, rows))


def parse_csv(data: bytes) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a CSV with a header, and its rows; cells that a short row lacks are "".

    Raises:
        ValueError: it is no CSV in UTF-8, or a row is longer than the header.
    """
    try:
        reader = csv.DictReader(io.StringIO(data.decode(), newline=""), restval="", strict=True)
        rows, columns = list(reader), list(reader.fieldnames or [])
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if any(None in row for row in rows):  # cells beyond the header's
        raise ValueError("some rows are longer than its header")
    return columns, rows


def digest(*parts) -> str:
    """sha256 (hex) of arrays (dtype, shape and bytes), strings, or anything JSON can hold, in order.

    `PackedStrings` count as the list of their strings; neither they nor arrays are copied.
    """
    sha = hashlib.sha256()
    for part in parts:
        add_to_digest(sha, part)
    return sha.hexdigest()


def add_to_digest(sha, part) -> None:
    """One more part of a `digest`, for parts that come one by one. `sha`: a `hashlib.sha256()`."""
    if isinstance(part, np.ndarray):
        sha.update(f"{part.dtype.str}{part.shape}".encode())
        if part.size:
            sha.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
    elif _holds_packed(part):
        sha.update(f"{sum(map(len, _json_pieces(part)))}:".encode())
        for piece in _json_pieces(part):
            sha.update(piece)
    else:
        text = part if isinstance(part, str) else json.dumps(part, sort_keys=True)
        data = text.encode(errors="surrogatepass")  # names of files may hold half a pair of surrogates
        sha.update(f"{len(data)}:".encode())
        sha.update(data)


def _holds_packed(part) -> bool:
    return isinstance(part, PackedStrings) or (isinstance(part, (list, tuple)) and any(map(_holds_packed, part)))


def _json_pieces(part) -> Iterator[bytes]:
    """The JSON of a value that may be or hold `PackedStrings`, as `json.dumps` writes it of lists, in pieces."""
    if isinstance(part, PackedStrings):
        yield b"["
        for first in range(0, len(part), 4096):
            yield (", " * bool(first) + json.dumps(part[first:first + 4096].tolist())[1:-1]).encode()
        yield b"]"
    elif _holds_packed(part):
        yield b"["
        for n, member in enumerate(part):
            yield b", " * bool(n)
            yield from _json_pieces(member)
        yield b"]"
    else:
        yield json.dumps(part, sort_keys=True).encode()
