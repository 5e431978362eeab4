"""What chance alone puts into a cross-covariance: its noise edge (docs/method.md, section 3; this work).

The directions of the closed form (`closed_form.py`) are the singular vectors of the whitened cross-covariance C. Where
captions have nothing to do with their images, C is not 0 but noise, and its singular values end at an *edge*. What C
has above the edge is correspondence. No premise is made about what was memorized, for nothing is trained; images are
exchanged with all their captions, so captions of one image may depend on each other.

Proposition 5. Let m of N images, chosen at random, exchange their captions by a random permutation, and let every image
have equally many. Then neither mean nor covariance of either side changes, so neither does the whitening, and

    E[C] = (N - m) / (N - 1) C_clean.

(An image that is not chosen keeps its captions; of those chosen one does, on average; and the mean over a chosen set
of products of two different images is -1 / (N - 1) of the clean one, because rows are centred.)

Proposition 6. (a) Under a random permutation of all N images the top singular value of C exceeds that of S independent
random permutations with probability at most 1 / (S + 1), by symmetry: exact at every N. (b) It exceeds

    t = 2 sqrt(2) R L + sqrt(8 R^2 L^2 + 12 s^2 L),  L = log((F + d) / delta)

with probability at most delta, where `R = max_i |v~_i| max_k |b_k|`, `b_k` is the weighted sum of an image's whitened
captions, and `s^2` is a bound of the variance: the matrix Bernstein inequality for combinatorial sums (Mackey, Jordan,
Chen, Farrell, Tropp 2014, corollary 10.3) for the Hermitian dilation of `sum_i v~_i b_pi(i)^T`.
"""

import math
from typing import NamedTuple

import numpy as np

from mdw_jax.method.closed_form import Moments, cross_covariance, moments, whitening

RIDGE = 1.0  # fixed: one that is chosen on the pairs would not be independent of how they are matched


class NoiseEdge(NamedTuple):
    """Singular values of the whitened cross-covariance beside those of shuffled captions.

    Attributes:
        singular_values: (min(F, d),) of the pairs as given, largest first.
        shuffled: (S,) the top singular value under each shuffle.
        bernstein: Proposition 6 (b) at 1 - confidence.
        confidence: of both edges: S / (S + 1).
        images: how many images have captions.
    """

    singular_values: np.ndarray
    shuffled: np.ndarray
    bernstein: float
    confidence: float
    images: int

    @property
    def edge(self) -> float:
        """The largest singular value that a shuffle reached."""
        return float(self.shuffled.max())

    def directions_above(self, edge: float) -> int:
        """How many directions of the pairs as given lie above an edge."""
        return int((self.singular_values > edge).sum())


def noise_edge(generator: np.random.Generator, features, texts, image_of, shuffles: int = 19, ridge: float = RIDGE
               ) -> NoiseEdge:
    """Both edges of a set of pairs.

    Args:
        generator: of the shuffles.
        features: (N, F) frozen features of the images.
        texts: (K, d) features of the captions.
        image_of: (K,) the image that each caption is paired with.
        shuffles: S; the confidence is S / (S + 1).
        ridge: e of the whitening.
    """
    image_of = np.asarray(image_of)
    observed = moments(features, texts, image_of)
    image_whitening, text_whitening = whitening(observed.image_cov, ridge), whitening(observed.text_cov, ridge)
    spectrum = lambda cross: np.linalg.svd(image_whitening @ cross @ text_whitening, compute_uv=False)
    used, shares = np.unique(image_of), np.full(len(image_of), 1 / len(image_of))
    tops = []
    for _ in range(shuffles):
        shuffled = np.arange(len(features))
        shuffled[used] = generator.permutation(used)
        tops.append(spectrum(cross_covariance(features, texts, shuffled[image_of], shares, observed.mean_image,
                                              observed.mean_text))[0])
    delta = 1 / (shuffles + 1)
    bound = _bernstein(observed, image_whitening, text_whitening, features, texts, image_of, delta=delta)
    return NoiseEdge(spectrum(observed.cross_cov), np.array(tops), bound, 1 - delta, len(used))


def _bernstein(observed: Moments, image_whitening: np.ndarray, text_whitening: np.ndarray, features, texts,
               image_of: np.ndarray, *, delta: float) -> float:
    """Proposition 6 (b).

    The rows of both sides are centred over the N images, which makes the sum over all pairs of an image and captions 0:
    `b` because captions are centred, and for `v~` centring changes nothing in `sum_i v~_i b_pi(i)^T`. With centred rows
    `s^2 = max(|A| tr B, tr A |B|) / N`, where A and B are the sums of `v~ v~^T` and of `b b^T`, and |.| the largest
    eigenvalue.
    """
    used, position, counts = np.unique(image_of, return_inverse=True, return_counts=True)
    longest, sums, width = [], [], []
    for whitened in (_image_rows(observed, image_whitening, features, used),
                     _text_rows(observed, text_whitening, texts, position, counts)):
        longest.append(math.sqrt((whitened**2).sum(1).max()))
        eigenvalues = np.linalg.eigvalsh(whitened.T @ whitened)
        sums.append((float(eigenvalues[-1]), float(eigenvalues.sum())))
        width.append(whitened.shape[1])
    (top_image, trace_image), (top_text, trace_text) = sums
    variance = max(top_image * trace_text, trace_image * top_text) / len(used)
    reach, log = longest[0] * longest[1], math.log(sum(width) / delta)
    return 2 * math.sqrt(2) * reach * log + math.sqrt(8 * (reach * log)**2 + 12 * variance * log)


def _image_rows(observed: Moments, to_white: np.ndarray, features, used: np.ndarray) -> np.ndarray:
    """(N, F) whitened images, centred over those that have captions."""
    rows = (np.asarray(features, np.float32)[used] - observed.mean_image.astype(np.float32)) @ to_white.astype(np.float32)
    return rows - rows.mean(0)


def _text_rows(observed: Moments, to_white: np.ndarray, texts, position: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(N, d) sum of each image's whitened captions, over the number of all captions."""
    order, begins = np.argsort(position, kind="stable"), np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows = (np.asarray(texts, np.float32) - observed.mean_text.astype(np.float32)) @ to_white.astype(np.float32)
    return np.add.reduceat(rows[order], begins, axis=0) / np.float32(len(position))
