"""Images that show the same: by their pixels, or nearly so by perceptual hashes of the package imagehash."""

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mdw_jax.data.decoding import Encoded, decode
from mdw_jax.errors import UserError

BITS = 64
"""Of a perceptual hash."""
_MOST_EDGES = 2**23  # pairs that are held at once
_MOST_TABLES = 500  # sorts of all hashes


def groups(contents: np.ndarray) -> np.ndarray:
    """The number of each image's group, those with the same content; groups are numbered as they first occur.

    Args:
        contents: (N,) uint64, a digest for each image (`EncodedColumns.contents`); 0: it is a group of its own.
    Returns:
        (N,) int64.
    """
    _, first, group_of = np.unique(contents, return_index=True, return_inverse=True)
    first_of = np.where(contents == 0, np.arange(len(contents)), first[group_of])
    return np.unique(first_of, return_inverse=True)[1]


def perceptual_hashes(images: Sequence[Encoded], pool: ThreadPoolExecutor, size: int = 64) -> list[int | None]:
    """The pHash of each image: 64 bits, of which copies that are compressed or resized again change a few.

    Each bit tells whether one of the 8 x 8 lowest frequencies of the gray image is above their median. Two photos differ
    in about 32 bits. Pictures with almost nothing in them have almost the same hash.

    Args:
        images: B images; each is decoded once.
        pool: the threads that do it.
        size: pixels a side that they are decoded at, at least 32.
    Returns:
        B numbers below 2^64; None for images that cannot be decoded.
    Raises:
        UserError: the package imagehash is missing.
    """
    try:
        import imagehash  # an optional dependency
    except ImportError as error:
        raise UserError("finding near-duplicates needs imagehash: pip install 'mdw-jax[dedup]'.") from error
    return list(pool.map(partial(_hash, phash=imagehash.phash, size=size), images))


def _hash(image: Encoded, phash, size: int) -> int | None:
    try:
        pixels = decode(image.read(), size, "squash")
    except MemoryError:
        raise
    except Exception:  # broken images are reported where they are used
        return None
    bits = phash(Image.fromarray(pixels), hash_size=math.isqrt(BITS)).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_duplicate_groups(hashes: Sequence[int | None], distance: int) -> list[int]:
    """The number of each image's group: images whose hashes differ in at most `distance` bits share one, and so do all
    that a chain of such pairs connects.

    Exact, by the pigeonhole principle: of `distance + k` bands of the bits at least k are equal in such a pair, so only
    images that agree in k bands are compared, for each choice of k; k is what costs least. N hashes that are spread
    evenly over all values are sorted comb(distance + k, k) times, and N^2 / 2^(64 k / (distance + k) + 1) pairs of them
    compared each time: for 1,000,000 hashes 2 s at a distance of 4, 20 s at 8 on one core, growing steeply beyond. The
    memory is some 100 bytes an image and at most 200 MB for pairs.

    Among the 8,000 images of Flickr8k one pair is within 0 to 7 bits, two within 8, 27 within 10 and 195 images within
    12, where chance begins to connect different photos.

    Args:
        hashes: B numbers below 2^64 (`perceptual_hashes`); None: a group of its own.
        distance: bits, 0 to 63.
    Raises:
        UserError: `distance` is out of range.
    """
    if not 0 <= distance < BITS:
        raise UserError(f"the distance of near-duplicates is {distance} bits; give 0 to {BITS - 1}.")
    known = [row for row, value in enumerate(hashes) if value is not None]
    values, place = np.unique(np.array([hashes[row] for row in known], np.uint64), return_inverse=True)
    of_known = _connected(values, distance)[place].tolist() if known else []
    group_of: list[object] = [(row,) for row in range(len(hashes))]
    for row, group in zip(known, of_known, strict=True):
        group_of[row] = group
    numbers: dict[object, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in group_of]


def _connected(values: np.ndarray, distance: int) -> np.ndarray:
    """For N different hashes the number of the group of each (N,)."""
    labels, starts, ends, held = np.arange(len(values)), [], [], 0
    for mask in _masks(len(values), distance) if distance else ():
        for start, end in _pairs(values, mask, distance):
            starts.append(start)
            ends.append(end)
            held += len(start)
            if held > _MOST_EDGES:
                labels, starts, ends, held = _merged(labels, starts, ends), [], [], 0
    return _merged(labels, starts, ends)


def _masks(count: int, distance: int) -> list[np.uint64]:
    """Sets of bits such that any two of `count` hashes within `distance` agree in one of the sets, and the cheapest."""
    def cost(k: int) -> float:
        tables, bits = math.comb(distance + k, k), BITS * k / (distance + k)
        return tables * (count * math.log2(count + 2) + count * count / 2 ** (bits + 1))

    choices = [k for k in range(1, BITS - distance + 1) if k == 1 or math.comb(distance + k, k) <= _MOST_TABLES]
    k = min(choices, key=cost)
    bounds = np.linspace(0, BITS, distance + k + 1).astype(int).tolist()
    bands = [(1 << end) - (1 << start) for start, end in itertools.pairwise(bounds)]
    return [np.uint64(sum(chosen)) for chosen in itertools.combinations(bands, k)]


def _pairs(values: np.ndarray, mask: np.uint64, distance: int):
    """Pairs of (M,) rows of hashes within `distance` that agree in the bits of `mask`, in parts."""
    keys = values & mask
    order = np.argsort(keys)
    keys, ordered = keys[order], values[order]
    first, step = np.arange(len(values) - 1), 1
    while len(first):  # rows of `order` whose neighbor `step` further on has the same key
        first = first[keys[first] == keys[first + step]]
        near = first[np.bitwise_count(ordered[first] ^ ordered[first + step]) <= distance]
        if len(near):
            yield order[near], order[near + step]
        step += 1
        first = first[:np.searchsorted(first, len(values) - step)]


def _merged(labels: np.ndarray, starts: list[np.ndarray], ends: list[np.ndarray]) -> np.ndarray:
    """The groups `labels` (N,) after those at both ends of each pair became one."""
    if not starts:
        return labels
    start, end = labels[np.concatenate(starts)], labels[np.concatenate(ends)]
    graph = coo_array((np.ones(len(start), bool), (start, end)), shape=(len(labels), len(labels)))
    return connected_components(graph, directed=False)[1][labels]
