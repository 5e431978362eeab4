"""What bytes become as pixels: upright, on white, in 8 bits; and what is said of bytes that are no image."""

import hashlib
import io
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from miniature import encoded, photo
from PIL import ExifTags, Image, UnidentifiedImageError, features

from mdw_jax.data import decoding
from mdw_jax.data.decoding import (
    FORMATS,
    Decoder,
    Encoded,
    checksum,
    content_digests,
    reason,
    rgb,
    validate_images,
)
from mdw_jax.data.lazy_images import LazyImages

decode = partial(decoding.decode, fit="squash")  # whole images

# By EXIF orientation, how the stored pixels follow from the upright ones (0th row and column: EXIF 2.3, 4.6.4).
HELD = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1)}
# Those of Pillow's wheels.
WRITTEN = [kind for kind in FORMATS if kind not in ("WEBP", "AVIF") or features.check(kind.lower())]


def _saved(image, kind="PNG", **settings):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))).save(
        buffer, kind, **settings)
    return buffer.getvalue()


def _png(width, height, depth, color, rows, transparent=b""):
    """A PNG written by hand, with pixels that Pillow itself does not write."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"tRNS", transparent) if transparent else b"")
            + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b""))


def _orientation(number):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = number
    return exif


@pytest.mark.parametrize("number", HELD)
@pytest.mark.parametrize("kind, settings", [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}),
                                            ("TIFF", {"compression": "tiff_lzw"})])
def test_photos_are_turned_upright(kind, settings, number):
    if kind not in WRITTEN:
        pytest.skip(f"Pillow without {kind}")
    upright = photo(0, 24, 40)
    data = _saved(HELD[number](upright), kind, exif=_orientation(number), **settings)
    np.testing.assert_array_equal(decode(data, 16), decode(_saved(upright), 16))


@pytest.mark.parametrize("number", HELD)
def test_photos_that_are_decoded_at_reduced_scale_are_turned_upright(number):
    upright = photo(0, 480, 640)
    data = _saved(HELD[number](upright), "JPEG", quality=95, exif=_orientation(number))
    assert np.abs(decode(data, 32).astype(int) - decode(_saved(upright), 32)).max() <= 8


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
                                  _orientation(9).tobytes(), _orientation(6).tobytes()[:-9]])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own
def test_damaged_exif_does_no_harm(exif):
    whole = photo(1, 24, 24)
    np.testing.assert_array_equal(decode(_saved(whole, "JPEG", exif=exif), 24), decode(_saved(whole, "JPEG"), 24))


RGBA = np.array([[[0, 0, 0, 255], [0, 0, 0, 0]], [[0, 0, 0, 128], [200, 100, 0, 255]]], np.uint8)
ON_WHITE = [[[0, 0, 0], [255] * 3], [[127] * 3, [200, 100, 0]]]


def _palette(kind, **settings):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    image.putpalette([0, 0, 0, 90, 60, 30, 200, 100, 0])
    return _saved(image, kind, **settings)


@pytest.mark.parametrize("data, pixels", [
    (lambda: _saved(RGBA), ON_WHITE),
    (lambda: _saved(RGBA, "WEBP", lossless=True, exact=True), ON_WHITE),
    (lambda: _saved(RGBA, "TIFF"), ON_WHITE),
    (lambda: _saved(Image.fromarray(np.ascontiguousarray(RGBA[..., 2:])), "PNG"),
     [[[0] * 3, [255] * 3], [[127] * 3, [0] * 3]]),
    (lambda: _palette("PNG", transparency=bytes([255, 0, 128])), [[[0] * 3, [255] * 3], [[227, 177, 127], [255] * 3]]),
    (lambda: _palette("PNG", transparency=1), [[[0] * 3, [255] * 3], [[200, 100, 0], [255] * 3]]),
    (lambda: _palette("GIF", transparency=1), [[[0] * 3, [255] * 3], [[200, 100, 0], [255] * 3]]),
    (lambda: _png(2, 2, 8, 0, [bytes([7, 9]), bytes([9, 8])], struct.pack(">H", 9)),
     [[[7] * 3, [255] * 3], [[255] * 3, [8] * 3]]),
    (lambda: _png(2, 2, 8, 2, [bytes([1, 2, 3, 9, 9, 9]), bytes(6)], struct.pack(">3H", 1, 2, 3)),
     [[[255] * 3, [9] * 3], [[0] * 3] * 2]),
    (lambda: _png(2, 2, 1, 0, [b"\x40", b"\x80"], struct.pack(">H", 0)), [[[255] * 3] * 2] * 2),
    (lambda: _png(2, 2, 16, 0, [struct.pack(">2H", 4660, 257), bytes(4)], struct.pack(">H", 4660)),
     [[[255] * 3, [1] * 3], [[0] * 3] * 2]),
    (lambda: _png(2, 2, 16, 2, [struct.pack(">6H", 4660, 22136, 9, 512, 0, 0), bytes(12)],
                  struct.pack(">3H", 4660, 22136, 9)), [[[255] * 3, [2, 0, 0]], [[0] * 3] * 2]),
])
def test_transparent_images_lie_on_white(data, pixels):
    np.testing.assert_array_equal(decode(data(), 2), pixels)


def test_a_transparent_edge_is_white_before_it_is_resized():
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[16:48, 16:48, 3] = 255  # a black square; the transparent pixels around it are stored as black too
    whole = np.full((64, 64, 3), 255, np.uint8)
    whole[16:48, 16:48] = 0
    np.testing.assert_array_equal(decode(_saved(layer), 24), decode(_saved(whole), 24))


GRAY = np.array([[0, 1, 128], [254, 255, 77]], np.uint16)


@pytest.mark.parametrize("data", [
    lambda: _saved(GRAY * 257),
    lambda: _saved(GRAY * 257, "TIFF"),
    lambda: _saved(Image.frombytes("I;16B", (3, 2), (GRAY * 257).astype(">u2").tobytes()), "TIFF"),
    lambda: _saved((GRAY * 257).astype(np.int32), "TIFF"),
    lambda: b"P5 3 2 65535\n" + (GRAY * 257).astype(">u2").tobytes(),
    lambda: b"P2\n3 2\n65535\n" + " ".join(map(str, (GRAY * 257).ravel())).encode(),
], ids=["PNG", "TIFF", "TIFF, big-endian", "TIFF of 32 bits", "PGM", "PGM in text"])
def test_gray_of_16_bits_is_scaled_to_8(data):
    with Image.open(io.BytesIO(data())) as file:
        assert file.mode.startswith("I")
    want = Image.fromarray(GRAY.astype(np.uint8)).convert("RGB").resize((2, 2), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(decode(data(), 2), want)


@pytest.mark.parametrize("pixels, message", [
    (np.array([[0.0, 0.5]], np.float32), "floating-point numbers .mode F.; convert it to 8 bits"),
    (np.array([[0, 65536]], np.int32), "from 0 to 65536, beyond 16 bits; convert it to 8 bits"),
    (np.array([[-1, 9]], np.int32), "from -1 to 9, beyond 16 bits"),
])
def test_pixels_that_are_no_colors_are_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        decode(_saved(pixels, "TIFF"), 2)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_the_first_frame_of_an_animation_counts(kind):
    if kind == "WEBP" and kind not in WRITTEN:
        pytest.skip("Pillow without WEBP")
    colors = [Image.new("RGB", (8, 8), color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    data = _saved(colors[0], kind, save_all=True, append_images=colors[1:])
    with Image.open(io.BytesIO(data)) as file:
        assert file.n_frames == 3
    assert np.abs(decode(data, 8).astype(int) - [200, 0, 0]).max() <= 6


def test_cmyk_is_converted_as_pillow_does():
    image = Image.fromarray(photo(2)).convert("CMYK")
    data = _saved(image, "TIFF")
    want = image.convert("RGB").resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(decode(data, 8), want)
    jpeg = _saved(image, "JPEG", quality=95)
    assert np.abs(decode(jpeg, 8).astype(int) - decode(data, 8)).max() <= 8


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_format_is_read(kind):
    whole = photo(3, 32, 32)
    assert np.abs(decode(_saved(whole, kind), 32).astype(int) - whole).max() <= 40


NO_IMAGES = {
    b"": "it is empty",
    bytes(500): "all its bytes are zero",
    b"<html><body>Not found</body></html>": "begins with '<html><body>Not found</b'",
    b"\xef\xbb\xbf\r\n <!DOCTYPE html>\n<html>": "begins with '<!DOCTYPE html>'",
    "désolé, l'image n'est pas là".encode(): "begins with 'désolé, l'image n'est pa'",
    b'{"error": "gone"}': 'begins with \'{"error": "gone"}\'',
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00": "begins with 'version https://git-lfs.'",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>": "it is an SVG file, which is not read",
    b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>": "it is an SVG file, which is not read",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "it is an EPS file, which is not read",
    b"%PDF-1.7\n\xb5\xb5": "it is a PDF file, which is not read",
    b"8BPS\0\1" + bytes(20): "it is a Photoshop file, which is not read",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1": "it is a HEIC file, which is not read",
    b"\0\0\0\x20ftypisom\0\0\2\0": "it is a video, which is not read",
    b"RIFF\x24\0\0\0WAVEfmt ": "it is a sound file, which is not read",
    b"PK\x03\x04\x14\0\0\0": "it is a zip file, which is not read",
    b"\x1f\x8b\x08\0\0\0\0\0": "it is a gzip file, which is not read",
    b"\0\0\1\0\1\0\x10\x10": "it is an icon .ICO., which is not read",
    b"\xff\xd8": "it begins as a JPEG does, and is damaged",
    b"\x89PNG\r\n\x1a\n\0\0": "it begins as a PNG does, and is damaged",
    b"\xd3\x01\x99\xfe\x07": "it is of no kind that is read .JPEG, PNG",
}


@pytest.mark.parametrize("data", NO_IMAGES, ids=list(NO_IMAGES.values()))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_image_is_called_by_its_name(data):
    with pytest.raises(UnidentifiedImageError, match=NO_IMAGES[data]) as error:
        decode(data, 8)
    assert re.fullmatch(r"UnidentifiedImageError: [^\n\\]*", reason(error.value))


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "SGI", "DDS"])
def test_formats_beyond_the_list_are_not_tried(kind):
    with pytest.raises(UnidentifiedImageError):
        decode(_saved(photo(0, 32, 32), kind), 8)


def test_reasons_hold_no_addresses_and_no_bytes():
    assert reason(ValueError(f"no {io.BytesIO()!r} here\nnor there")) == "ValueError: no BytesIO here"
    assert reason(SyntaxError("chunk b'\\x00\\xfe\\'z' of b'IDAT'")) == "SyntaxError: chunk some bytes of IDAT"
    assert reason(KeyError("b")) == "KeyError: 'b'" and reason(EOFError()) == "EOFError"
    assert reason(ValueError("columns 'b', 'c'")) == "ValueError: columns 'b', 'c'"


def test_damaged_images_raise_what_can_be_read():
    generator, failed = np.random.default_rng(0), 0
    whole = [_saved(photo(i, 24, 32), kind) for i, kind in enumerate(WRITTEN)]
    for trial in range(300):
        data = bytearray(whole[trial % len(whole)])
        for place in generator.integers(len(data), size=6) // (1, 1, 1, 9, 9, 9):
            data[place] ^= int(generator.integers(1, 256))
        data = data[:int(generator.integers(len(data) // 4, 2 * len(data)))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert decode(bytes(data), 16).shape == (16, 16, 3)
            except Exception as error:
                failed += 1
                assert re.fullmatch(r"\w+Error: (?:(?!0x[0-9a-f]{6}|\\x).)+", reason(error)), error
    assert failed > 100


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def _stored(blobs):
    return [Encoded(str(i), partial(bytes, blob)) for i, blob in enumerate(blobs)]


def test_contents_are_the_same_for_copies_alone(pool):
    lossless = [("PNG", {}), ("BMP", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PNG", {"exif": _orientation(1)})]
    copies = [_saved(photo(0, 48, 64), kind, **settings) for kind, settings in lossless]
    photos = [_saved(photo(i, 480, 640), "JPEG") for i in range(1, 5)]
    named = _saved(photo(1, 480, 640), "JPEG", comment=b"a copy", exif=_orientation(1))
    broken = [b"", photos[0][:700]]
    contents = content_digests(_stored([*copies, *photos, named, *broken]), pool)
    assert len(set(contents[:4])) == 1 and len(set(contents[3:8])) == 5
    assert contents[8] == contents[4] and contents[9:] == [None, None]
    assert all(re.fullmatch("[0-9a-f]{16}", content) for content in contents[:9])


def test_validation_finds_contents_and_they_are_not_looked_for_again(pool):
    blobs = [encoded(i, "PNG") for i in range(4)]
    images, failures = validate_images(_stored(blobs), True, pool, rgb(8))
    assert failures == [None] * 4 and [image.sum for image in images] == list(map(checksum, blobs))
    assert [image.content for image in images] == content_digests(_stored(blobs), pool, rgb(8))
    unread = [image._replace(read=None) for image in images]
    assert content_digests(unread, pool, rgb(8)) == [image.content for image in images]
    assert validate_images(unread, False, pool) == (unread, [None] * 4)
    assert [image.content for image in validate_images(_stored(blobs), False, pool)[0]] == [None] * 4
    assert LazyImages(images, 8).fingerprint == LazyImages(_stored(blobs), 8).fingerprint


def test_contents_are_of_what_the_decoder_checks(pool):
    def check(data):
        if not data:
            raise ValueError("no samples")
        return np.frombuffer(data, np.uint8)[::2]

    decoder = Decoder((1, 1, 1), check, check, "audio files")
    images, failures = validate_images(_stored([b"a1b2", b"a3b4", b"c1b2", b""]), True, pool, decoder)
    contents = [image.content for image in images]
    assert contents[0] == contents[1] == hashlib.sha256(b"ab").hexdigest()[:16] and contents[2] not in (None, contents[0])
    assert contents[3] is None and failures == [None, None, None, "ValueError: no samples"]
