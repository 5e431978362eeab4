"""What the teachers of a network decide for it: who they are, which pairs are clean, which captions fit a risky image.

See docs/method.md, 2.2 (division), 2.4 (recovery), 2.5 (guidance) and 2.6 (teachers). The loop that calls these functions
is in `experts.py`.
"""

from typing import Any, NamedTuple

import numpy as np

from mdw_jax.config.options import DIVIDING
from mdw_jax.data.stored_rows import select_rows, stays_on_host
from mdw_jax.method.caption_search import SEARCHES
from mdw_jax.method.closed_form import ClosedForm
from mdw_jax.method.expert_step import Recipe, compiled_pair_losses
from mdw_jax.runtime.rng import named_generator

_PART_BYTES = 2**25  # of embeddings whose losses are computed at a time, where these stay on the host


class Teacher(NamedTuple):
    """What a finished teacher passes on: it divides, recovers and guides from the first step (docs/method.md, 2.6).

    Attributes:
        images: (N, D) embeddings of all images; their dot products with `texts` are its similarities. An array, or rows
            that stay on the host.
        texts: (K, D) of all captions, likewise.
        clean_probability: (K,) its division of the pairs; None: by its losses.
        form: the closed form that it is, where networks may start from it; None: it is none.
    """

    images: Any
    texts: Any
    clean_probability: Any = None
    form: ClosedForm | None = None


class Phase(NamedTuple):
    """Which parts of the method are active in an epoch.

    Attributes:
        divided: pairs are clean or risky.
        recovering: risky images are trained with captions that their teachers choose.
        guided: networks learn their teachers' matching probabilities.
    """

    divided: bool
    recovering: bool
    guided: bool


def epoch_phase(recipe: Recipe, epoch: int, finished_teachers: bool) -> Phase:
    """The phase of an epoch, counted from 0. With finished teachers there is no warm-up: all parts start at once."""
    divided = (epoch >= recipe.warmup or finished_teachers) and recipe.division in DIVIDING
    late = divided and (epoch >= recipe.recovery_start or finished_teachers)
    return Phase(divided, late and recipe.recovery_weight > 0, late and recipe.guidance_weight > 0)


def teacher_indices(network: int, networks: int, count: int) -> list[int]:
    """The teachers of a network: the other network of its pair, then the rest in turn; at most `count`, never itself.

    Args:
        network: index of the network; 2 e is A and 2 e + 1 is B of expert e.
        networks: how many there are.
        count: how many teachers it has at most.
    """
    others = [network ^ 1] + [n % networks for n in range(network + 1, network + networks)]
    return list(dict.fromkeys(others))[:count]


def all_pair_losses(embeddings: list[tuple], tau: float, image_of, batch: int, *, seed: int, epoch: int | str,
                    mismatch: bool = False) -> list[np.ndarray]:
    """InfoNCE loss of every pair within a random batch, a (K,) array for each network.

    Args:
        embeddings: (images (N, D), captions (K, D)) by each network.
        tau: temperature.
        image_of: (K,) row of each pair's image.
        batch: pairs in a batch, at most K.
        seed, epoch: name the draw of the batches.
        mismatch: whether every image gets a caption of another batch, so that pairs match by chance alone.
    """
    pairs, results = len(image_of), []
    batch = min(batch, pairs)
    for n, (v, t) in enumerate(embeddings):
        generator = named_generator(seed, "experts", n // 2, "division", epoch, n % 2)
        order = generator.permutation(pairs)
        order = np.concatenate([order, order[: -pairs % batch]]).reshape(-1, batch)  # the last batch borrows rows
        losses = np.empty(pairs)
        captions = np.roll(order, 1, axis=0) if mismatch else order
        losses[order.ravel()] = _losses_of_batches(v, t, image_of[order], captions, tau).ravel()
        results.append(losses)
    return results


def _losses_of_batches(v, t, images: np.ndarray, captions: np.ndarray, tau: float) -> np.ndarray:
    """(steps, B) losses of the pairs of images[i] and captions[i], rows of embeddings; of stored ones a part at a time."""
    pair_losses = compiled_pair_losses(tau)
    if not stays_on_host(v):
        return np.asarray(pair_losses(v, t, images, captions))
    steps = max(_PART_BYTES // (8 * images.shape[1] * v.shape[1]), 1)

    def of_part(start: int) -> np.ndarray:
        rows, words = images[start:start + steps], captions[start:start + steps]
        places = np.arange(rows.size).reshape(rows.shape)
        return np.asarray(pair_losses(v[rows.ravel()], t[words.ravel()], places, places))

    return np.concatenate([of_part(start) for start in range(0, len(images), steps)])


def recovery_candidates(teacher, image_of, clean, k: int, search: str = "exact",
                        generator: np.random.Generator | None = None) -> np.ndarray:
    """(N, k) captions nearest to each image that has a risky pair, by its teacher; -1 for all other images.

    Args:
        teacher: its embeddings of images (N, D) and captions (K, D).
        image_of: (K,) row of each pair's image.
        clean: (K,) bool.
        k: captions for each image.
        search: how they are found, an entry of `caption_search.SEARCHES`.
        generator: source of the search's own draws.
    """
    images = np.unique(image_of[~clean])
    candidates = np.full((len(teacher[0]), k), -1, np.int32)
    if len(images):
        candidates[images] = SEARCHES[search](select_rows(teacher[0], images), teacher[1], k, generator)
    return candidates


def recovered_captions(generator: np.random.Generator, candidates, image_of, clean) -> np.ndarray:
    """(K,) captions to train with: a clean pair keeps its own, a risky one draws from its image's `candidates`."""
    drawn = candidates[image_of, generator.integers(candidates.shape[1], size=len(image_of))]
    return np.where(clean, np.arange(len(image_of)), drawn)
