"""A dual encoder in closed form: whitened, ridge-regularized cross-covariance of the pairs (docs/method.md, section 2.7).

With `v~ = (S_v + e m_v I)^(-1/2) (v - mean)`, likewise `t~`, and `C = sum_n w_n v~_n t~_n^T / sum_n w_n = U S V^T`, an
image is embedded as `U_k^T v~ S_k^(1/2)` and a caption as `V_k^T t~ S_k^(1/2)`: canonical correlation analysis with
ridge (Vinod 1976), scaled by the singular values. `S_v` is the covariance of the frozen features and `m_v` the mean of
its eigenvalues, so that the ridge e has no unit. Related: CovMatch (NeurIPS 2025) and APM (ICML 2026) match or solve
from the same covariances.

Nothing is trained, and there are no parameters to memorize a pair with. If a share eta of the captions is permuted
at random, `E[C] = (1 - eta) C_clean`: the directions stay, and only their variance grows.

Sums and decompositions are numpy in float64, on the host; a data set is read in batches, once.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.method import division, retrieval
from mdw_jax.runtime.mesh import jitted

RIDGES = (0.3, 1.0, 3.0, 10.0)
RANKS = (25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 750, 1000)
_RIDGE_STEP, _LEAST_RIDGE, _LARGEST_RIDGE = 10**0.5, 1e-4, 1e4  # where the grid of ridges may grow to
_LEAST_TAU, _LARGEST_TAU = 1e-3, 10.0
CHANCE = 0.2
"""Points of val r_mean that say nothing of whether to divide. Measured on photos, scenes and own data: on clean pairs
dividing costs 0.4 to 1.4, with 20 % mismatched or more it gains 0.6 to 5.5; of a million pairs, 30 % mismatched, a
linear solve averages the noise away, and the two were 0.03 apart, though the division found nearly every mismatch."""
_BLOCK = 65_536  # rows that are embedded at a time, where embeddings of all are not wanted


class Moments(NamedTuple):
    """First and second moments of weighted pairs; a caption's image counts once for each of its captions.

    Attributes:
        weight: the sum of the pairs' weights.
        mean_image: (F,).
        mean_text: (d,).
        image_cov: (F, F).
        text_cov: (d, d).
        cross_cov: (F, d).
    """

    weight: float
    mean_image: np.ndarray
    mean_text: np.ndarray
    image_cov: np.ndarray
    text_cov: np.ndarray
    cross_cov: np.ndarray


class ClosedForm(NamedTuple):
    """Two affine maps into one space of k directions.

    Attributes:
        image_mean: (F,) subtracted first.
        text_mean: (d,).
        image_map: (F, k).
        text_map: (d, k).
        singular_values: (k,) of the whitened cross-covariance, largest first.
    """

    image_mean: np.ndarray
    text_mean: np.ndarray
    image_map: np.ndarray
    text_map: np.ndarray
    singular_values: np.ndarray


class Tried(NamedTuple):
    """One setting that `fit` scored: round 0 takes all pairs, or the weights that were given."""

    round: int
    ridge: float
    rank: int
    val_r_mean: float


class FittedClosedForm(NamedTuple):
    """What `fit` chose.

    Attributes:
        form: the maps.
        ridge: e.
        rank: directions kept.
        val_r_mean: percent.
        clean_probability: (K,) float32 `w_n`: the weights that were given; or the division by `form`'s own cosines; or
            ones, where val likes the form of all pairs better than any of divided ones by more than `CHANCE`, for then
            the division costs more right pairs than it is worth.
        weights: (K,) float32, what `form` was solved with: ones in round 0, else the division of the round before.
        table: all that was tried.
        dividing_costs: points of val r_mean by which all pairs alike beat the best of divided ones, where that is why
            none is divided; else 0.
    """

    form: ClosedForm
    ridge: float
    rank: int
    val_r_mean: float
    clean_probability: np.ndarray
    weights: np.ndarray
    table: tuple[Tried, ...]
    dividing_costs: float = 0.0


class _Spectrum(NamedTuple):
    """Eigenvalues and eigenvectors of both covariances, and the cross-covariance in their bases."""

    moments: Moments
    image_values: np.ndarray
    image_vectors: np.ndarray
    text_values: np.ndarray
    text_vectors: np.ndarray
    cross: np.ndarray


def moments(features, texts, image_of, weights=None, batch: int = 4096) -> Moments:
    """Moments of the pairs, from one pass over images and captions, `batch` of each at a time.

    Args:
        features: (N, F) frozen features of the images.
        texts: (K, d) features of the captions.
        image_of: (K,) the image that each caption is paired with.
        weights: (K,) at least 0, not all 0; None: all pairs count alike.
        batch: rows at a time.

    Raises:
        UserError: all weights are 0, or one is negative or not finite.
    """
    image_of = np.asarray(image_of)
    weights = np.ones(len(image_of)) if weights is None else np.asarray(weights, np.float64)
    total = float(weights.sum())
    if not (np.isfinite(weights).all() and (weights >= 0).all() and total > 0):
        raise UserError("the weights of the pairs must be finite, at least 0 and not all 0; check the division that "
                        "they come from.")
    shares = weights / total
    of_image = np.bincount(image_of, shares, len(features))
    mean_image, mean_text = (
        np.sum([share[rows] @ _float64(array[rows]) for rows in _slices(len(array), batch)], axis=0)
        for array, share in ((features, of_image), (texts, shares)))
    text_cov = np.zeros((len(mean_text),) * 2)
    for rows in _slices(len(texts), batch):
        centred = _float64(texts[rows]) - mean_text
        text_cov += centred.T @ (shares[rows, None] * centred)
    image_cov = np.zeros((len(mean_image),) * 2)
    for rows in _slices(len(features), batch):
        centred = _float64(features[rows]) - mean_image
        image_cov += centred.T @ (of_image[rows, None] * centred)
    cross_cov = cross_covariance(features, texts, image_of, shares, mean_image, mean_text, batch=batch)
    return Moments(total, mean_image, mean_text, image_cov, text_cov, cross_cov)


def cross_covariance(features, texts, image_of: np.ndarray, shares: np.ndarray, mean_image: np.ndarray,
                     mean_text: np.ndarray, *, batch: int = 4096) -> np.ndarray:
    """(F, d) sum over the pairs of `share * (v - mean) (t - mean)^T`; arguments as in `moments`, shares of the pairs."""
    order = np.argsort(image_of, kind="stable")  # captions of one image stand together
    begins = np.concatenate([[0], np.cumsum(np.bincount(image_of, minlength=len(features)))])
    cross = np.zeros((len(mean_image), len(mean_text)))
    for rows in _slices(len(features), batch):
        text_sums = np.zeros((rows.stop - rows.start, len(mean_text)))
        for part in _slices(begins[rows.stop] - begins[rows.start], batch):
            captions = order[begins[rows.start]:begins[rows.stop]][part]
            own = shares[captions, None] * (_float64(texts[captions]) - mean_text)
            np.add.at(text_sums, image_of[captions] - rows.start, own)
        cross += (_float64(features[rows]) - mean_image).T @ text_sums
    return cross


def solve(moments: Moments, ridge: float, rank: int) -> ClosedForm:
    """The closed form at one ridge.

    Args:
        moments: of the pairs.
        ridge: e > 0, in units of the mean eigenvalue of each covariance.
        rank: directions kept, at most min(F, d).
    """
    return _solve(_spectrum(moments), ridge, rank)


def whitening(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """`(S + e m I)^(-1/2)`, m the mean eigenvalue of S."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * _scales(values, ridge)) @ vectors.T


def embed_images(form: ClosedForm, features) -> np.ndarray:
    """(N, k) float32 unit embeddings of (N, F) image features."""
    return _embed(features, form.image_mean, form.image_map)


def embed_texts(form: ClosedForm, texts) -> np.ndarray:
    """(K, k) float32 unit embeddings of (K, d) caption features."""
    return _embed(texts, form.text_mean, form.text_map)


def excess_cosine(form: ClosedForm, features, texts, image_of) -> np.ndarray:
    """How much more alike the two of a pair are than either is to the others (this work).

    Args:
        form: the closed form.
        features: (N, F) image features.
        texts: (K, d) caption features.
        image_of: (K,) the image that each caption is paired with.

    Returns:
        (K,) the cosine of each pair, minus the mean cosine of its image with all captions, minus that of its caption
        with the images of all pairs, plus the mean of all those.
    """
    image_of = np.asarray(image_of)
    of_image = np.bincount(image_of, minlength=len(features)) / len(texts)
    few = embed_images(form, features) if len(features) <= _BLOCK else None  # of many, embeddings are made anew
    images = lambda rows: embed_images(form, features[rows]) if few is None else few[rows]
    mean_v = _sum_of_blocks(len(features), lambda rows: of_image[rows] @ images(rows).astype(np.float64))
    total = _sum_of_blocks(len(texts), lambda rows: embed_texts(form, texts[rows]).sum(0, dtype=np.float64))
    mean_t = total / len(texts)
    with_captions = np.concatenate([images(rows) @ mean_t for rows in _slices(len(features), _BLOCK)])
    excess = np.empty(len(texts))
    for rows in _slices(len(texts), _BLOCK):
        t = embed_texts(form, texts[rows])
        cosine = np.einsum("kd,kd->k", images(image_of[rows]), t)
        excess[rows] = cosine - with_captions[image_of[rows]] - t @ mean_v + mean_v @ mean_t
    return excess


def divide(form: ClosedForm, features, texts, image_of, seed: int = 0) -> np.ndarray:
    """(K,) float32 `w_n` in [0, 1]: the probability that pair n belongs to the component of larger excess cosine.

    A two-component mixture as in `division.divide`, on the closed form's own `excess_cosine`; arguments as there.
    """
    return division.divide(-excess_cosine(form, features, texts, image_of), seed)


def fit(features, texts, image_of, val_features, val_texts, val_image_of, *, weights=None, rounds: int = 2,
        ridges: tuple[float, ...] = RIDGES, ranks: tuple[int, ...] = RANKS) -> FittedClosedForm:
    """Solve for the ridge and rank that val likes best, then again with pairs weighted by the form's own division.

    Args:
        features: (N, F) frozen features of the training images.
        texts: (K, d) features of the training captions.
        image_of: (K,) the image that each caption is paired with.
        val_features, val_texts, val_image_of: val, likewise; r_mean there decides about ridge, rank and round.
        weights: (K,) of the pairs, such as a division by experts; None: all alike, then `rounds` of its own division.
        rounds: how often to divide and solve again; the round of the best r_mean on val is kept, which may be the
            first.
        ridges: tried first; the grid grows by factors of about 3 as long as its edge is the best.
        ranks: to try, up to min(F, d): every second one at every ridge, and all at the best ridge.
    """
    val = (val_features, val_texts, jnp.asarray(val_image_of))
    has_weights = weights is not None
    used = np.asarray(weights if has_weights else np.ones(len(texts)), np.float32)
    tried: list[Tried] = []
    chosen: list[FittedClosedForm] = []
    for index in range(1 if has_weights else rounds + 1):
        spectrum = _spectrum(moments(features, texts, image_of, used))
        own = _search(spectrum, val, index, ridges, ranks)
        tried += own
        best = max(own, key=lambda row: row.val_r_mean)
        form = _solve(spectrum, best.ridge, best.rank)
        own_division = used if has_weights else divide(form, features, texts, image_of)
        chosen.append(FittedClosedForm(form, best.ridge, best.rank, best.val_r_mean, own_division, used, ()))
        used = own_division
    best_round = max(range(len(chosen)), key=lambda index: chosen[index].val_r_mean)
    fitted = chosen[best_round]._replace(table=tuple(tried))
    costs = chosen[0].val_r_mean - max((later.val_r_mean for later in chosen[1:]), default=math.inf)
    if costs <= CHANCE:
        return fitted
    return fitted._replace(clean_probability=np.ones(len(used), np.float32), dividing_costs=costs)


def calibrated_tau(form: ClosedForm, val_features, val_texts, val_image_of) -> float:
    """The temperature at which the softmax of the form's cosines fits the true pairs of val best (this work).

    Its similarities are spread otherwise than a network's, so one temperature does not serve both. The minimum of the
    mean cross-entropy of both directions, where an image's other captions are no candidates; golden-section search on
    log tau in [0.001, 10].
    """
    image_of = jnp.asarray(val_image_of)
    similarity = jnp.asarray(embed_images(form, val_features) @ embed_texts(form, val_texts).T)
    loss = lambda log_tau: float(jitted(_cross_entropy)(similarity, image_of, jnp.float32(math.exp(-log_tau))))
    return math.exp(_golden_section(loss, math.log(_LEAST_TAU), math.log(_LARGEST_TAU)))


def r_mean(form: ClosedForm, features, texts, image_of) -> float:
    """Mean recall of a split, percent (`retrieval.recalls`)."""
    return float(recalls(form, features, texts, image_of)[-1])


def recalls(form: ClosedForm, features, texts, image_of) -> np.ndarray:
    """(7,) recalls of a split, percent, in the order of `io.scores.METRICS`."""
    similarity = embed_images(form, features) @ embed_texts(form, texts).T
    return np.asarray(jitted(retrieval.recalls)(jnp.asarray(similarity), jnp.asarray(image_of)))


def _search(spectrum: _Spectrum, val: tuple, index: int, ridges: tuple[float, ...], ranks: tuple[int, ...]
            ) -> list[Tried]:
    """Every second rank at every ridge, the grid of which grows while its edge is best; then all ranks at the best."""
    tried: list[Tried] = []
    waiting, coarse = sorted(ridges), sorted(ranks)[::-2]
    done: list[float] = []
    while waiting:
        for ridge in waiting:
            tried += [Tried(index, ridge, *score) for score in _scores_by_rank(spectrum, val, ridge, coarse)]
        done = sorted({*done, *waiting})
        best = max(tried, key=lambda row: row.val_r_mean).ridge
        waiting = []
        if best == done[0] and best > _LEAST_RIDGE:
            waiting = [best / _RIDGE_STEP]
        elif best == done[-1] and best < _LARGEST_RIDGE:
            waiting = [best * _RIDGE_STEP]
    fine = [rank for rank in ranks if rank not in coarse]
    return tried + [Tried(index, best, *score) for score in _scores_by_rank(spectrum, val, best, fine)]


def _scores_by_rank(spectrum: _Spectrum, val: tuple, ridge: float, ranks: Sequence[int]) -> list[tuple[int, float]]:
    """(rank, r_mean on val) of one ridge, from one decomposition."""
    if not ranks:
        return []
    features, texts, image_of = val
    full = min(spectrum.cross.shape)
    form = _solve(spectrum, ridge, min(max(ranks), full))
    # Unit length comes last: the first k columns of the maps are the closed form of rank k.
    v, t = (_projected(rows, mean, to_space) for rows, mean, to_space in (
        (features, form.image_mean, form.image_map), (texts, form.text_mean, form.text_map)))
    scores = []
    for rank in sorted({min(rank, full) for rank in ranks}):
        similarity = jnp.asarray(_unit(v[:, :rank]) @ _unit(t[:, :rank]).T)
        scores.append((rank, float(jitted(retrieval.recalls)(similarity, image_of)[-1])))
    return scores


def _spectrum(moments: Moments) -> _Spectrum:
    (image_values, image_vectors), (text_values, text_vectors) = (
        np.linalg.eigh(covariance) for covariance in (moments.image_cov, moments.text_cov))
    return _Spectrum(moments, image_values, image_vectors, text_values, text_vectors,
                     image_vectors.T @ moments.cross_cov @ text_vectors)


def _whitened(spectrum: _Spectrum, ridge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """C in the eigenbases, and the scale of each eigenvector of both sides: `(value + e m)^(-1/2)`."""
    image_scales, text_scales = (_scales(values, ridge) for values in (spectrum.image_values, spectrum.text_values))
    return image_scales[:, None] * spectrum.cross * text_scales, image_scales, text_scales


def _scales(values: np.ndarray, ridge: float) -> np.ndarray:
    """`(value + e m)^(-1/2)` of eigenvalues with mean m."""
    return (np.maximum(values, 0) + ridge * max(values.mean(), np.finfo(float).tiny))**-0.5


def _solve(spectrum: _Spectrum, ridge: float, rank: int) -> ClosedForm:
    whitened, image_scales, text_scales = _whitened(spectrum, ridge)
    left, values, right = np.linalg.svd(whitened, full_matrices=False)
    left, values, right = left[:, :rank], values[:rank], right[:rank].T
    # The sign of a pair of singular vectors is arbitrary: fixed, so that equal inputs give equal maps everywhere.
    root = np.sqrt(values) * np.where(left[np.abs(left).argmax(0), np.arange(len(values))] < 0, -1, 1)
    return ClosedForm(spectrum.moments.mean_image, spectrum.moments.mean_text,
                      spectrum.image_vectors @ (image_scales[:, None] * left * root),
                      spectrum.text_vectors @ (text_scales[:, None] * right * root), values)


def _embed(rows, mean: np.ndarray, to_space: np.ndarray) -> np.ndarray:
    return _unit(_projected(rows, mean, to_space))


def _projected(rows, mean: np.ndarray, to_space: np.ndarray) -> np.ndarray:
    """(n, k) float32, `(rows - mean) @ to_space` in batches."""
    to_space_32, offset = to_space.astype(np.float32), (mean @ to_space).astype(np.float32)
    return np.concatenate([np.asarray(rows[part], np.float32) @ to_space_32 - offset
                           for part in _slices(len(rows), 16384)])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _cross_entropy(similarity, image_of, inverse_tau):
    """Mean cross-entropy of the true pairs, both directions, of (N, K) cosines at one temperature."""
    logits, captions = similarity * inverse_tau, jnp.arange(similarity.shape[1])
    own = logits[image_of, captions]
    to_image = jnp.log(jnp.exp(logits - logits.max(0)).sum(0)) + logits.max(0) - own
    belongs = image_of[None, :] == jnp.arange(similarity.shape[0])[:, None]
    # Among captions of other images, and itself: log(e^own + sum of others).
    others = jnp.where(belongs, -jnp.inf, logits)
    top = others.max(1)
    rest = jnp.log(jnp.exp(others - top[:, None]).sum(1)) + top
    to_text = jnp.logaddexp(own, rest[image_of]) - own
    return (to_image.mean() + to_text.mean()) / 2


def _golden_section(function, low: float, high: float, steps: int = 40) -> float:
    """Minimizer of a unimodal function on an interval, to about `0.618**steps` of its length."""
    ratio = (5**0.5 - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(steps):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2


def _sum_of_blocks(count: int, of_rows) -> np.ndarray:
    """The sum of a function of blocks of rows, over all of them."""
    return functools.reduce(np.add, map(of_rows, _slices(count, _BLOCK)))


def _float64(rows) -> np.ndarray:
    return np.asarray(rows).astype(np.float64)


def _slices(count: int, batch: int) -> list[slice]:
    """Slices of at most `batch` rows that cover `count` rows."""
    edges = [*range(0, count, batch), count]
    return [slice(begin, end) for begin, end in itertools.pairwise(edges)] if count else []
