"""Suspected mismatches of real data, from experts that are finished: which pairs, and what would fit better.

Nothing is trained. The probability that a pair is clean is the division that the experts were trained by
(`method/division.py`); the similarity is the mean cosine over the expert networks. What would fit better is the caption
of largest similarity to the image among all training captions, and the image of largest similarity to the caption. No
array of images by captions is ever made: similarities are computed in blocks, for the pairs that are listed alone.
"""

import contextlib
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.stored_rows import SelectedRows, SideBySide, create_rows, finished_rows, select_rows
from mdw_jax.io.records import stored_array
from mdw_jax.method.division import divide
from mdw_jax.method.teacher_embeddings import IN_MEMORY, memory_bytes
from mdw_jax.models.embedding import Inputs, embeddings_of_all, stored_embeddings
from mdw_jax.pipeline.expert_networks import expert_networks, network_embeddings
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun, read_division
from mdw_jax.pipeline.reopen import Trained
from mdw_jax.runtime.progress import progress
from mdw_jax.runtime.rng import named_generator

_QUERIES, _CANDIDATES = 1024, 4096  # rows of one block of similarities: 16 MB, which need not be allocated each time anew
_READ = 65_536  # rows of a network's embeddings that are divided at a time


class Judged(NamedTuple):
    """All K training pairs of a run, as the experts of one preset see them.

    Attributes:
        preset: whose experts.
        networks: how many.
        image_of: (K,) the image that each caption is paired with.
        clean_probability: (K,) the probability that the pair belongs together.
        divided_by: what the probability is: a key of `words.SOURCES`.
        similarity: (K,) mean cosine of the pair over the networks.
        images, texts: (N, D) and (K, D) float16 embeddings of the ensemble; dot products are those means. Large ones are
            `SideBySide` rows of files.
        dropped: (K,) bool, a filter had dropped the pair before the experts were trained.
        true_image_of: (K,) the image that each caption came with, where the noise was drawn; None where nobody knows.
        rate: "true" and "estimated", as in experts.json.
    """

    preset: str
    networks: int
    image_of: np.ndarray
    clean_probability: np.ndarray
    divided_by: str
    similarity: np.ndarray
    images: np.ndarray | SideBySide
    texts: np.ndarray | SideBySide
    dropped: np.ndarray
    true_image_of: np.ndarray | None
    rate: dict

    @property
    def mismatched(self) -> np.ndarray | None:
        """(K,) bool, the truth; None where nobody knows."""
        return None if self.true_image_of is None else self.image_of != self.true_image_of


class Suggestions(NamedTuple):
    """What fits better, for n listed pairs.

    Attributes:
        caption: (n,) row of the training caption of largest similarity to the image; it may be the given one.
        caption_similarity: (n,) that similarity.
        image: (n,) row of the training image of largest similarity to the caption.
        image_similarity: (n,) that similarity.
    """

    caption: np.ndarray
    caption_similarity: np.ndarray
    image: np.ndarray
    image_similarity: np.ndarray


def judge(trained: Trained, prepared: Prepared, by: str = "division") -> Judged:
    """What the experts of a preset make of every training pair.

    Args:
        trained: the preset.
        prepared: its data and model.
        by: "division": the probability is the division that the experts were trained by; "similarity": it is made here
            from `local_similarity`, as it is for recipes that do not divide, whatever is asked for.
    """
    run, record = trained
    image_of = np.asarray(run.noise.image_of)
    images, texts = _ensemble(trained, prepared)
    similarity = np.concatenate([np.einsum("kd,kd->k", images[image_of[rows]].astype(np.float32),
                                           texts[rows].astype(np.float32))
                                 for rows in np.array_split(np.arange(len(image_of)), -(-len(image_of) // 4096))])
    dropped = np.zeros(len(image_of), bool)
    if run.filter is not None:
        dropped[:] = True
        dropped[stored_array(run.filter.folder.path / "kept.npy", (None,))] = False
    truth = None if run.noise.mismatched is None else np.asarray(run.noise.true_image_of)
    judged = Judged(run.name, record["networks"], image_of, read_division(run), "experts", similarity, images, texts,
                    dropped, truth, record["rate"])
    return judged_by(judged, run, by)


def judged_by(judged: Judged, run: PresetRun, by: str) -> Judged:
    """The same pairs with the probability that `by` names; see `judge`."""
    probability, divided_by, kept = read_division(run), "experts", ~judged.dropped
    if by == "similarity" or run.config.experts.division != "gmm":
        divided_by = "similarity" if by == "similarity" else "similarity, for want of a division"
        local = local_similarity(judged.images, judged.texts, judged.image_of, judged.similarity)
        probability = np.zeros(len(local), np.float32)
        probability[kept] = divide(-local[kept])
    elif (probability[kept] == 1).all():
        divided_by = "nobody"
    return judged._replace(clean_probability=probability.astype(np.float32), divided_by=divided_by)


def local_similarity(images, texts, image_of, similarity, *, sample: int = 2000, neighbors: int = 10) -> np.ndarray:
    """The cosine of each pair, less half of what is usual among the nearest neighbors of its image and of its caption.

    Cross-domain similarity local scaling (CSLS; Conneau et al. 2018, Word translation without parallel data): a caption
    that is near to every image says little. The neighbors come from a sample of the other side, so that time grows
    linearly.

    Args:
        images, texts: (N, D) and (K, D) embeddings.
        image_of: (K,) the image that each caption is paired with.
        similarity: (K,) cosine of each pair.
        sample: captions, and images, among which neighbors are looked for.
        neighbors: how many; the mean over them is what is usual.

    Returns:
        (K,) float32.
    """
    generator = named_generator(0, "mismatches", "local")
    of_images, of_texts = (
        _level(rows, others[np.sort(generator.permutation(len(others))[:sample])], neighbors)
        for rows, others in ((images, texts), (texts, images)))
    return (similarity - (of_images[image_of] + of_texts) / 2).astype(np.float32)


def _level(rows, others: np.ndarray, neighbors: int) -> np.ndarray:
    """(n,) mean dot product of each row with the nearest ones of the others."""
    others, neighbors = jnp.asarray(others, jnp.float32), min(neighbors, len(others))
    blocks = (jnp.asarray(rows[start:start + _QUERIES], jnp.float32) for start in range(0, len(rows), _QUERIES))
    return np.concatenate([np.asarray(_nearest_mean(block, others, neighbors)) for block in blocks])


@functools.partial(jax.jit, static_argnums=2)
def _nearest_mean(rows, others, neighbors: int):
    return jax.lax.top_k(rows @ others.T, neighbors)[0].mean(1)


def _ensemble(trained: Trained, prepared: Prepared) -> tuple:
    """(N, D) and (K, D) float16 embeddings of all networks side by side, divided by the root of their number.

    Beyond `teacher_embeddings.IN_MEMORY` bytes they lie in files beside the experts whose names are removed at once, and
    are `SideBySide`; one network's are made at a time, or, of streamed images, which are decoded once, all in one pass.
    """
    run, record = trained
    data, count = prepared.train(run.noise), record["networks"]
    large = memory_bytes(prepared.model.dim, len(data.images) + len(data.texts), count, []) > IN_MEMORY
    folder = run.experts.path / f"embeddings-all-{jax.process_index()}"
    sides: tuple[list, list] = ([], [])
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        advance = stack.enter_context(progress(f"embeddings of {run.name}", count, "networks"))
        for n, of_network in enumerate(_each_network(trained, prepared, data, folder if large else None)):
            for side, rows, branch in zip(sides, of_network, ("image", "text"), strict=True):
                path = folder / f"part-{n}-{branch}.npy" if large else None
                side.append(_divided(rows, float(np.sqrt(count)), path))
            advance(1)
    if large:
        return SideBySide(sides[0]), SideBySide(sides[1])
    return np.concatenate(sides[0], 1), np.concatenate(sides[1], 1)


def _each_network(trained: Trained, prepared: Prepared, data: Inputs, folder: Path | None) -> Iterator[tuple]:
    """The embeddings of images and captions by each network; where they are large, a folder for them."""
    experts, model = trained.run.experts, prepared.model
    if not isinstance(data.images, LazyImages):
        return network_embeddings(experts, model, data)
    networks = list(expert_networks(experts))  # images are decoded once for all
    return iter(embeddings_of_all(model, networks, data) if folder is None
                else stored_embeddings(model, networks, data, folder, "network"))


def _divided(rows, divisor: float, path: Path | None):
    """(n, D) rows over a number, float16: in memory, or in a file."""
    divided = np.empty(rows.shape, np.float16) if path is None else create_rows(path, rows.shape)
    for start in range(0, len(rows), _READ):
        part = slice(start, min(start + _READ, len(rows)))
        divided[part] = np.asarray(rows[part]) / np.float64(divisor)
    return divided if path is None else finished_rows(divided)


def suspected(judged: Judged, below: float, top: int = 0) -> np.ndarray:
    """Rows of the pairs whose probability of being clean lies below a threshold, the most suspicious first.

    Args:
        judged: all pairs.
        below: the threshold.
        top: at most so many; 0: all.

    Returns:
        (n,) rows, by probability, and by similarity where that is equal.
    """
    rows = np.flatnonzero(judged.clean_probability < below)
    order = np.lexsort((judged.similarity[rows], judged.clean_probability[rows]))
    return rows[order][:top or None]


@jax.jit
def _better(queries, candidates, start, best, values):
    similarity = queries @ candidates.astype(jnp.float32).T
    index = similarity.argmax(1)
    value = jnp.take_along_axis(similarity, index[:, None], 1)[:, 0]
    return jnp.where(value > values, index + start, best), jnp.maximum(value, values)


def best_matches(queries, candidates, sizes: tuple[int, int] = (_QUERIES, _CANDIDATES),
                 advance=lambda n: None) -> tuple[np.ndarray, np.ndarray]:
    """For each query the candidate of largest dot product, the first of equal ones.

    Args:
        queries: (n, D), an array or rows that stay on the host.
        candidates: (m, D), likewise.
        sizes: rows of queries and of candidates in memory at a time.
        advance: called with the number of queries that are done.

    Returns:
        (n,) indices and (n,) float32 dot products.
    """
    found, values = np.zeros(len(queries), np.int64), np.full(len(queries), -np.inf, np.float32)
    for begin in range(0, len(queries), sizes[0]):
        rows = slice(begin, min(begin + sizes[0], len(queries)))
        block = jnp.asarray(queries[rows], jnp.float32)
        best, value = jnp.zeros(len(block), jnp.int32), jnp.full(len(block), -jnp.inf, jnp.float32)
        for start in range(0, len(candidates), sizes[1]):
            best, value = _better(block, jnp.asarray(candidates[start:start + sizes[1]]), start, best, value)
        found[rows], values[rows] = np.asarray(best), np.asarray(value)
        advance(rows.stop - rows.start)
    return found, values


def suggest(judged: Judged, rows: np.ndarray, quiet: bool = False) -> Suggestions:
    """What fits the image and what fits the caption of listed pairs better than each other, by the experts.

    Args:
        judged: all pairs.
        rows: (n,) rows of the listed ones.
        quiet: show no progress.
    """
    images, place = np.unique(judged.image_of[rows], return_inverse=True)  # once for all captions of an image
    shown = contextlib.nullcontext(lambda n: None) if quiet else progress(
        "better matches", len(images) + len(rows), "images and captions")
    with shown as advance:
        caption, caption_similarity = best_matches(select_rows(judged.images, images), judged.texts, advance=advance)
        image, image_similarity = best_matches(SelectedRows(judged.texts, rows), judged.images, advance=advance)
    return Suggestions(caption[place], caption_similarity[place], image, image_similarity)


class Quality(NamedTuple):
    """How well a list finds the mismatches that were drawn.

    Attributes:
        precision: the share of the listed pairs that are mismatched; None where none is listed.
        recall: the share of the mismatched pairs that are listed; None where there is none.
        true_captions: the share of the listed mismatched pairs whose suggested caption came with the image.
        true_images: the share of those whose suggested image is the one that the caption came with.
    """

    precision: float | None
    recall: float | None
    true_captions: float | None
    true_images: float | None


def quality(judged: Judged, rows: np.ndarray, suggestions: Suggestions) -> Quality | None:
    """The quality of a list; None where nobody knows which pairs are mismatched."""
    truth = judged.true_image_of
    if truth is None or judged.mismatched is None:
        return None
    wrong = judged.mismatched[rows]

    def share(hits: np.ndarray, count: int) -> float | None:
        return float(hits.sum() / count) if count else None

    return Quality(share(wrong, len(rows)), share(wrong, int(judged.mismatched.sum())),
                   share((truth[suggestions.caption] == judged.image_of[rows])[wrong], int(wrong.sum())),
                   share((suggestions.image == truth[rows])[wrong], int(wrong.sum())))
