"""The captions nearest to images, from which recovery draws (docs/method.md, 2.4): exactly, by an index, or in a sample.

`SEARCHES` has each way as one function; `experts.recovery_search` names it.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mdw_jax.data.stored_rows import SelectedRows, SideBySide, select_rows, stays_on_host
from mdw_jax.method.caption_index import FEWEST, compared_by_index, indexed_captions, require_faiss
from mdw_jax.models.image.conv import on_cpu
from mdw_jax.runtime.mesh import DATA, mesh_for, shard, to_host

EXACT_UP_TO = 10**11
"""Similarities of an exact search by "auto": Flickr30K has 4e9 and COCO 6e10, each a matter of seconds on a GPU. Three
million pairs have 8e12."""
SAMPLE = 100_000
"""Captions of a random sample. Time is then linear in the images."""
_READ = 8192  # images for which the captions are read once
# Images and captions compared at a time on a device. On a CPU their similarities are 16 MB: memory that is allocated by
# more than 32 MB goes back to the system each time, which then clears every page of it, for as long as the product takes.
_ON_ACCELERATORS, _ON_CPU = (500, 65_536), (250, 16_384)
_GROUP = 64  # captions whose largest similarity is looked at first
_RESIDENT = 2**32  # bytes of captions that may stay on the device, instead of being read again and again


def search_of(name: str, images: int, captions: int) -> str:
    """The way to search that `experts.recovery_search` stands for, for so many images and captions: "auto" is exact up
    to `EXACT_UP_TO` similarities, and a sample beyond."""
    if name != "auto":
        return name
    return "exact" if images * captions <= EXACT_UP_TO else "sample"


def captions_compared(way: str, captions: int) -> int:
    """Captions that each image is compared with in a search of `SEARCHES`; by an index, about."""
    if way == "ann" and captions >= FEWEST:
        return compared_by_index(captions)
    return min(captions, SAMPLE) if way == "sample" else captions


def require_search(name: str, images: int, captions: int) -> None:
    """Raises UserError where a search needs a package that is missing: before training, not after its first epochs."""
    if search_of(name, images, captions) == "ann" and captions >= FEWEST:
        require_faiss()


def search_note(name: str, images: int, captions: int) -> str:
    """A sentence for the log where the search is not exact; empty where it is."""
    way = search_of(name, images, captions)
    chosen = " (experts.recovery_search is auto, and an exact search would take too long)" if name == "auto" else ""
    if way == "sample" and captions > SAMPLE:
        return (f"recovery draws from the nearest of {SAMPLE:,} random captions of {captions:,}, another sample each "
                f"epoch{chosen}.")
    indexed = way == "ann" and captions >= FEWEST
    return f"recovery finds the nearest of {captions:,} captions by an approximate index." if indexed else ""


def top_captions(images, texts, k: int) -> np.ndarray:
    """The k captions nearest to each image, best first; of equally near ones the first.

    Blocks of similarities are made on the devices. In each, the largest similarity of every group of captions is found
    first: the k best captions are in the k groups of the largest, so that only those are sorted. On two CPU cores that
    takes 1/8 of the time of `jax.lax.top_k` or `jax.lax.approx_max_k` (which sorts too), and 1/14 of `np.argpartition`,
    which a second thread does not speed up.

    Args:
        images: (N, D) embeddings, all of one length.
        texts: (K, D) embeddings, likewise.
        k: at most K.

    Returns:
        (N, k) int32 rows of captions.
    """
    found = np.empty((len(images), k), np.int32)
    blocks = _resident_blocks(texts) or (lambda: _blocks(texts))
    for start in range(0, len(images), _READ):
        read = _unscaled(images, slice(start, min(start + _READ, len(images))))
        step = _block_sizes()[0] * len(jax.devices())
        queries = [_placed(read[i:i + step], PartitionSpec(DATA)) for i in range(0, len(read), step)]
        best: list = [None] * len(queries)
        for first, count, block in blocks():
            best = [_best_in_block(known, rows, block, first, count, k)
                    for known, rows in zip(best, queries, strict=True)]
        rows = np.concatenate([to_host(caption)[:step] for _, caption in best])
        found[start:start + len(read)] = rows[:len(read)]
    return found


def sampled_captions(images, texts, k: int, generator: np.random.Generator) -> np.ndarray:
    """(N, k) rows of the captions nearest to each image among `SAMPLE` random ones; arguments as `top_captions`."""
    if len(texts) <= SAMPLE:
        return top_captions(images, texts, k)
    rows = np.sort(generator.choice(len(texts), max(SAMPLE, k), replace=False)).astype(np.int32)
    return rows[top_captions(images, SelectedRows(texts, rows), k)]


def _captions_by_index(images, texts, k: int, generator: np.random.Generator) -> np.ndarray:
    """`indexed_captions`; exactly where an index saves nothing, and for images whose cells hold fewer than k captions."""
    if len(texts) < FEWEST:
        return top_captions(images, texts, k)
    found = indexed_captions(images, texts, k, generator)
    few = np.flatnonzero((found < 0).any(1))
    if len(few):
        found[few] = top_captions(select_rows(images, few), texts, k)
    return found


# From images (N, D), texts (K, D), k and a generator to (N, k) rows of captions.
SEARCHES: dict[str, Callable] = {
    "exact": lambda images, texts, k, generator: top_captions(images, texts, k),
    "ann": _captions_by_index,
    "sample": sampled_captions,
}


def _unscaled(rows, part) -> np.ndarray | jax.Array:
    """Rows of embeddings up to a factor, which changes no order: in half precision where they are stored so."""
    return rows.unscaled(part) if isinstance(rows, SideBySide | SelectedRows) else rows[part]


def _blocks(texts) -> Iterator[tuple[int, int, jax.Array]]:
    """The first row of each block of captions, how many it has, and the block on all devices, filled up to groups."""
    size = _block_sizes()[1]
    for start in range(0, len(texts), size):
        block = _unscaled(texts, slice(start, min(start + size, len(texts))))
        yield start, len(block), _filled(_placed(block, PartitionSpec()))


def _block_sizes() -> tuple[int, int]:
    """Images and captions that are compared at a time."""
    return _ON_CPU if on_cpu() else _ON_ACCELERATORS


@jax.jit
def _filled(block):
    """A block of captions, (n, D), with rows of zeros up to a multiple of `_GROUP`."""
    return jnp.pad(block, ((0, -len(block) % _GROUP), (0, 0)))


def _resident_blocks(texts) -> Callable | None:
    """`_blocks` kept on the devices, where these are small enough."""
    if (2 if stays_on_host(texts) else 0) * len(texts) * texts.shape[1] > _RESIDENT:
        return None
    blocks = list(_blocks(texts))
    return lambda: iter(blocks)


def _placed(rows, spec: PartitionSpec) -> jax.Array:
    devices = len(jax.devices())
    if devices == 1:
        return jnp.asarray(rows)
    rows = np.asarray(rows)
    if spec:  # every device needs as many rows
        rows = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % devices, 0)])
    return shard(mesh_for(1), spec, rows)


@functools.partial(jax.jit, static_argnums=5)
def _best_in_block(known, rows, block, first, count, k: int):
    """(values, captions) (b, k) of the best so far and those of a block of captions, the first of which is `first`, and
    which has `count` of them: the rest is there to fill up a group."""
    similarity = jax.lax.optimization_barrier(rows.astype(jnp.float32) @ block.astype(jnp.float32).T)
    similarity = jnp.where(jnp.arange(similarity.shape[1]) < count, similarity, -jnp.inf)
    values, captions = _top(similarity, min(k, similarity.shape[1]))
    captions = captions.astype(jnp.int32) + first
    if known is None:
        return values, captions
    values, captions = (jnp.concatenate(both, 1) for both in zip(known, (values, captions), strict=True))
    values, place = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(captions, place, 1)


def _top(values, k: int):
    """`jax.lax.top_k` of (b, n), by groups, where n is a multiple of `_GROUP`."""
    rows, count = values.shape
    if count // _GROUP <= k:
        return jax.lax.top_k(values, k)
    grouped = values.reshape(rows, -1, _GROUP)
    best = jnp.sort(jax.lax.top_k(grouped.max(-1), k)[1], axis=1)  # in order: of equal values the first caption wins
    top, place = jax.lax.top_k(jnp.take_along_axis(grouped, best[:, :, None], 1).reshape(rows, k * _GROUP), k)
    return top, jnp.take_along_axis(best, place // _GROUP, 1) * _GROUP + place % _GROUP
