"""From the bytes of an image file to pixels: the one place where images are decoded.

What bytes become is a `Decoder`: RGB images (`rgb`) here, log-mels of audio in `readers/audio.py`.
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
"""A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that leaves at least this many times the pixels asked for."""
LARGEST = 2**28
"""Bytes of an encoded image or audio file that are read; more is a bomb, or no such file."""
_CHECK_SIZE = 16  # pixels a side, when only whether an image can be decoded is asked


class Encoded(NamedTuple):
    """An image (or audio file) as it is stored.

    Attributes:
        key: what names it in its data set: errors cite it, hold-outs draw by it.
        read: returns its bytes; may be called by several threads at once.
        sum: (length, CRC-32) of the bytes, or None where that is not known without reading them.
    """

    key: str
    read: Reader
    sum: tuple[int, int] | None = None


class Decoder(NamedTuple):
    """How stored bytes become the images that a model sees.

    Attributes:
        shape: (H, W, C) of one image.
        decode: bytes -> uint8 pixels of that shape.
        check: bytes -> anything; raises what `decode` raises, in less time.
        unit: what the files are called in messages.
        settings: what the pixels depend on beside the first side, for the fingerprint of images that are not decoded.
    """

    shape: tuple[int, ...]
    decode: Callable[[bytes], np.ndarray]
    check: Callable[[bytes], object]
    unit: str = "images"
    settings: str = ""


def rgb(size: int) -> Decoder:
    """The decoder of image files as (size, size, 3): see `decode`."""
    return Decoder((size, size, 3), partial(decode, size=size), partial(decode, size=_CHECK_SIZE))


def check_length(length: int) -> None:
    """Raises ValueError for more bytes than an image or audio file may have; called before they are read."""
    if length > LARGEST:
        raise ValueError(f"it has {length} bytes, and an image or audio file may have {LARGEST}")


def checksum(data: bytes) -> tuple[int, int]:
    """(length, CRC-32), as zip files store them of their members. They detect damage and change, not malice."""
    return len(data), zlib.crc32(data)


def threads() -> int:
    """How many threads decode: one for each core that this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)


def decode(data: bytes, size: int) -> np.ndarray:
    """Decode an image file and resize it to a square by bicubic interpolation, without cropping.

    An image that has this size already is left as it is. A JPEG of at least `2 * DRAFT * size` a side is decoded at
    reduced scale, which costs little of its quality and saves most of its time.

    Args:
        data: the bytes of the file.
        size: pixels a side.
    Returns:
        (size, size, 3) uint8.
    Raises:
        ValueError: more than 8 bits a channel where Pillow keeps them (gray images).
        Image.DecompressionBombError: more pixels than `Image.MAX_IMAGE_PIXELS` (Pillow itself only warns up to twice
            as many).
        Exception: what Pillow raises for files that it cannot read.
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


def decode_into(out: np.ndarray, images: Sequence[Encoded], pool: ThreadPoolExecutor,
                decoder: Decoder) -> list[str | None]:
    """Decode B images into `out` (B, *decoder.shape); for each None, or why it could not be decoded.

    Pillow decodes and resizes without the interpreter lock, so threads are enough.
    """
    fill = partial(_fill, decode=decoder.decode)
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
                    decoder: Decoder = rgb(_CHECK_SIZE)) -> tuple[list[Encoded], list[str | None]]:
    """Find the checksums of images, and those that cannot be used.

    Args:
        images: B images.
        check: also decode each image once (a JPEG at reduced scale), so that a training run does not meet a broken one
            hours later. Without it, images whose sum is known are not even read.
        pool: the threads that do it.
        decoder: what decodes them.
    Returns:
        The images with their sums; and for each None, or why it cannot be used.
    """
    examined = list(pool.map(partial(_examine, check=decoder.check if check else None), images))
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
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def raise_decode_errors(images: Sequence[Encoded], failures: Sequence[str | None], remedy: str = "replace them",
                        unit: str = "images") -> None:
    """Raises a UserError that counts the failures and names the first, if there are any."""
    bad = [(image.key, failure) for image, failure in zip(images, failures) if failure]
    if bad:
        raise UserError(f"{len(bad)} of {len(images)} {unit} cannot be decoded, the first is '{bad[0][0]}' "
                        f"({bad[0][1]}); {remedy}.")
