"""From the bytes of an image file to pixels: the one place where pictures are decoded.

What bytes become is a `Decoder`: pictures (`rgb`) here, log-mels of sounds in `audio.py`.
"""

import io
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from mdw_jax.errors import UserError

Reader = Callable[[], bytes]

DRAFT = 2
"""A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that leaves at least this many times the pixels a side asked."""
LARGEST = 2**28
"""Bytes of an encoded image or sound that are read; more is a bomb, or no such thing."""
_CHECK_SIZE = 16  # pixels a side, when only whether an image can be decoded is asked


class Encoded(NamedTuple):
    """An image as it is stored.

    key: what names it in its data set: errors say it, hold-outs draw by it.
    read: returns its bytes; may be called by several threads at once.
    sum: (length, CRC-32) of the bytes, or None where that is not known without reading them.
    """

    key: str
    read: Reader
    sum: tuple[int, int] | None = None


class Decoder(NamedTuple):
    """What stored bytes become.

    shape: (H, W, C) of one image. decode: bytes -> uint8 pixels of that shape. check: bytes -> anything, raises what
    `decode` raises; for when only that is asked. unit: what they are called. settings: what else than the first side
    pixels depend on, for the fingerprint of images that are not decoded.
    """

    shape: tuple[int, ...]
    decode: Callable[[bytes], np.ndarray]
    check: Callable[[bytes], object]
    unit: str = "images"
    settings: str = ""


def rgb(size: int) -> Decoder:
    """Pictures of (size, size, 3): `decode`."""
    return Decoder((size, size, 3), partial(decode, size=size), partial(decode, size=_CHECK_SIZE))


def check_length(length: int) -> None:
    """Raises ValueError for more bytes than an image or sound has: to be asked before reading them."""
    if length > LARGEST:
        raise ValueError(f"{length} bytes, of which an image or sound has at most {LARGEST}")


def checksum(data: bytes) -> tuple[int, int]:
    """(length, CRC-32): what zip files store of their members. It tells damage and change, not malice."""
    return len(data), zlib.crc32(data)


def threads() -> int:
    """How many threads decode: one a core that we may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)


def decode(data: bytes, size: int) -> np.ndarray:
    """(size, size, 3) uint8 of an image file, squashed to the square by bicubic interpolation, without cropping.

    An image of this size already is left as it is. A JPEG of at least `2 * DRAFT * size` a side is decoded at reduced
    scale, which costs little of its quality and saves most of its time.
    Raises what Pillow raises for files it cannot read, ValueError for more than 8 bits a channel where Pillow keeps them
    (grey ones), and its DecompressionBombError for more pixels than
    `Image.MAX_IMAGE_PIXELS` (Pillow itself only warns up to twice as many).
    """
    with Image.open(io.BytesIO(data)) as file:
        if Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{file.width} x {file.height} pixels")
        if file.mode == "F" or file.mode.startswith("I"):  # Pillow would cut them off at 255
            raise ValueError(f"its pixels are of mode {file.mode}; convert it to 8 bits a channel")
        file.draft(None, (DRAFT * size, DRAFT * size))
        image = file.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def decode_into(out: np.ndarray, images: Sequence[Encoded], pool: ThreadPoolExecutor, form: Decoder) -> list[str | None]:
    """Fill `out` (B, *form.shape) with B images; for each None, or why it could not be done.

    Pillow decodes and resizes without the interpreter lock, so threads are enough.
    """
    fill = partial(_fill, decode=form.decode)
    return list(pool.map(fill, images, out)) if len(images) > 1 else list(map(fill, images, out))


def _fill(image: Encoded, out: np.ndarray, decode: Callable[[bytes], np.ndarray]) -> str | None:
    try:
        data = image.read()
        if image.sum is not None and image.sum != checksum(data):
            return "its bytes have changed since the data set was loaded"
        out[...] = decode(data)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow and zipfile raise a dozen kinds, bombs another
        return reason(error)
    return None


def validate_images(images: Sequence[Encoded], check: bool, pool: ThreadPoolExecutor,
           form: Decoder = rgb(_CHECK_SIZE)) -> tuple[list[Encoded], list[str | None]]:
    """The images with their sums, and for each None or why it cannot be used.

    check: also decode each image once (a JPEG at reduced scale), so that a training run does not meet a broken one
      hours later. Without it, images whose sum is known are not even read.
    """
    examined = list(pool.map(partial(_examine, check=form.check if check else None), images))
    return [image for image, _ in examined], [failure for _, failure in examined]


def _examine(image: Encoded, check: Callable[[bytes], object] | None) -> tuple[Encoded, str | None]:
    if image.sum is not None and not check:
        return image, None
    try:
        data = image.read()
        if check:
            check(data)
    except MemoryError:
        raise
    except Exception as error:
        return image, reason(error)
    return image._replace(sum=checksum(data)), None


def reason(error: BaseException) -> str:
    """One line that says what went wrong."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def raise_decode_errors(images: Sequence[Encoded], failures: Sequence[str | None], remedy: str = "replace them",
             unit: str = "images") -> None:
    """Raises a UserError that counts the failures and names the first, if there are any."""
    bad = [(image.key, failure) for image, failure in zip(images, failures) if failure]
    if bad:
        raise UserError(f"{len(bad)} of {len(images)} {unit} cannot be decoded, the first is '{bad[0][0]}' "
                        f"({bad[0][1]}); {remedy}.")
