"""Tracks of a recipe at the end of training: their weight, and how much of it is on mismatched pairs."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mdw_jax.analysis.certificate import estimate
from mdw_jax.data.noise import Noise
from mdw_jax.method.caption_search import top_captions
from mdw_jax.method.expert_step import Recipe
from mdw_jax.models.embedding import Inputs, embeddings, ensemble_embeddings
from mdw_jax.pipeline.prepared import Prepared


class Track(NamedTuple):
    """One part of the training loss.

    Attributes:
        name: "clean", "tolerant" or "recovered".
        weight: sum of its pairs' weights.
        source: where its rate is from: "known", "given" or "estimated" (posteriors of the division).
        rate: share of the weight on mismatched pairs.
    """

    name: str
    weight: float
    source: str
    rate: float


def undivided_tracks(recipe: Recipe, pairs: int, rates: Sequence[tuple[str, float]]) -> list[Track]:
    """Tracks of a recipe that does not divide the pairs, at each (source, noise rate)."""
    weights = {"clean": {"clean": 1.0}, "tolerant": {"tolerant": 1.0},
               "both": {"clean": 1.0, "tolerant": recipe.tolerant_weight}}[recipe.division]
    return [Track(name, weight * pairs, source, rate) for source, rate in rates for name, weight in weights.items()]


def divided_tracks(recipe: Recipe, noise: Noise, probability: np.ndarray, recovered_rate: float | None) -> list[Track]:
    """Tracks of a recipe that divides the pairs, by the truth where it is known and by the division's posteriors.

    Args:
        recipe: the recipe.
        noise: which image each caption is paired with.
        probability: (K,) posterior of each pair that it is matched.
        recovered_rate: of `recovered_rate`, None where the truth is unknown or nothing is recovered.
    """
    clean, mismatched = probability >= 0.5, noise.mismatched
    recovers = has_recovery(recipe)
    rest = "recovered" if recovers else "tolerant"
    weight = recipe.recovery_weight if recovers else recipe.tolerant_weight
    tracks = []
    for source, truth in (("known", mismatched), ("estimated", None)):
        if source == "known" and truth is None:
            continue
        if recovers:  # nothing is known of pseudo-captions where nothing is known of the captions
            rest_rate = 1.0 if truth is None else recovered_rate
        else:
            rest_rate = estimate.residual_noise(probability, (~clean).astype(float), truth)
        tracks += [Track("clean", float(probability[clean].sum()), source,
                         estimate.residual_noise(probability, np.where(clean, probability, 0), truth)),
                   Track(rest, weight * float((~clean).sum()), source, rest_rate)]
    return [track for track in tracks if track.weight > 0]


def has_recovery(recipe: Recipe) -> bool:
    """Whether the recipe's last epoch draws pseudo-captions for risky images."""
    late = recipe.teacher_count or recipe.epochs > recipe.recovery_start
    return recipe.recovery_weight > 0 and bool(late)


def recovered_rate(generator: np.random.Generator, recipe: Recipe, noise: Noise, probability: np.ndarray,
                   prepared: Prepared, networks: Sequence[Any], limit: int) -> float:
    """The share of pseudo-captions that do not belong to their image.

    Args:
        generator: source of the choice of images.
        recipe: the recipe.
        noise: which image each caption is paired with, and truly belongs to.
        probability: (K,) posterior of each pair that it is matched.
        prepared: the data and the model.
        networks: parameters of the networks that recover together.
        limit: number of risky images to measure, at most.

    Returns:
        The share, NaN where no pair is risky.
    """
    risky = np.unique(noise.image_of[~(probability >= 0.5)])
    if not len(risky):
        return math.nan
    images = np.sort(generator.permutation(risky)[:limit])
    pairs = Inputs(prepared.train_images[images], jnp.asarray(prepared.captions.train), None)
    embedded = [embeddings(prepared.model, params, pairs) for params in networks]
    v, t = (ensemble_embeddings([one[branch] for one in embedded]) for branch in (0, 1))
    nearest = top_captions(v, t, recipe.recovery_top_k)
    return float((noise.true_image_of[nearest] != images[:, None]).mean())
