"""Real pairs chosen from the noisy training set: baselines, and starting points of distillation.

`herding`, `k_center` and `clip_filter` choose among candidates by their joint features; with `one_caption_each` as the
candidates, what they choose are different images:

    rows = one_caption_each(generator, image_of)
    rows[herding(joint_features(images, texts[rows], image_of[rows]), count)]
"""

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from mdw_jax.errors import UserError

_CHUNK = 4096  # rows of joint features filled at a time
# Many small products: more threads gain little, are ten times slower in k-means where cores are shared, and would let
# the choice depend, by rounding, on how many there are.
_one_thread = threadpool_limits.wrap(limits=1)


def one_caption_each(generator: np.random.Generator, image_of):
    """One of the captions paired with each image, at random: rows (N,) into the captions, in the order of the images.

    image_of: (K,) the image of each caption. An image without captions has no row.
    """
    image_of = np.asarray(image_of)
    rows = generator.permutation(len(image_of))
    _, first = np.unique(image_of[rows], return_index=True)
    return rows[first]


def random_pairs(generator: np.random.Generator, image_of, count: int):
    """`count` different images, each with one of the captions paired with it: rows (count,) into the captions."""
    return generator.permutation(one_caption_each(generator, image_of))[:count]


def clean_pairs(generator: np.random.Generator, image_of, clean_probability, count: int):
    """Like `random_pairs`, among pairs the experts' division calls clean (`w >= 0.5`); topped up by the next best."""
    probability = np.asarray(clean_probability)
    rows = np.flatnonzero(probability >= 0.5)
    chosen = rows[random_pairs(generator, np.asarray(image_of)[rows], count)]
    # Top up by the next best pairs, of images not chosen yet.
    image_of = np.asarray(image_of)
    best = np.argsort(-probability, kind="stable")
    best = best[~np.isin(image_of[best], image_of[chosen])]
    _, first = np.unique(image_of[best], return_index=True)
    return np.concatenate([chosen, best[np.sort(first)][: count - len(chosen)]])


def joint_features(images, texts, image_of):
    """What a pair is to the coresets: its image's and its caption's frozen features, each of unit length, side by side.

    images: (N, F); texts: (K, d); image_of: (K,) the image each caption is paired with. Returns (K, F + d) float32, so
    that both modalities weigh the same: the squared distance of two pairs is the sum of `2 - 2 cos` over them (ours).
    A zero feature stays zero.
    """
    images, image_of = _unit(images), np.asarray(image_of)
    joint = np.empty((len(texts), images.shape[1] + np.shape(texts)[1]), np.float32)
    joint[:, images.shape[1]:] = _unit(texts)
    for start in range(0, len(joint), _CHUNK):  # spares a second (K, F) array
        part = slice(start, start + _CHUNK)
        joint[part, :images.shape[1]] = images[image_of[part]]
    return joint


def _unit(x):
    """Rows of unit length, float32."""
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)


@_one_thread
def herding(features, count: int):
    """Greedy mean matching (Welling 2009, without repeats as in iCaRL; VLD's baseline): indices (count,), in order.

    features: (n, d) float32, of length about 1. Step k takes the item x that brings the mean of the chosen nearest to
    the mean of all: the least `|mu - (x + sum of chosen) / k|`. Raises UserError where `count` exceeds n.
    """
    features = np.asarray(features, np.float32)
    _require_enough("herding", count, len(features))
    # |x + total - k mu|^2 less what is the same for every x: |x|^2 - 2 <x, k mu - total>.
    squared = np.einsum("nd,nd->n", features, features)
    mean = features.mean(0, dtype=np.float64)
    total = np.zeros_like(mean)
    chosen = np.empty(count, int)
    for k in range(count):
        wanted = ((k + 1) * mean - total).astype(np.float32)
        chosen[k] = np.argmin(squared - 2 * (features @ wanted))
        squared[chosen[k]] = np.inf
        total += features[chosen[k]]
    return chosen


@_one_thread
def k_center(features, count: int, first: int):
    """Greedy k-center (Sener & Savarese 2018): indices (count,), in order, starting with `first`.

    features: (n, d) float32, of length about 1. Each step takes the item farthest (Euclidean) from its nearest chosen
    one. Raises UserError where `count` exceeds n.
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


def forgetting_events(history):
    """How often each pair was forgotten: right at one epoch and wrong at the next (Toneva et al. 2019).

    history: (epochs, K) bool, whether a pair was matched right within its batch at that epoch. Returns (K,) int. A pair
    that was never right gets `epochs`, more than any pair can reach by forgetting (Toneva's code does the same).
    """
    history = np.asarray(history, bool)
    events = (history[:-1] & ~history[1:]).sum(0)
    return np.where(history.any(0), events, len(history))


def most_forgotten(generator: np.random.Generator, events, rows, image_of, count: int):
    """The pairs forgotten most often (Toneva et al. 2019), one an image: rows (count,), the most forgotten first.

    events: (K,) forgetting events of every caption's pair, the never learned ones largest (`forgetting_events`); rows:
    the candidates, rows into the captions; image_of: (K,) the image of each caption. Ties are in random order. Raises
    UserError where `count` exceeds the number of images among the candidates.

    Pairs that are never learned come first: in noisy data, expect many mismatched ones among them.
    """
    rows = generator.permutation(np.asarray(rows))
    rows = rows[np.argsort(-np.asarray(events)[rows], kind="stable")]
    _, first = np.unique(np.asarray(image_of)[rows], return_index=True)
    _require_enough("most_forgotten", count, len(first))
    return rows[np.sort(first)[:count]]


@_one_thread
def clip_filter(similarity, features, count: int, seed: int, drop: float = 0.2):
    """Filter by similarity, then cluster (after PDS): indices (count,) into `features`, one a cluster.

    similarity: (n,) image-text similarity of each pair under a frozen two-tower model; features: (n, d) float32 joint
    features; drop: the share of pairs, those of lowest similarity, left out. The rest is clustered into `count`
    clusters by mini-batch k-means (`seed`), and every centroid is stood for by the real pair nearest to it. No pair
    stands for two: the closer centroid has it, and the other takes its nearest among those left. That holds for the
    centroid of an empty cluster too. Raises UserError where `count` exceeds the pairs left or `drop` is not in [0, 1).

    Departs from PDS, which clusters each modality by itself, matches image to text clusters by a Hungarian assignment
    on how many pairs they share, takes the mean feature of a matched couple as prototype and has a diffusion model
    synthesise the image. Here both modalities are clustered at once and a real pair stands for a cluster: nothing is
    generated.
    """
    if not 0 <= drop < 1:
        raise UserError(f"clip_filter cannot drop a share of {drop} of the pairs; give one in [0, 1), such as 0.2.")
    kept = np.sort(np.argsort(similarity, kind="stable")[round(drop * len(similarity)):])
    _require_enough("clip_filter", count, len(kept))
    kept_features = np.asarray(features, np.float32)[kept]
    distance = MiniBatchKMeans(count, random_state=seed).fit(kept_features).transform(kept_features)
    chosen = np.empty(count, int)
    for _ in range(count):
        pair, centroid = np.unravel_index(distance.argmin(), distance.shape)
        chosen[centroid] = kept[pair]
        distance[pair] = distance[:, centroid] = np.inf
    return chosen


def _require_enough(method: str, count: int, available: int):
    if count > available:
        raise UserError(f"{method} is to choose {count} pairs but there are only {available} to choose from; lower "
                        "distill.pairs.")
