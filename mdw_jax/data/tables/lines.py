"""Lines of text files, gzipped or not, with their numbers; and the first bytes of a file, which tell its form."""

import codecs
import io
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from mdw_jax.data.tables.budget import unzipped
from mdw_jax.errors import UserError

GZIP = b"\x1f\x8b"
LONGEST_LINE = 2**24
"""Bytes; more is no table."""
LARGEST_DOCUMENT = 2**31
"""Bytes of a JSON document that is read as a whole: COCO's largest have 90 MB."""
_SAMPLE = 2**16


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, unzipped where it is gzipped, whatever it is called.

    Reading them raises UserError where a gzipped file unpacks to more than text does (`budget.unzipped`).
    """
    return unzipped(path) if is_gzipped(path) else open(path, "rb")


def is_gzipped(path: Path) -> bool:
    """Whether a file is gzipped, by its first bytes."""
    with open(path, "rb") as file:
        return file.read(2) == GZIP


def document(path: Path, where: str) -> bytes:
    """All bytes of a file that can only be read as a whole, unzipped.

    Raises:
        UserError: it is larger than `LARGEST_DOCUMENT`, or unpacks to too much.
    """
    with open_bytes(path) as file:
        data = file.read(LARGEST_DOCUMENT + 1)
    if len(data) > LARGEST_DOCUMENT:
        raise UserError(f"{where} is one JSON document of more than {LARGEST_DOCUMENT:,} bytes; write one object per line.")
    return data


def head(path: Path) -> bytes:
    """The first bytes of a file, unzipped."""
    with open_bytes(path) as file:
        return file.read(_SAMPLE)


def check_encoding(encoding: str) -> None:
    """Raises UserError for a `data.encoding` that does not exist."""
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:
        raise UserError(f"there is no encoding '{encoding}'; set data.encoding to one such as utf-8 or latin-1.") from None


def lines_of(path: Path, encoding: str = "", where: str = "") -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of a text file.

    Args:
        path: the file.
        encoding: "": UTF-8, or UTF-16 where the file begins with its mark.
        where: what to call the file in messages.

    Raises:
        UserError: a line is not in this encoding, or longer than a line of a table can be; or there is no such encoding.
    """
    where = where or f"'{path}'"
    check_encoding(encoding)
    with open_bytes(path) as file:
        start = file.read(4)
        file.seek(0)
        if not encoding and start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            encoding = "utf-16"
        wide = encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))
        if wide or _ends_in_returns(file):
            yield from _wide_lines(file, encoding or "utf-8-sig", where)
            return
        encoding = encoding or "utf-8"
        for number in itertools.count(1):
            raw = file.readline(LONGEST_LINE + 1)
            if not raw:
                return
            if len(raw) > LONGEST_LINE:
                raise _too_long(number, where)
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                raw = raw[len(codecs.BOM_UTF8):]
            try:
                yield number, raw.decode(encoding)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"line {number} of {where} is not in {encoding.upper()} (byte 0x{raw[error.start]:02x} at its place "
                    f"{error.start + 1}); if it is in another encoding, name it: data.encoding=latin-1, cp1252, gbk, ..."
                ) from None


def _ends_in_returns(file: IO[bytes]) -> bool:
    """Whether lines end as they did on old Macs, where Excel still can: by carriage returns alone."""
    sample = file.read(_SAMPLE)
    file.seek(0)
    return b"\r" in sample and b"\n" not in sample


def _wide_lines(file: IO[bytes], encoding: str, where: str) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        text = io.TextIOWrapper(file, encoding, newline="")
        for number, line in enumerate(iter(partial(text.readline, LONGEST_LINE + 1), ""), 1):
            if len(line) > LONGEST_LINE:
                raise _too_long(number, where)
            yield number, line
    except UnicodeError as error:
        raise UserError(f"{where} is not in {encoding.upper()} after line {number} ({error}); set data.encoding to what it "
                        "is in.") from None


def _too_long(number: int, where: str) -> UserError:
    return UserError(f"line {number} of {where} is longer than {LONGEST_LINE:,} bytes, and no row of captions is; write "
                     "its captions in lines of their own.")
