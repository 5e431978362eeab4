"""`LazyImages`: images that are decoded when they are indexed, for data sets that do not fit into memory."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from mdw_jax.data import decoding
from mdw_jax.data.decoding import Decoder, Encoded, decode_into, raise_decode_errors, rgb
from mdw_jax.data.encoded_columns import EncodedColumns
from mdw_jax.io.files import add_to_digest


class LazyImages:
    """N encoded images that index like an (N, size, size, 3) uint8 array: `images[rows]` decodes those rows.

    Rows are an int, a slice, or an array of ints (negative ones count from the end) or of N bools; the result is a
    numpy array. `np.asarray(images)` decodes all of them. Indexing raises UserError if images cannot be decoded or
    their bytes do not match `Encoded.sum`.

    Args:
        images: N of them.
        size: pixels a side.
        threads: how many decode; None: one for each core. The result does not depend on it.
        decoder: what decodes them; None: `rgb(size)`.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, images: Sequence[Encoded], size: int, threads: int | None = None,
                 decoder: Decoder | None = None):
        self._images, self._decoder = EncodedColumns.of(images), decoder or rgb(size)
        self._pool = ThreadPoolExecutor(threads or decoding.threads())  # starts no thread before it has work
        self.shape = (len(images), *self._decoder.shape)

    @property
    def encoded(self) -> Sequence[Encoded]:
        """The images as they are stored."""
        return self._images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows) -> np.ndarray:
        if isinstance(rows, (int, np.integer)):
            return self[np.array([rows])][0]
        rows = self._numbers(rows)
        if rows.ndim != 1:
            return self[rows.ravel()].reshape(*rows.shape, *self.shape[1:])
        # An image with several captions is asked for several times, and decoded at the first of its places.
        each, first, which = np.unique(rows, return_index=True, return_inverse=True)
        images = [self._images[row] for row in each]
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        places = [pixels[place] for place in first]
        raise_decode_errors(images, decode_into(places, images, self._pool, self._decoder), unit=self._decoder.unit)
        source = first[which]
        again = np.flatnonzero(source != np.arange(len(rows)))
        pixels[again] = pixels[source[again]]
        return pixels

    def _numbers(self, rows) -> np.ndarray:
        """Rows as numbers from 0 on; slices, signs and masks mean what they mean to numpy."""
        if not isinstance(rows, np.ndarray) or rows.dtype == bool or not rows.size:
            return np.arange(len(self))[rows]
        if rows.min() < -len(self) or rows.max() >= len(self):
            raise IndexError(f"rows from {rows.min()} to {rows.max()} of {len(self)} images")
        return np.where(rows < 0, rows + len(self), rows)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over size, and each image's key, length and CRC-32 of its encoded bytes, in order.

        It needs no decoding, and so differs from the fingerprint of the same pixels in memory. Zip files and indexed
        shards know these sums; other files are read once for it.
        """
        images, failures = self._images.validated(False, self._pool, self._decoder)
        raise_decode_errors(images, [failures.get(row) for row in range(len(images))] if failures else [],
                            unit=self._decoder.unit)
        sha = hashlib.sha256()
        for part in ("lazy images", self.shape[1], *([self._decoder.settings] if self._decoder.settings else [])):
            add_to_digest(sha, part)
        for length, checksum, key in zip(images.lengths, images.checksums, images.keys, strict=True):
            add_to_digest(sha, f"({length}, {checksum}) {key}")
        return sha.hexdigest()
