"""Coresets: real pairs chosen from the noisy training set, as baselines and as starting points of distillation.

See docs/method.md, section 7. `herding`, `k_center` and `clip_filter` choose among candidates by their joint features;
with `one_caption_each` as the candidates, what they choose are different images:

    rows = one_caption_each(generator, image_of)
    rows[herding(joint_features(images, texts[rows], image_of[rows]), count)]

`CORESETS` has each of them as one function of a `CoresetInputs`.
"""

import dataclasses
from collections.abc import Callable

import chex
import numpy as np
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from mdw_jax.errors import UserError

_CHUNK = 4096  # rows of joint features filled at a time
_ITEMS = 65_536  # items compared with centroids at a time
# Many small products: more threads gain little, are ten times slower in k-means where cores are shared, and would let
# the choice depend, by rounding, on how many there are.
_one_thread = threadpool_limits.wrap(limits=1)


def one_caption_each(generator: np.random.Generator, image_of: np.ndarray) -> np.ndarray:
    """Draw one of the captions paired with each image.

    Args:
        generator: source of randomness.
        image_of: (K,) the image of each caption.

    Returns:
        (N,) rows into the captions, in the order of the images. An image without captions has no row.
    """
    image_of = np.asarray(image_of)
    rows = generator.permutation(len(image_of))
    _, first = np.unique(image_of[rows], return_index=True)
    return rows[first]


def random_pairs(generator: np.random.Generator, image_of: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` different images, each with one of the captions paired with it.

    Args:
        generator: source of randomness.
        image_of: (K,) the image of each caption.
        count: how many pairs.

    Returns:
        (count,) rows into the captions.
    """
    return generator.permutation(one_caption_each(generator, image_of))[:count]


def clean_pairs(generator: np.random.Generator, image_of: np.ndarray, clean_probability: np.ndarray, count: int
                ) -> np.ndarray:
    """Draw pairs as `random_pairs` does, among those that the experts' division calls clean (docs/method.md, 2.2).

    Args:
        generator: source of randomness.
        image_of: (K,) the image of each caption.
        clean_probability: (K,) the probability that each pair is clean; from 0.5 a pair is called clean.
        count: how many pairs.

    Returns:
        (count,) rows into the captions. Where too few pairs are clean, the most probable others, of images that are
        not chosen yet, follow them.
    """
    image_of, probability = np.asarray(image_of), np.asarray(clean_probability)
    rows = np.flatnonzero(probability >= 0.5)
    chosen = rows[random_pairs(generator, image_of[rows], count)]
    best = np.argsort(-probability, kind="stable")
    best = best[~np.isin(image_of[best], image_of[chosen])]
    _, first = np.unique(image_of[best], return_index=True)
    return np.concatenate([chosen, best[np.sort(first)][: count - len(chosen)]])


def joint_features(images: np.ndarray, texts: np.ndarray, image_of: np.ndarray) -> np.ndarray:
    """Features of pairs: the features of image and caption, each of unit length, side by side (this work).

    Both modalities weigh the same: the squared distance of two pairs is the sum of `2 - 2 cos` over the modalities.

    Args:
        images: (N, F) frozen features of all images.
        texts: (K, d) frozen features of the captions.
        image_of: (K,) the image that each caption is paired with.

    Returns:
        (K, F + d) float32. A feature of zeros stays zero.

    Raises:
        AssertionError: features of one image alone, or another number of captions than of entries of `image_of`.
    """
    images = images if hasattr(images, "shape") else np.asarray(images)
    chex.assert_rank(images, 2)
    width, image_of = images.shape[1], np.asarray(image_of)
    chex.assert_shape(image_of, (len(texts),))
    joint = np.empty((len(texts), width + np.shape(texts)[1]), np.float32)
    for start in range(0, len(joint), _CHUNK):  # spares copies, also of images that none of the pairs have
        part = slice(start, start + _CHUNK)
        joint[part, :width], joint[part, width:] = _unit(images[image_of[part]]), _unit(texts[part])
    return joint


def _unit(x) -> np.ndarray:
    """Rows of unit length, float32."""
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)


@_one_thread
def herding(features: np.ndarray, count: int) -> np.ndarray:
    """Greedy mean matching (Welling 2009, without repeats as in iCaRL; a baseline of VLD).

    Step k takes the item x that brings the mean of the chosen items nearest to the mean of all: the one with the least
    `|mu - (x + sum of chosen) / k|`.

    Args:
        features: (n, d) float32, of length about 1.
        count: how many items to choose.

    Returns:
        (count,) indices, in the order in which they were chosen.

    Raises:
        UserError: `count` exceeds n.
    """
    features = np.asarray(features, np.float32)
    _require_enough("herding", count, len(features))
    # |x + total - k mu|^2 less what is the same for every x: |x|^2 - 2 <x, k mu - total>.
    squared = np.einsum("nd,nd->n", features, features)
    mean = features.mean(0, dtype=np.float64)
    total = np.zeros_like(mean)
    chosen = np.empty(count, int)
    for k in range(count):
        target = ((k + 1) * mean - total).astype(np.float32)
        chosen[k] = np.argmin(squared - 2 * (features @ target))
        squared[chosen[k]] = np.inf
        total += features[chosen[k]]
    return chosen


@_one_thread
def k_center(features: np.ndarray, count: int, first: int) -> np.ndarray:
    """Greedy k-center (Sener & Savarese 2018): each step takes the item farthest from its nearest chosen one.

    Args:
        features: (n, d) float32, of length about 1; distances are Euclidean.
        count: how many items to choose.
        first: index of the item to start with.

    Returns:
        (count,) indices, in the order in which they were chosen.

    Raises:
        UserError: `count` exceeds n.
    """
    features = np.asarray(features, np.float32)
    _require_enough("k_center", count, len(features))
    squared = np.einsum("nd,nd->n", features, features)
    nearest = np.full(len(features), np.inf, np.float32)  # squared distance to the nearest chosen item
    chosen, last = np.empty(count, int), first
    for k in range(count):
        chosen[k] = last
        nearest = np.minimum(nearest, squared + squared[last] - 2 * (features @ features[last]))
        nearest[last] = -np.inf  # never again, however the distances round
        last = int(np.argmax(nearest))
    return chosen


def forgetting_events(history: np.ndarray) -> np.ndarray:
    """Count how often each pair was forgotten: correct at one epoch and wrong at the next (Toneva et al. 2019).

    Args:
        history: (epochs, K) bool, whether each pair was matched correctly within its batch at each epoch.

    Returns:
        (K,) int. A pair that was never correct gets `epochs`, more than any pair can reach by being forgotten (as in
        the code of Toneva et al.).
    """
    history = np.asarray(history, bool)
    events = (history[:-1] & ~history[1:]).sum(0)
    return np.where(history.any(0), events, len(history))


def most_forgotten(generator: np.random.Generator, events: np.ndarray, rows: np.ndarray, image_of: np.ndarray,
                   count: int) -> np.ndarray:
    """Choose the pairs that were forgotten most often, one for each image (Toneva et al. 2019).

    Pairs that are never learned come first: in noisy data, expect many mismatched ones among them.

    Args:
        generator: source of randomness; it orders ties.
        events: (K,) forgetting events of every pair, largest for those never learned (`forgetting_events`).
        rows: the candidates, rows into the captions.
        image_of: (K,) the image of each caption.
        count: how many pairs.

    Returns:
        (count,) rows into the captions, the most forgotten first.

    Raises:
        UserError: `count` exceeds the number of images among the candidates.
    """
    rows = generator.permutation(np.asarray(rows))
    rows = rows[np.argsort(-np.asarray(events)[rows], kind="stable")]
    _, first = np.unique(np.asarray(image_of)[rows], return_index=True)
    _require_enough("most_forgotten", count, len(first))
    return rows[np.sort(first)[:count]]


@_one_thread
def k_means(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Cluster items by mini-batch k-means, and represent each centroid by the nearest item.

    No item represents two centroids: the closer one gets it, and the other takes its nearest among those left, also
    where its cluster is empty.

    Args:
        features: (n, d) float32.
        count: how many items to choose, and clusters.
        seed: of k-means.

    Returns:
        (count,) indices, one per cluster.

    Raises:
        UserError: `count` exceeds n.
    """
    features = np.asarray(features, np.float32)
    _require_enough("k_means", count, len(features))
    items, distance = _nearest_items(MiniBatchKMeans(count, random_state=seed).fit(features), features, count)
    chosen, taken = np.full(count, -1), np.zeros(len(features), bool)
    centroids = np.broadcast_to(np.arange(count), items.shape)
    for place in np.lexsort((centroids.ravel(), items.ravel(), distance.ravel())):
        item, centroid = items.flat[place], centroids.flat[place]
        if chosen[centroid] < 0 and not taken[item]:
            chosen[centroid], taken[item] = item, True
    return chosen


def _nearest_items(means: MiniBatchKMeans, features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, count) the `count` items nearest to each centroid, a column each, and their distances: with one item for
    each centroid, no other can be the nearest that is left."""
    items, distance = np.empty((0, count), int), np.empty((0, count), features.dtype)
    for start in range(0, len(features), _ITEMS):
        of_block = means.transform(features[start:start + _ITEMS])
        of_all = np.concatenate([distance, of_block])
        rows = np.broadcast_to(start + np.arange(len(of_block))[:, None], of_block.shape)
        numbers = np.concatenate([items, rows])
        best = np.argpartition(of_all, min(count, len(of_all)) - 1, axis=0)[:count]
        items, distance = np.take_along_axis(numbers, best, 0), np.take_along_axis(of_all, best, 0)
    return items, distance


@_one_thread
def clip_filter(similarity: np.ndarray, features: np.ndarray, count: int, seed: int, drop: float = 0.2) -> np.ndarray:
    """Drop the pairs of lowest similarity, cluster the others, and take one pair per cluster (after PDS), by `k_means`.

    This departs from PDS, which clusters each modality by itself, matches image and text clusters by a Hungarian
    assignment on the number of pairs they share, takes the mean feature of matched clusters as a prototype, and
    synthesizes the image with a diffusion model. Here both modalities are clustered at once and nothing is generated.

    Args:
        similarity: (n,) similarity of image and text of each pair under a frozen two-tower model.
        features: (n, d) float32 joint features.
        count: how many pairs, and clusters.
        seed: of k-means.
        drop: the fraction of pairs to drop.

    Returns:
        (count,) indices, one per cluster.

    Raises:
        UserError: `count` exceeds the pairs left, or `drop` is not in [0, 1).
    """
    if not 0 <= drop < 1:
        raise UserError(f"clip_filter cannot drop a fraction of {drop} of the pairs; choose one in [0, 1), such as "
                        "0.2.")
    remaining = np.sort(np.argsort(similarity, kind="stable")[round(drop * len(similarity)):])
    _require_enough("clip_filter", count, len(remaining))
    return remaining[k_means(np.asarray(features, np.float32)[remaining], count, seed)]


def _require_enough(method: str, count: int, available: int) -> None:
    if count > available:
        raise UserError(f"{method} is to choose {count} pairs but there are only {available} to choose from; lower "
                        "distill.pairs.")


@dataclasses.dataclass(frozen=True)
class CoresetInputs:
    """What a coreset may choose by. The functions compute only when they are called.

    Attributes:
        image_of: (K,) the image that each training caption is paired with.
        count: how many pairs to choose.
        generator: source of randomness of this set.
        features: (n,) rows into the captions -> (n, d) float32 joint features of these pairs (`joint_features`).
        history: -> (networks, epochs, K) bool, whether each expert network matched each pair correctly within its batch.
        similarity: -> (K,) cosine similarity of each pair under the experts, the mean over the networks.
    """

    image_of: np.ndarray
    count: int
    generator: np.random.Generator
    features: Callable[[np.ndarray], np.ndarray]
    history: Callable[[], np.ndarray]
    similarity: Callable[[], np.ndarray]


Coreset = Callable[[CoresetInputs], np.ndarray]  # returns (count,) different rows into the training captions


def _random(inputs: CoresetInputs) -> np.ndarray:
    return random_pairs(inputs.generator, inputs.image_of, inputs.count)


def _herding(inputs: CoresetInputs) -> np.ndarray:
    candidates = one_caption_each(inputs.generator, inputs.image_of)
    return candidates[herding(inputs.features(candidates), inputs.count)]


def _k_center(inputs: CoresetInputs) -> np.ndarray:
    candidates = one_caption_each(inputs.generator, inputs.image_of)
    first = int(inputs.generator.integers(len(candidates)))
    return candidates[k_center(inputs.features(candidates), inputs.count, first)]


def _forgetting(inputs: CoresetInputs) -> np.ndarray:
    candidates = one_caption_each(inputs.generator, inputs.image_of)
    events = np.mean([forgetting_events(history) for history in inputs.history()], axis=0)
    return most_forgotten(inputs.generator, events, candidates, inputs.image_of, inputs.count)


def _clip_filter(inputs: CoresetInputs) -> np.ndarray:
    candidates = one_caption_each(inputs.generator, inputs.image_of)
    seed = int(inputs.generator.integers(2**31))
    chosen = clip_filter(inputs.similarity()[candidates], inputs.features(candidates), inputs.count, seed)
    return candidates[chosen]


CORESETS: dict[str, Coreset] = {
    "random": _random, "herding": _herding, "k_center": _k_center, "forgetting": _forgetting,
    "clip_filter": _clip_filter,
}
