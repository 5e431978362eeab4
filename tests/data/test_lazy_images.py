"""Lazy images are checked against the array of the same images, and against damage that happens later."""

import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from miniature import encoded, photo
from PIL import Image

from mdw_jax.data.decoding import Encoded, checksum, decode, validate_images
from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.pairs import Split
from mdw_jax.errors import UserError


def _stored(blobs, known=False):
    return [Encoded(f"{i}.png", partial(bytes, blob), checksum(blob) if known else None)
            for i, blob in enumerate(blobs)]


@pytest.fixture
def blobs():
    return [encoded(i, "PNG" if i % 2 else "JPEG") for i in range(7)]


@pytest.mark.parametrize("rows", [3, -1, np.int64(2), slice(None), slice(1, 6, 2), slice(5, 99), [0], [],
                                  [6, 0, 0, 3, -2], np.array([4, 4, 1], np.int32), np.arange(7) > 4, jnp.array([2, 5]),
                                  np.array([[4, 0], [4, 1], [-1, 6]])])
def test_indexing_is_numpys(blobs, rows):
    lazy, eager = LazyImages(_stored(blobs), 8, threads=3), np.stack([decode(blob, 8) for blob in blobs])
    rows = np.array(rows, int) if isinstance(rows, list) else rows
    want = eager[np.asarray(rows) if hasattr(rows, "devices") else rows]
    assert lazy[rows].dtype == np.uint8 and lazy[rows].shape == want.shape
    np.testing.assert_array_equal(lazy[rows], want)
    assert (lazy.shape, lazy.ndim, lazy.dtype, len(lazy)) == (eager.shape, 4, eager.dtype, 7)
    np.testing.assert_array_equal(jnp.asarray(np.asarray(lazy)), eager)


@pytest.mark.parametrize("rows", [7, -8, np.array([0, 7]), np.array([[0], [7]]), (0, 1)])
def test_rows_that_are_not_there(blobs, rows):
    with pytest.raises(IndexError):
        LazyImages(_stored(blobs), 8)[rows]


def test_the_fingerprint_is_of_bytes_names_order_and_size(blobs):
    want = LazyImages(_stored(blobs), 8).fingerprint
    assert {LazyImages(_stored(blobs, known), 8, threads=n).fingerprint
            for known in (True, False) for n in (1, 2, 5)} == {want}
    changed = blobs[:3] + [blobs[3][:-1] + b"!"] + blobs[4:]
    renamed = [image._replace(key=image.key + "x") for image in _stored(blobs)]
    others = [LazyImages(_stored(changed), 8), LazyImages(renamed, 8), LazyImages(_stored(blobs), 9),
              LazyImages(_stored(blobs[::-1]), 8), LazyImages(_stored(blobs)[::-1], 8),
              LazyImages(_stored(blobs[1:]), 8)]
    assert len({want, *(other.fingerprint for other in others)}) == 7


def test_a_split_takes_either(blobs):
    lazy = LazyImages(_stored(blobs), 8)
    numbers = np.arange(7)
    splits = [Split(images, tuple("abcdefg"), numbers, numbers) for images in (lazy, np.asarray(lazy))]
    assert splits[0].fingerprint != splits[1].fingerprint
    other = Split(lazy, tuple("abcdefx"), numbers, numbers)
    assert other.fingerprint != splits[0].fingerprint == Split(lazy, tuple("abcdefg"), numbers, numbers).fingerprint


def test_broken_and_changed_images_are_named(blobs):
    images = _stored(blobs, known=True)
    images[2] = images[2]._replace(read=lambda: b"no image", sum=None)
    images[5] = images[5]._replace(read=partial(bytes, encoded(9)))
    lazy = LazyImages(images, 8)
    assert lazy[np.array([0, 1, 3])].shape == (3, 8, 8, 3)
    with pytest.raises(UserError, match=r"2 of 7 images cannot be decoded, the first is '2.png' \(UnidentifiedImage"):
        lazy[:]
    with pytest.raises(UserError, match=r"'5.png' \(its bytes have changed since"):
        lazy[5]


def test_unreadable_files_have_no_fingerprint(tmp_path):
    with pytest.raises(UserError, match=r"1 of 1 images .* 'gone' \(FileNotFoundError"):
        LazyImages([Encoded("gone", (tmp_path / "gone").read_bytes)], 8).fingerprint  # noqa: B018


def test_a_survey_finds_what_is_broken_and_reads_only_what_it_must(blobs):
    blobs[1], blobs[4] = blobs[1][:200], blobs[4][:len(blobs[4]) // 2]
    with ThreadPoolExecutor(2) as pool:
        images, failures = validate_images(_stored(blobs), True, pool)
        assert [row for row, failure in enumerate(failures) if failure] == [1, 4]
        assert images[0].sum == (len(blobs[0]), zlib.crc32(blobs[0]))
        unread = [image._replace(read=None) for image in _stored(blobs, known=True)]
        assert validate_images(unread, False, pool) == (unread, [None] * 7)


def test_large_jpegs_are_drafted_and_still_look_the_same():
    data = encoded(0, height=480, width=640)
    with Image.open(io.BytesIO(data)) as file:
        whole = np.asarray(file.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC), int)
    with Image.open(io.BytesIO(data)) as file:
        file.draft(None, (64, 64))
        assert file.size == (160, 120)  # 1/4: 1/8 would leave fewer than 64 rows
    assert 0 < np.abs(decode(data, 32, "squash") - whole).max() <= 3
    np.testing.assert_array_equal(decode(encoded(1, "PNG", 32, 32), 32), photo(1, 32, 32))


def test_bombs_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 - 1)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(Image.DecompressionBombError, match="32 x 24"):
        decode(encoded(0), 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32)
    assert decode(encoded(0), 8).shape == (8, 8, 3)
