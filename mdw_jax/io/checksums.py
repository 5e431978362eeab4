"""`SHA256SUMS`: the sha256 of the files of a folder that are written once and read again, in the format of `sha256sum`.

`sha256sum -c SHA256SUMS` checks the folder. The last line, a comment to that program, is the sha256 of the lines above.
So a bit that flips in a listed file is found when it is read, and so is one in the list: one flipped bit cannot make a
line that fits another content, and a name cannot vanish from the list without the last line telling so.

The list is written before a file is replaced, with the old and the new line, and again after it, with the new one alone.
A process that dies at any moment leaves a file that one of its lines fits. Two processes that list files of one folder
hold a lock (the stages do); without one a line may get lost, and its file then counts as one that is not listed.

A file that is not listed was written by an earlier version, or brought by somebody else: it is read unchecked. What no
result is read from (figures, pages, text for people) is not listed, and files that hold their own sha256
(`io/checkpoint.py`, `io/keyed.py`, noise draws) need not be, nor metrics.csv, which is appended to (`io/metrics.py`).
"""

import contextlib
import functools
import hashlib
import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mdw_jax.errors import UserError
from mdw_jax.io.files import MAX_JSON_BYTES, json_bytes, parse_json, read_at_most, write_atomically
from mdw_jax.runtime.processes import is_main

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_LAST = "# sha256 of the lines above: "
_MAX_BYTES = 1 << 24  # of a list
_TRIES, _PAUSE = 4, 0.05  # a file and its list are two files: a reader may meet the new one of only one of them
_LOG = logging.getLogger(__name__)
_noted: set[Path] = set()  # a folder of which this process has said that it has no list; of one, not of all


class DamagedError(ValueError):
    """A file that is not as it was written; the message is a short reason, with what to do about the list."""


class _Sums(NamedTuple):
    """A list as it was read: its lines (sha256, name), and whether its last line fits them."""

    lines: frozenset[tuple[str, str]]
    intact: bool


def write_listed(path, data: bytes) -> Path:
    """Write a file atomically and list its sha256 beside it. With several processes, only process 0 writes.

    Raises:
        OSError: it cannot be written.
        UserError: the list is damaged.
    """
    path = Path(path)
    write_all_listed(path.parent, {path.name: data})
    return path


def write_all_listed(folder, contents: Mapping[str, bytes]) -> None:
    """Write several files {name: content} of one folder: `write_listed`, with the list written twice in all."""
    if not is_main():
        return
    folder = Path(folder)
    new = {(hashlib.sha256(data).hexdigest(), name) for name, data in contents.items()}
    kept = _lines_of_files(folder)
    _write_sums(folder, kept | new)
    for name, data in contents.items():
        write_atomically(folder / name, data)
    _write_sums(folder, {line for line in kept if line[1] not in contents} | new)


@contextlib.contextmanager
def listed_when_written(path) -> Iterator[None]:
    """Let the block write a file that is too large to be held in memory, and list it then; meanwhile it is not listed.

    Raises:
        UserError: the list is damaged.
    """
    path = Path(path)
    others = lambda: {line for line in _lines_of_files(path.parent) if line[1] != path.name}
    if (path.parent / SUMS).exists():
        _write_sums(path.parent, others())
    yield
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    _write_sums(path.parent, others() | {(sha256, path.name)})


def write_listed_json(path, value) -> Path:
    """Write `value` as indented JSON, as `io.files.write_json`, and list it."""
    return write_listed(path, json_bytes(value))


def remove_listed(folder, names: Collection[str]) -> None:
    """Remove files of a folder that exist, and their lines. After a kill in between, any later write removes these."""
    folder = Path(folder)
    present = [folder / name for name in names if (folder / name).exists()]
    for path in present:
        path.unlink(missing_ok=True)
    if present and (folder / SUMS).exists():
        _write_sums(folder, _lines_of_files(folder))


def rename_listed(path, name: str) -> Path:
    """Give a file another name in its folder; its line, if it has one, goes with it."""
    path = Path(path)
    new = path.with_name(name)
    if (path.parent / SUMS).exists():
        lines = _lines_of_files(path.parent)
        _write_sums(path.parent, lines | {(sha256, name) for sha256, listed in lines if listed == path.name})
    path.rename(new)
    if (path.parent / SUMS).exists():
        _write_sums(path.parent, _lines_of_files(path.parent))
    return new


def read_verified(path, max_bytes: int | None = None, note: bool = False) -> bytes:
    """Read a file, and check it against the list beside it.

    Args:
        path: the file.
        max_bytes: a larger file is refused.
        note: whether to log that a folder has no list, so that damage in it would not be noticed.

    Raises:
        OSError: the file cannot be read.
        DamagedError: it is not as it was written, or the list is damaged where it should tell.
        ValueError: it is too large.
    """
    path, fault = Path(path), None
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        data = path.read_bytes() if max_bytes is None else read_at_most(path, max_bytes)
        fault = _fault(path, hashlib.sha256(data).hexdigest(), note)
        if fault is None:
            return data
    raise DamagedError(fault)


def read_verified_json(path, kind: type | tuple[type, ...] = dict, note: bool = False) -> Any:
    """`io.files.read_json` of a file that is checked against the list beside it. Raises as `read_verified`."""
    return parse_json(read_verified(path, MAX_JSON_BYTES, note), kind)


def _fault(path: Path, sha256: str, note: bool) -> str | None:
    """Why a file of this content is not as it was written; None where it is, or nobody knows."""
    sums = _read_sums(path.parent)
    if sums is None:
        if note and not _noted:
            _noted.add(path.parent)
            _LOG.info("'%s' has no %s: an earlier version wrote it, and damage to files of such folders is not noticed.",
                      path.parent, SUMS)
        return None
    if (sha256, path.name) in sums.lines:
        return None
    if not sums.intact:
        return (f"the list '{path.parent / SUMS}' is damaged, and does not tell whether this file is; delete the list to "
                "use the file unchecked")
    if any(name == path.name for _, name in sums.lines):
        return f"it is not as it was written: {SUMS} beside it lists another sha256"
    return None


def _read_sums(folder: Path) -> _Sums | None:
    """The list of a folder; None if it has none. One that cannot be read is a damaged one without lines."""
    path = folder / SUMS
    try:
        if not path.exists():
            return None
        data = read_at_most(path, _MAX_BYTES) if path.is_file() else b""
    except (OSError, ValueError):
        return _Sums(frozenset(), False)
    return _parsed(data)


@functools.lru_cache(maxsize=2)  # a sweep reads hundreds of cells by one list, after each cell
def _parsed(data: bytes) -> _Sums:
    head, mark, last = data.rpartition(_LAST.encode())
    intact = bool(mark) and last == f"{hashlib.sha256(head).hexdigest()}\n".encode()
    found = (_LINE.fullmatch(line) for line in data.decode(errors="replace").split("\n"))
    return _Sums(frozenset((match[1], match[2]) for match in found if match), intact)


def _lines_of_files(folder: Path) -> set[tuple[str, str]]:
    """The lines of files that exist. Of a file with several, as a kill leaves it, the one that fits.

    Raises:
        UserError: the list is damaged.
    """
    sums = _read_sums(folder)
    if sums is None:
        return set()
    if not sums.intact:
        raise UserError(f"'{folder / SUMS}' is damaged; delete it, and the files that it lists are used unchecked until "
                        "they are written again.")
    by_name: dict[str, set[str]] = {}
    for sha256, name in sums.lines:
        by_name.setdefault(name, set()).add(sha256)
    kept = set()
    for name, digests in by_name.items():
        if (folder / name).exists():
            if len(digests) > 1:
                digests = digests & {hashlib.sha256((folder / name).read_bytes()).hexdigest()} or digests
            kept |= {(sha256, name) for sha256 in digests}
    return kept


def _write_sums(folder: Path, lines: Collection[tuple[str, str]]) -> None:
    head = "".join(f"{sha256}  {name}\n" for sha256, name in sorted(lines, key=lambda line: line[::-1])).encode()
    data = head + f"{_LAST}{hashlib.sha256(head).hexdigest()}\n".encode()
    path = folder / SUMS
    if not path.is_file() or path.read_bytes() != data:
        write_atomically(path, data)
