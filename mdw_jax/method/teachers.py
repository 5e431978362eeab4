"""What the teachers of a network decide for it: who they are, which pairs are clean, which captions fit a risky image.

See docs/method.md, 2.2 (division), 2.4 (recovery), 2.5 (guidance) and 2.6 (teachers). The loop that calls these functions
is in `experts.py`.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from mdw_jax.config.options import DIVIDING
from mdw_jax.data.streaming import concat_map
from mdw_jax.method.expert_step import Recipe, compiled_pair_losses
from mdw_jax.runtime.rng import named_generator


class Teacher(NamedTuple):
    """What a finished teacher passes on: it divides, recovers and guides from the first step (docs/method.md, 2.6).

    Attributes:
        images: (N, D) embeddings of all images; their dot products with `texts` are its similarities.
        texts: (K, D) of all captions.
        clean_probability: (K,) its division of the pairs; None: by its losses.
    """

    images: Any
    texts: Any
    clean_probability: Any = None


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
    pair_losses = compiled_pair_losses(tau)
    for n, (v, t) in enumerate(embeddings):
        generator = named_generator(seed, "experts", n // 2, "division", epoch, n % 2)
        order = generator.permutation(pairs)
        order = np.concatenate([order, order[: -pairs % batch]]).reshape(-1, batch)  # the last batch borrows rows
        losses = np.empty(pairs)
        captions = np.roll(order, 1, axis=0) if mismatch else order
        losses[order.ravel()] = np.asarray(pair_losses(v, t, image_of[order], captions)).ravel()
        results.append(losses)
    return results


def top_captions(images, texts, k: int) -> np.ndarray:
    """The k captions nearest to each image, best first.

    Args:
        images: (N, D) unit embeddings.
        texts: (K, D) unit embeddings.
        k: at most K.

    Returns:
        (N, k) rows of captions.
    """
    similarity = jax.jit(lambda rows, texts: rows @ texts.T)  # an argument: XLA would transpose a constant while compiling

    def nearest(rows):
        values = np.asarray(similarity(rows, texts))
        top = np.argpartition(-values, k - 1, axis=1)[:, :k]  # on a CPU far faster than `jax.lax.top_k`
        return np.take_along_axis(top, np.argsort(-np.take_along_axis(values, top, 1), 1, kind="stable"), 1)

    return np.asarray(concat_map(nearest, images))


def recovery_candidates(teacher, image_of, clean, k: int) -> np.ndarray:
    """(N, k) captions nearest to each image that has a risky pair, by its teacher; -1 for all other images.

    Args:
        teacher: its embeddings of images (N, D) and captions (K, D).
        image_of: (K,) row of each pair's image.
        clean: (K,) bool.
        k: captions for each image.
    """
    images = np.unique(image_of[~clean])
    candidates = np.full((len(teacher[0]), k), -1)
    if len(images):
        candidates[images] = top_captions(teacher[0][images], teacher[1], k)
    return candidates


def recovered_captions(generator: np.random.Generator, candidates, image_of, clean) -> np.ndarray:
    """(K,) captions to train with: a clean pair keeps its own, a risky one draws from its image's `candidates`."""
    drawn = candidates[image_of, generator.integers(candidates.shape[1], size=len(image_of))]
    return np.where(clean, np.arange(len(image_of)), drawn)
