"""`LazyImages`: a data set's pictures, decoded when asked for, for data sets that do not fit into memory."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from mdw_jax.data import decoding
from mdw_jax.data.decoding import Decoder, Encoded, decode_into, raise_decode_errors, rgb, validate_images
from mdw_jax.io.files import digest


class LazyImages:
    """N encoded images that index like an (N, size, size, 3) uint8 array: `images[rows]` decodes those rows.

    form: what they become instead of pictures of `size`.
    rows: an int, a slice, or an array of ints (negative ones count from the end) or of N bools; the result is a numpy
    array. `threads` threads decode (None: one a core); the result does not depend on how many.
    `np.asarray(images)` decodes all of them.
    Raises UserError if images asked for cannot be decoded or are not the bytes that `Encoded.sum` says.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, images: Sequence[Encoded], size: int, threads: int | None = None, form: Decoder | None = None):
        self._images, self._form = images, form or rgb(size)
        self._pool = ThreadPoolExecutor(threads or decoding.threads())  # starts no thread before it has work
        self.shape = (len(images), *self._form.shape)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows) -> np.ndarray:
        if isinstance(rows, (int, np.integer)):
            return self[np.array([rows])][0]
        rows = np.arange(len(self))[rows]  # numpy's own reading of slices, signs and masks, and its IndexErrors
        if rows.ndim != 1:
            return self[rows.ravel()].reshape(*rows.shape, *self.shape[1:])
        rows, place = np.unique(rows, return_inverse=True)  # captions of one image ask for it several times
        images = [self._images[row] for row in rows]
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        raise_decode_errors(images, decode_into(pixels, images, self._pool, self._form), unit=self._form.unit)
        return pixels if np.array_equal(place, np.arange(len(rows))) else pixels[place]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over size, and each image's key, length and CRC-32 of its encoded bytes, in order.

        Not the fingerprint of the same pixels in memory: it is had without decoding. Zip files and indexed shards
        know these sums; other files are read once for it.
        """
        images, failures = validate_images(self._images, False, self._pool, self._form)
        raise_decode_errors(images, failures, unit=self._form.unit)
        settings = [self._form.settings] if self._form.settings else []
        return digest("lazy images", self.shape[1], *settings, *(f"{image.sum} {image.key}" for image in images))
