"""From the bytes of an image file to pixels: the one place where images are decoded.

What bytes become is a `Decoder`: RGB images (`rgb`) here, log-mels of audio in `readers/audio.py`.
"""

import hashlib
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mdw_jax.errors import UserError

Reader = Callable[[], bytes]

DRAFT = 2
"""A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that leaves at least this many times the pixels asked for."""
LARGEST = 2**28
"""Bytes of an encoded image or audio file that are read; more is a bomb, or no such file."""
DIGEST = 16
"""Hex digits of a content digest."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()))
"""What is read, by Pillow's names. Others, such as EPS, would hand what strangers wrote to further programs."""
_BLOCK = 4096  # rows
_CHECK_SIZE = 32  # pixels a side, when an image is only checked; enough to tell any two photos apart
_UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90}  # by EXIF orientation, as in `PIL.ImageOps.exif_transpose`
# The first bytes of files that come under the names of images, and what such a file is.
_KINDS = (
    (rb"%!PS|\xc5\xd0\xd3\xc6", "an EPS file"), (rb"%PDF", "a PDF file"), (rb"8BPS", "a Photoshop file"),
    (rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*(?:<!DOCTYPE svg[^>]*>\s*)?<svg", "an SVG file"),
    (rb"....ftyp(?:hei|hev|mif1|msf1)", "a HEIC file"), (rb"....ftypavi[fs]", "an AVIF file"), (rb"....ftyp", "a video"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL file"), (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (rb"\0\0[\x01\x02]\0[^\0]", "an icon (ICO)"), (rb"RIFF....WAVE|ID3|fLaC|OggS", "a sound file"),
    (rb"RIFF....AVI |\x1aE\xdf\xa3", "a video"), (rb"DDS ", "a DDS file"), (rb"PK\x03\x04", "a zip file"),
    (rb"\x1f\x8b", "a gzip file"), (rb"\x93NUMPY", "a numpy array"), (rb"\x89HDF", "an HDF5 file"))
_DAMAGED = ((rb"\xff\xd8", "a JPEG"), (rb"\x89PNG", "a PNG"), (rb"RIFF....WEBP", "a WEBP"), (rb"GIF8", "a GIF"),
            (rb"BM....\0\0\0\0", "a BMP"), (rb"II[*+]\0|MM\0[*+]", "a TIFF"), (rb"P[1-7]\s+[\d#]", "a PPM"),
            *([(rb"....ftypavi[fs]", "an AVIF")] if "AVIF" in FORMATS else []))


class Encoded(NamedTuple):
    """An image (or audio file) as it is stored.

    Attributes:
        key: what names it in its data set: errors cite it, hold-outs draw by it.
        read: returns its bytes; may be called by several threads at once.
        sum: (length, CRC-32) of the bytes, or None where that is not known without reading them.
        content: a digest of what it shows, equal for copies in other files; None where it was not decoded
            (`content_digests`).
    """

    key: str
    read: Reader
    sum: tuple[int, int] | None = None
    content: str | None = None


class Decoder(NamedTuple):
    """How stored bytes become the images that a model sees.

    Attributes:
        shape: (H, W, C) of one image.
        decode: bytes -> uint8 pixels of that shape.
        check: bytes -> pixels of any shape, which tell contents apart; raises what `decode` raises, in less time.
        unit: what the files are called in messages.
        settings: what the pixels depend on beside the first side, for the fingerprint of images that are not decoded.
    """

    shape: tuple[int, ...]
    decode: Callable[[bytes], np.ndarray]
    check: Callable[[bytes], np.ndarray]
    unit: str = "images"
    settings: str = ""


def rgb(size: int, fit: str = "crop") -> Decoder:
    """The decoder of image files as (size, size, 3): see `decode`. Contents are told apart by whole images."""
    return Decoder((size, size, 3), partial(decode, size=size, fit=fit), partial(decode, size=_CHECK_SIZE, fit="squash"),
                   settings="" if fit == "squash" else fit)


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


def decode(data: bytes, size: int, fit: str = "crop") -> np.ndarray:
    """Decode an image file and resize it to a square by bicubic interpolation.

    An image that has this size already is left as it is. A JPEG of at least `2 * DRAFT * size` a side is decoded at
    reduced scale, which costs little of its quality and saves most of its time. Photos are turned upright (EXIF),
    transparent images lie on white, gray of 16 bits becomes gray of 8 bits (65535 is 255), and of an animation the first
    frame counts.

    Args:
        data: the bytes of the file.
        size: pixels a side.
        fit: how an image that is not square becomes one: `crop`, its central square, as published towers saw their
            images; `squash`, all of it, its sides scaled apart, as published distillation code does.
    Returns:
        (size, size, 3) uint8.
    Raises:
        ValueError: pixels that are no colors of 8 or 16 bits.
        Image.DecompressionBombError: more pixels than `Image.MAX_IMAGE_PIXELS` (Pillow itself only warns up to twice
            as many).
        UnidentifiedImageError: it is in none of `FORMATS`; says what it is instead.
        Exception: what Pillow raises for files that it cannot read.
    """
    with open_image(data) as file:
        if Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{file.width} x {file.height} pixels")
        file.draft(None, (DRAFT * size, DRAFT * size))
        image = _colors(file)
        if (turn := _turn(file)) is not None:
            image = image.transpose(turn)
        if image.size != (size, size):
            box = _central_square(*image.size) if fit == "crop" else None
            image = image.resize((size, size), Image.Resampling.BICUBIC, box)
        return np.asarray(image)


def _central_square(width: int, height: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest square in the middle of an image."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def open_image(data: bytes) -> Image.Image:
    """An image file opened by Pillow, its pixels not yet decoded.

    Raises:
        UnidentifiedImageError: it is in none of `FORMATS`; says what it is instead.
    """
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(_what_it_is(data)) from None


def _colors(file: Image.Image) -> Image.Image:
    """The pixels of an open image in RGB."""
    file.load()  # may change the mode
    if file.mode == "F":
        raise ValueError("its pixels are floating-point numbers (mode F); convert it to 8 bits a channel")
    if file.mode.startswith("I"):
        return Image.fromarray(_gray(file)).convert("RGB")
    if file.has_transparency_data:
        color = file.info.get("transparency")
        if isinstance(color, tuple) and max(color) > 255:  # of 16 bits, where Pillow keeps the upper 8 of the pixels
            file.info["transparency"] = tuple(value >> 8 for value in color)
        layer = file.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return file if file.mode == "RGB" else file.convert("RGB")


def _gray(file: Image.Image) -> np.ndarray:
    """The pixels of gray of 16 bits in 8, which Pillow would cut off at 255."""
    values = np.asarray(file)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ValueError(f"its pixels go from {low} to {high}, beyond 16 bits; convert it to 8 bits a channel")
    gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    clear = file.info.get("transparency")
    if isinstance(clear, int):
        gray[values == clear] = 255
    return gray


def _turn(file: Image.Image) -> Image.Transpose | None:
    """What turns a photo upright, of which the camera stored how it was held; None for most."""
    try:
        return _UPRIGHT.get(file.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # EXIF is damaged in a dozen ways; the pixels need not be
        return None


def _what_it_is(data: bytes) -> str:
    """Words for a file that Pillow does not take for an image."""
    if not data:
        return "it is empty"
    if not data.strip(b"\0"):
        return "all its bytes are zero"
    head = data[:1000]
    for pattern, kind in _DAMAGED:
        if re.match(pattern, head, re.DOTALL):
            return f"it begins as {kind} does, and is damaged"
    for pattern, kind in _KINDS:
        if re.match(pattern, head, re.DOTALL):
            return f"it is {kind}, which is not read; convert it to JPEG or PNG"
    text = head.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")[:200].strip()
    if len(text) > 1 and "\ufffd" not in text[:-1] and all(sign.isprintable() or sign.isspace() for sign in text):
        return f"it is text and begins with '{text.splitlines()[0][:24]}'"
    return f"it is of no kind that is read ({', '.join(FORMATS)})"


def decode_into(out: np.ndarray | Sequence[np.ndarray], images: Sequence[Encoded], pool: ThreadPoolExecutor,
                decoder: Decoder) -> list[str | None]:
    """Decode B images into `out` (B, *decoder.shape), or into B arrays; for each None, or why it could not be decoded.

    Pillow decodes and resizes without the interpreter lock, so threads are enough.
    """
    fill = partial(_fill, decode=decoder.decode)
    return list(_in_blocks(pool, fill, images, out)) if len(images) > 1 else list(map(fill, images, out))


def _in_blocks(pool: ThreadPoolExecutor, function: Callable, *rows) -> Iterator:
    """`pool.map`, which would make a future for each row before the first is done, some thousands of rows at a time."""
    for first in range(0, len(rows[0]), _BLOCK):
        yield from pool.map(function, *(part[first:first + _BLOCK] for part in rows))


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
    """Find the checksums of images, what they show, and those that cannot be used.

    Args:
        images: B images.
        check: also decode each image once (a JPEG at reduced scale), so that a training run does not meet a broken one
            hours later. Without it, images whose sum is known are not even read.
        pool: the threads that do it.
        decoder: what decodes them.
    Returns:
        The images with their sums, and with `check` their contents; and for each None, or why it cannot be used.
    """
    if not check and all(image.sum is not None for image in images):
        return list(images), [None] * len(images)
    found = list(examined(images, check, pool, decoder))
    return [image for image, _ in found], [failure for _, failure in found]


def examined(images: Sequence[Encoded], check: bool, pool: ThreadPoolExecutor,
             decoder: Decoder) -> Iterator[tuple[Encoded, str | None]]:
    """`validate_images`, one image after another: millions need not exist as objects at the same time."""
    return _in_blocks(pool, partial(_examine, check=decoder.check if check else None), images)


def digest_of(pixels: np.ndarray) -> str:
    """A digest of pixels, `Encoded.content` of those that `Decoder.check` gives."""
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()[:DIGEST]


def content_digests(images: Sequence[Encoded], pool: ThreadPoolExecutor, decoder: Decoder = rgb(_CHECK_SIZE)
                    ) -> list[str | None]:
    """For each image a digest of what it shows: its `content`, or else it is decoded once (`Decoder.check`).

    Equal for copies with the same pixels: under another name, with other metadata, in another lossless format. Copies
    that were compressed or resized again differ, as do the JPEG (decoded at reduced scale) and the PNG of one picture:
    see `duplicates.perceptual_hashes`.

    Returns:
        `DIGEST` hex digits each; None for images that cannot be decoded.
    """
    return list(_in_blocks(pool, lambda image: image.content or _examine(image, decoder.check)[0].content, images))


def _examine(image: Encoded, check: Callable[[bytes], np.ndarray] | None) -> tuple[Encoded, str | None]:
    if image.sum is not None and not check:
        return image, None
    content = image.content
    try:
        data = image.read()
        if check:
            content = digest_of(check(data))
    except MemoryError:
        raise
    except Exception as error:
        return image, reason(error)
    return image._replace(sum=checksum(data), content=content), None


def reason(error: BaseException) -> str:
    """An exception in one line, without addresses of objects and without bytes."""
    text = re.sub(r"<(?:\w+\.)*(\w+) object at 0x[0-9a-f]+>", r"\1", str(error))
    text = re.sub(r"""(?<![\w'"])b(['"])((?:(?!\1)[^\\]|\\.)*)\1""",
                  lambda match: "some bytes" if "\\x" in match[2] else match[2], text)
    return f"{type(error).__name__}: {text}".splitlines()[0].removesuffix(": ")[:300]


def raise_decode_errors(images: Sequence[Encoded], failures: Sequence[str | None], remedy: str = "replace them",
                        unit: str = "images") -> None:
    """Raises a UserError that counts the failures and names the first, if there are any."""
    bad = [(image.key, failure) for image, failure in zip(images, failures) if failure]
    if bad:
        raise UserError(f"{len(bad)} of {len(images)} {unit} cannot be decoded, the first is '{bad[0][0]}' "
                        f"({bad[0][1]}); {remedy}.")
