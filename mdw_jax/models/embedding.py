"""Embeddings of whole splits by one or several networks, and nearest neighbors among them."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.streaming import concat_map, map_batches
from mdw_jax.errors import UserError
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.image.conv import on_cpu
from mdw_jax.models.jit import jit_with_frozen
from mdw_jax.runtime.mesh import jitted, map_replicas, replicated, shard_rows


class Inputs(NamedTuple):
    """One split as a model sees it.

    images: (N, ...) uint8 pixels, maybe streamed, or float features. texts: (K, d) features or (K, L) token ids.
    image_of: (K,).
    """

    images: Any
    texts: Any
    image_of: Any


def to_float(images):
    """uint8 pixels -> float32 in [0, 1]; features pass through."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def ensemble_embeddings(embedded):
    """Embeddings of several networks as those of one whose similarity is the mean of theirs: [(N, D)] -> (N, n D)."""
    return jnp.concatenate(embedded, -1) / np.sqrt(len(embedded))


def embeddings(model: DualEncoder, params, data: Inputs):
    """Unit embeddings of all images (N, D) and of all captions (K, D)."""
    return embeddings_of_all(model, [params], data)[0]


def embeddings_of_all(model: DualEncoder, networks: list, data: Inputs) -> list[tuple]:
    """`embeddings` of each network; together where that is faster. Images that are streamed are decoded once for all."""
    ensemble_embeddings = len(jax.devices()) > 1 or (len(networks) > 1 and not on_cpu())

    def embedded(branch, of):
        branches = [params[branch] for params in networks]
        embed = jitted(_embedder(model, branch))
        if isinstance(of, LazyImages):
            branches = replicated(branches)
            parts = map_batches(lambda rows: [embed(params, rows) for params in branches], of)
            return [jnp.concatenate(own) for own in zip(*parts, strict=True)]
        if ensemble_embeddings:
            return map_replicas(_whole_embedder(model, branch), branches, of)
        return [concat_map(lambda rows: embed(params, rows), of) for params in branches]

    return list(zip(embedded("image", data.images), embedded("text", data.texts), strict=True))


@functools.lru_cache(maxsize=64)
def _whole_embedder(model, branch, size: int = 500):
    """All rows of a split in one computation, `size` at a time."""
    embed = _embedder(model, branch)

    def whole(params, data):
        part = lambda x: embed(params, shard_rows(x))
        even = len(data) // size * size
        map_batches = jax.lax.map(part, data[:even].reshape(-1, size, *data.shape[1:]))
        rest = [part(data[even:])] if even < len(data) else []
        return jnp.concatenate([map_batches.reshape(even, map_batches.shape[-1]), *rest])

    return whole


def similarities(model: DualEncoder, params, data: Inputs):
    """(N, K) cosine similarity of all images with all captions."""
    v, t = embeddings(model, params, data)
    return v @ t.T


@functools.lru_cache(maxsize=64)
def _embedder(model, branch):
    if branch == "text":
        return model.embed_text
    return lambda params, images: model.embed_image(params, to_float(images))


def nearest(rows, real, count: int = 1, chunk: int = 16384) -> np.ndarray:
    """(M, count) the real rows of largest cosine with each row, nearest first. rows: (M, d); real: (K, d)."""
    rows, values, found = np.asarray(rows, np.float32), None, None
    count = min(count, len(real))
    for start in range(0, len(real), chunk):  # a data set's similarities to all rows do not fit into memory
        part = np.asarray(real[start:start + chunk], np.float32)
        lengths = np.maximum(np.linalg.norm(part, axis=1), 1e-12)  # a row's own length changes no order
        new = rows @ part.T / lengths
        numbers = np.broadcast_to(np.arange(start, start + len(part)), new.shape)
        if values is not None:
            new, numbers = np.concatenate([values, new], 1), np.concatenate([found, numbers], 1)
        best = np.argsort(-new, axis=1, kind="stable")[:, :count]
        values, found = np.take_along_axis(new, best, 1), np.take_along_axis(numbers, best, 1)
    return found


def nearest_captions(texts, real_texts, captions: Sequence[str]) -> list[str]:
    """For each distilled text feature the real caption whose feature has the largest cosine with it.

    texts: (M, d); real_texts: (K, d) in the same feature space; captions: K strings. Returns M strings.
    Raises UserError when the two kinds of features differ in width, or captions and features in number.
    """
    texts, real_texts = np.asarray(texts), np.asarray(real_texts)
    if texts.shape[1] != real_texts.shape[1]:
        raise UserError(f"distilled texts have {texts.shape[1]} features and real ones {real_texts.shape[1]}; "
                        "use the text encoder that the set was distilled with.")
    if len(captions) != len(real_texts):
        raise UserError(f"there are {len(captions)} captions for {len(real_texts)} text features; give one for each.")
    from mdw_jax.models.embedding import nearest  # here, because `mdw table` does without jax

    return [captions[k] for k in nearest(texts, real_texts)[:, 0]]


@functools.lru_cache(maxsize=8)
def compiled_inputs(model: DualEncoder):
    """The jitted function of (B, H, W, C) images, uint8 or float in [0, 1], that gives what `embed_image` takes."""
    def inputs(model, images):
        return model.inputs(to_float(images))

    return jit_with_frozen(model, inputs)
