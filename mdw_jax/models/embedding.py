"""Embeddings of whole splits by one or several networks, and nearest neighbors among them."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.data.stored_rows import create_rows, finished_rows, stays_on_host
from mdw_jax.data.streaming import concat_map, map_batches
from mdw_jax.errors import UserError
from mdw_jax.models.chunks import in_chunks
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.image.conv import on_cpu
from mdw_jax.models.jit import jit_with_frozen
from mdw_jax.runtime.mesh import jitted, map_replicas, replicated, shard_rows


class Inputs(NamedTuple):
    """One split as a model sees it.

    Attributes:
        images: (N, ...) uint8 pixels, perhaps streamed (`LazyImages`), or float features, perhaps memory-mapped.
        texts: (K, d) features or (K, L) token ids, perhaps memory-mapped.
        image_of: (K,) row of each caption's image.
    """

    images: Any
    texts: Any
    image_of: Any


def to_float(images):
    """uint8 pixels as float32 in [0, 1]; float features as they are."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def ensemble_embeddings(embeddings_of_each: Sequence) -> jax.Array:
    """Embeddings of an ensemble: their dot products are the mean of those of its networks.

    Args:
        embeddings_of_each: (N, D) embeddings of the same rows by each of n networks.

    Returns:
        (N, n D).
    """
    return jnp.concatenate(embeddings_of_each, -1) / np.sqrt(len(embeddings_of_each))


def ensemble_of_all(networks: Sequence[tuple]) -> tuple[jax.Array, jax.Array]:
    """`ensemble_embeddings` of images and of captions, from the (images, captions) embeddings of each network."""
    images, texts = zip(*networks, strict=True)
    return ensemble_embeddings(images), ensemble_embeddings(texts)


def embeddings(model: DualEncoder, params, data: Inputs) -> tuple[jax.Array, jax.Array]:
    """Unit embeddings of all images (N, D) and of all captions (K, D) by one network."""
    return embeddings_of_all(model, [params], data)[0]


def embeddings_of_all(model: DualEncoder, networks: list, data: Inputs) -> list[tuple]:
    """Unit embeddings of all images (N, D) and of all captions (K, D) by each network.

    All networks are computed in one program where that is faster. Streamed images are decoded once for all networks.
    """
    in_one_program = len(jax.devices()) > 1 or (len(networks) > 1 and not on_cpu())

    def embed_rows(branch: str, rows) -> list:
        branches = [params[branch] for params in networks]
        embed = jitted(_embedder(model, branch))
        if stays_on_host(rows):
            branches = replicated(branches)
            batches = map_batches(lambda batch: [embed(params, batch) for params in branches], rows)
            return [jnp.concatenate(parts) for parts in zip(*batches, strict=True)]
        if in_one_program:
            return map_replicas(_split_embedder(model, branch), branches, rows)
        return [concat_map(lambda batch: embed(params, batch), rows) for params in branches]

    return list(zip(embed_rows("image", data.images), embed_rows("text", data.texts), strict=True))


def stored_embeddings(model: DualEncoder, networks: list, data: Inputs, folder: Path, name: str) -> list[tuple]:
    """`embeddings_of_all` in files: half-precision rows that stay on the host, written in one pass over the data.

    Args:
        model: the dual encoder.
        networks: parameters of each network.
        data: the split.
        folder: where the files lie; each process has its own.
        name: how the files' names begin. Older files of these names are replaced.

    Returns:
        (images (N, D), captions (K, D)) by each network, memory-mapped float16.

    Raises:
        UserError: the file system has no room for them.
    """
    size = 8192 if model.mode == "projection" else 500

    def embed_rows(branch: str, rows) -> list:
        branches = replicated([params[branch] for params in networks])
        embed = jitted(_embedder(model, branch))
        files = [create_rows(folder / f"{name}-{n}-{branch}.npy", (len(rows), model.dim)) for n in range(len(networks))]
        begin = 0
        for batch in map_batches(lambda batch: [embed(params, batch) for params in branches], rows, size):
            for file, part in zip(files, batch, strict=True):
                file[begin:begin + len(part)] = np.asarray(part)
            begin += len(batch[0])
        return list(map(finished_rows, files))

    return list(zip(embed_rows("image", data.images), embed_rows("text", data.texts), strict=True))


@functools.lru_cache(maxsize=64)
def _split_embedder(model: DualEncoder, branch: str, size: int = 500) -> Callable:
    """A function that embeds all rows of a split in one program, `size` at a time."""
    embed = _embedder(model, branch)

    def embed_split(params, rows):
        embed_batch = lambda x: embed(params, shard_rows(x))
        even = len(rows) // size * size
        batches = jax.lax.map(embed_batch, rows[:even].reshape(-1, size, *rows.shape[1:]))
        rest = [embed_batch(rows[even:])] if even < len(rows) else []
        return jnp.concatenate([batches.reshape(even, batches.shape[-1]), *rest])

    return embed_split


def similarities(model: DualEncoder, params, data: Inputs) -> jax.Array:
    """(N, K) cosine similarity of all images with all captions."""
    v, t = embeddings(model, params, data)
    return v @ t.T


@functools.lru_cache(maxsize=64)
def _embedder(model: DualEncoder, branch: str) -> Callable:
    """The function of parameters and inputs of one branch; one object per model, so that it is compiled once."""
    if branch == "text":
        return model.embed_text
    return lambda params, images: model.embed_image(params, to_float(images))


def nearest(rows, real, count: int = 1, chunk: int = 16384) -> np.ndarray:
    """The real rows of largest cosine with each row.

    Args:
        rows: (M, d).
        real: (K, d).
        count: neighbors of each row, at most K of them.
        chunk: real rows compared at a time; a data set's similarities to all rows do not fit into memory.

    Returns:
        (M, count) indices into `real`, nearest first.
    """
    rows, values, indices = np.asarray(rows, np.float32), None, None
    count = min(count, len(real))
    for start in range(0, len(real), chunk):
        part = np.asarray(real[start:start + chunk], np.float32)
        lengths = np.maximum(np.linalg.norm(part, axis=1), 1e-12)  # the length of `rows` changes no order
        new_values = rows @ part.T / lengths
        new_indices = np.broadcast_to(np.arange(start, start + len(part)), new_values.shape)
        if values is not None:
            new_values = np.concatenate([values, new_values], 1)
            new_indices = np.concatenate([indices, new_indices], 1)
        best = np.argsort(-new_values, axis=1, kind="stable")[:, :count]
        values, indices = np.take_along_axis(new_values, best, 1), np.take_along_axis(new_indices, best, 1)
    return indices


def nearest_captions(texts, real_texts, captions: Sequence[str]) -> list[str]:
    """The real caption nearest to each distilled text.

    Args:
        texts: (M, d) distilled text features.
        real_texts: (K, d) features of real captions in the same space.
        captions: K strings.

    Returns:
        M strings, by largest cosine.

    Raises:
        UserError: the two kinds of features differ in width, or captions and features in number.
    """
    texts, real_texts = np.asarray(texts), np.asarray(real_texts)
    if texts.shape[1] != real_texts.shape[1]:
        raise UserError(f"distilled texts have {texts.shape[1]} features and real ones {real_texts.shape[1]}; "
                        "use the text encoder that the set was distilled with.")
    if len(captions) != len(real_texts):
        raise UserError(f"there are {len(captions)} captions for {len(real_texts)} text features; give one for each.")
    return [captions[k] for k in nearest(texts, real_texts)[:, 0]]


@functools.lru_cache(maxsize=8)
def compiled_inputs(model: DualEncoder, chunk: int = 0) -> Callable:
    """The jitted function from images (B, H, W, C), uint8 or float in [0, 1], to the inputs of `model.embed_image`.

    Args:
        model: the dual encoder.
        chunk: images of which the frozen backbone holds maps at a time; 0: all.
    """
    def inputs(model, images):
        return in_chunks(lambda images: model.inputs(to_float(images)), images,
                         chunk if model.mode == "projection" else 0)

    return jit_with_frozen(model, inputs)
