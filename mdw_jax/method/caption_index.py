"""The captions nearest to images by an approximate index: an inverted file of faiss, in half precision.

The captions are clustered into about `2 sqrt(K)` cells, and an image is compared with those of the `PROBES` nearest cells.
Wide embeddings are first reduced to `WIDTH` directions, the leading ones of a sample of captions (one step of randomized
subspace iteration, Halko et al. 2011), and the nearest there are compared again in full.
"""

from types import ModuleType

import numpy as np

from mdw_jax.errors import UserError

PROBES, WIDTH = 32, 64
FEWEST = 20_000
"""Captions below which an index saves nothing."""
_AGAIN = 4  # times k captions that are compared again in full, where the index is of reduced embeddings
_PER_CELL, _ROUNDS = 40, 6  # captions of each cell that k-means sees, and its iterations
_SAMPLE = 20_000  # captions whose leading directions are found
_BLOCK, _BYTES = 8192, 2**27  # rows that are indexed or looked up at a time; bytes of captions compared again at a time


def indexed_captions(images, texts, k: int, generator: np.random.Generator) -> np.ndarray:
    """The k captions nearest to each image, nearly: which of them are found depends on the cells.

    Args:
        images: (N, D) embeddings, all of one length.
        texts: (K, D) embeddings, likewise, K at least `FEWEST`.
        k: captions for each image.
        generator: source of the samples.

    Returns:
        (N, k) int32 rows of captions, best first; -1 where the cells of an image had fewer.

    Raises:
        UserError: the package faiss is missing.
    """
    basis = _leading_directions(texts, generator) if texts.shape[1] > WIDTH else None
    index = _filled_index(texts, basis, generator)
    found = np.empty((len(images), k), np.int32)
    for start in range(0, len(images), _BLOCK):
        rows = _float(images, slice(start, min(start + _BLOCK, len(images))))
        wanted = k if basis is None else _AGAIN * k
        near = index.search(_reduced(rows, basis), wanted)[1]
        found[start:start + len(rows)] = near if basis is None else _compared_again(rows, texts, near, k)
    return found


def compared_by_index(captions: int) -> int:
    """Centroids and captions that an image is compared with, about."""
    cells = _cells(captions)
    return cells + min(PROBES, cells) * captions // cells


def _cells(captions: int) -> int:
    return max(int(2 * captions**0.5), 1)


def require_faiss() -> ModuleType:
    """The package faiss. Raises UserError where it is missing."""
    try:
        import faiss  # an optional dependency
    except ImportError as error:
        raise UserError("experts.recovery_search=ann needs faiss: pip install 'mdw-jax[ann]', or set it to "
                        "sample.") from error
    return faiss


def _filled_index(texts, basis, generator: np.random.Generator):
    faiss = require_faiss()
    width, cells = texts.shape[1] if basis is None else basis.shape[1], _cells(len(texts))
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(width), width, cells, faiss.ScalarQuantizer.QT_fp16,
                                          faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid, index.nprobe = _ROUNDS, _PER_CELL, min(PROBES, cells)
    index.cp.seed = int(generator.integers(2**31))
    sample = np.sort(generator.choice(len(texts), min(len(texts), _PER_CELL * cells), replace=False))
    index.train(_reduced(_float(texts, sample), basis))
    for start in range(0, len(texts), _BLOCK):
        index.add(_reduced(_float(texts, slice(start, min(start + _BLOCK, len(texts)))), basis))
    return index


def _float(rows, part) -> np.ndarray:
    """Rows of embeddings, float32."""
    return np.ascontiguousarray(rows[part], np.float32)


def _reduced(rows: np.ndarray, basis: np.ndarray | None) -> np.ndarray:
    return rows if basis is None else rows @ basis


def _leading_directions(texts, generator: np.random.Generator) -> np.ndarray:
    """(D, WIDTH) orthonormal: nearly the leading singular directions of a sample of captions, not centred."""
    rows = np.sort(generator.choice(len(texts), min(len(texts), _SAMPLE), replace=False))
    sketch = generator.normal(size=(texts.shape[1], WIDTH)).astype(np.float32)
    for _ in range(2):
        image = np.zeros_like(sketch)
        for part in np.array_split(rows, max(len(rows) // 2048, 1)):
            block = _float(texts, part)
            image += block.T @ (block @ sketch)
        sketch = np.linalg.qr(image)[0]
    return sketch


def _compared_again(rows: np.ndarray, texts, near: np.ndarray, k: int) -> np.ndarray:
    """(n, k) the nearest in full of the captions `near` (n, m), -1 where there are fewer."""
    best = np.empty((len(rows), k), np.int32)
    step = max(_BYTES // (4 * near.shape[1] * rows.shape[1]), 1)
    for start in range(0, len(rows), step):
        part, known = slice(start, start + step), near[start:start + step]
        captions = np.asarray(texts[np.maximum(known, 0).ravel()], np.float32).reshape(*known.shape, -1)
        cosine = np.where(known < 0, -np.inf, np.einsum("nmd,nd->nm", captions, rows[part]))
        best[part] = np.take_along_axis(known, np.argsort(-cosine, 1, kind="stable")[:, :k], 1)
    return best
