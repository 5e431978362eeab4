"""Selection: which real pairs a distillation starts from (docs/method.md, section 5).

`INITS` has each way as one function of a `StartInputs`. To add one, add its function here and its name to
`config/options.py`. Those that compare pairs do so in the experts' joint space: `joint_features` of the experts'
embeddings, of all networks side by side, so that `<f_a, f_b> / 2` is the mean, over networks and both modalities, of
the cosine of two pairs. Their candidates are the pairs that the experts' division calls clean, one for each image.
"""

import dataclasses
import heapq
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from mdw_jax.errors import UserError
from mdw_jax.method.coresets import clean_pairs, herding, k_means, random_pairs

MOST_CANDIDATES = 20_000  # of more clean images, so many random ones are compared; time grows with their square
_CHUNK = 2048  # candidates compared with all others at a time


@dataclasses.dataclass(frozen=True)
class StartInputs:
    """What a start may choose by. The functions compute only when they are called.

    Attributes:
        image_of: (K,) the image that each training caption is paired with.
        count: how many pairs to choose.
        generator: source of randomness of this set.
        clean_probability: -> (K,) the probability that each pair is clean, by the experts' division; all ones where
            the recipe does not divide.
        features: (n,) rows into the captions -> (n, d) float32 joint features of these pairs in the experts' space.
    """

    image_of: np.ndarray
    count: int
    generator: np.random.Generator
    clean_probability: Callable[[], np.ndarray]
    features: Callable[[np.ndarray], np.ndarray]


Start = Callable[[StartInputs], np.ndarray]  # returns (count,) different rows into the training captions


def most_probable_pairs(generator: np.random.Generator, image_of: np.ndarray, clean_probability: np.ndarray, count: int
                        ) -> np.ndarray:
    """The pairs that are most probably clean, one for each image; ties are drawn.

    Args:
        generator: source of randomness.
        image_of: (K,) the image of each caption.
        clean_probability: (K,) the probability that each pair is clean.
        count: how many pairs.

    Returns:
        (count,) rows into the captions, the most probable first.
    """
    rows = generator.permutation(len(image_of))
    rows = rows[np.argsort(-np.asarray(clean_probability)[rows], kind="stable")]
    _, first = np.unique(np.asarray(image_of)[rows], return_index=True)
    return rows[np.sort(first)[:count]]


@threadpool_limits.wrap(limits=1)  # as in coresets.py: the choice must not depend on the number of threads
def facility_location(features: np.ndarray, count: int) -> np.ndarray:
    """Greedy facility location: each step adds the item that raises `sum_n max_(c chosen) max(<f_n, f_c>, 0)` most.

    The sum is submodular, so the greedy choice reaches 1 - 1/e of the best sum (Nemhauser et al. 1978); gains only
    shrink, so a gain is computed again only when it comes to the top (lazy greedy, Minoux 1978).

    Args:
        features: (n, d) float32.
        count: how many items to choose.

    Returns:
        (count,) indices, in the order in which they were chosen. Of equal gains the first index wins.

    Raises:
        UserError: `count` exceeds n.
    """
    features = np.asarray(features, np.float32)
    if count > len(features):
        raise UserError(f"facility_location is to choose {count} pairs but there are only {len(features)} to choose "
                        "from; lower distill.pairs.")
    covered = np.zeros(len(features), np.float32)  # of each item, the similarity to the nearest chosen one
    gain = lambda part: np.maximum(features @ features[part].T - covered[:, None], 0).sum(0, dtype=np.float64)
    gains = np.concatenate([gain(slice(start, start + _CHUNK)) for start in range(0, len(features), _CHUNK)])
    queue = [(-value, item, 0) for item, value in enumerate(gains)]  # with the number chosen when it was computed
    heapq.heapify(queue)
    chosen: list[int] = []
    while len(chosen) < count:
        _, item, computed_at = heapq.heappop(queue)
        if computed_at == len(chosen):
            chosen.append(item)
            covered = np.maximum(covered, features @ features[item])
        else:
            heapq.heappush(queue, (-gain([item])[0], item, len(chosen)))
    return np.array(chosen)


def candidates(inputs: StartInputs) -> np.ndarray:
    """Rows of the pairs to compare: clean ones, one for each image, at most `MOST_CANDIDATES` or `inputs.count`."""
    image_of, probability = np.asarray(inputs.image_of), inputs.clean_probability()
    clean_images = len(np.unique(image_of[probability >= 0.5]))
    count = max(min(clean_images, MOST_CANDIDATES), inputs.count)
    return clean_pairs(inputs.generator, image_of, probability, count)


def _random(inputs: StartInputs) -> np.ndarray:
    return random_pairs(inputs.generator, inputs.image_of, inputs.count)


def _division(inputs: StartInputs) -> np.ndarray:
    return clean_pairs(inputs.generator, inputs.image_of, inputs.clean_probability(), inputs.count)


def _division_top(inputs: StartInputs) -> np.ndarray:
    return most_probable_pairs(inputs.generator, inputs.image_of, inputs.clean_probability(), inputs.count)


def _k_means(inputs: StartInputs) -> np.ndarray:
    rows = candidates(inputs)
    return rows[k_means(inputs.features(rows), inputs.count, int(inputs.generator.integers(2**31)))]


def _herding(inputs: StartInputs) -> np.ndarray:
    rows = candidates(inputs)
    return rows[herding(inputs.features(rows), inputs.count)]


def _facility_location(inputs: StartInputs) -> np.ndarray:
    rows = candidates(inputs)
    return rows[facility_location(inputs.features(rows), inputs.count)]


INITS: dict[str, Start] = {
    "random": _random, "division": _division, "division_top": _division_top, "k_means": _k_means, "herding": _herding,
    "facility_location": _facility_location,
}
