"""Photographs in miniature, for the tests of the readers."""

import io

import numpy as np
from PIL import Image


def photo(i, height=24, width=32):
    """Smooth, unlike noise, so that JPEG and resizing change it little: (height, width, 3) uint8."""
    coarse = np.random.default_rng(i).integers(0, 256, (3, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(i, kind="JPEG", height=24, width=32):
    buffer = io.BytesIO()
    Image.fromarray(photo(i, height, width)).save(buffer, kind)
    return buffer.getvalue()


def write_images(folder, count, kind="JPEG"):
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i}.{kind.lower()}" for i in range(count)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(encoded(i, kind))
    return names


def same(lazy, eager):
    """Streamed and in memory, a data set is the same pixels, captions and pairing."""
    for name in ("train", "val", "test"):
        a, b = getattr(lazy, name), getattr(eager, name)
        np.testing.assert_array_equal(np.asarray(a.images), b.images)
        assert isinstance(b.images, np.ndarray) and not isinstance(a.images, np.ndarray)
        assert a.captions == b.captions and a.attributes.keys() == b.attributes.keys()
        np.testing.assert_array_equal(a.image_of, b.image_of)
        np.testing.assert_array_equal(a.caption_ids, b.caption_ids)
        for column in a.attributes:
            np.testing.assert_array_equal(a.attributes[column], b.attributes[column])
    assert lazy.skipped == eager.skipped
