"""Losses of a preset's expert networks by epoch: on val, and on training pairs, whose losses show memorization."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.analysis.certificate import estimate
from mdw_jax.analysis.certificate.estimate import Memory, Units
from mdw_jax.data.noise import Noise
from mdw_jax.models.embedding import Inputs, embeddings
from mdw_jax.pipeline.prepared import Prepared


class Sample(NamedTuple):
    """The pairs that are measured, the same at every epoch.

    Attributes:
        candidates: rows of test images and of test captions, (sets, B - 1) each. Images and captions are drawn
            independently: which of them belong together is not used.
        val: {measure: groups of units} for clean_risk, noisy_risk and shuffled_risk.
        train: {measure: (images, captions)} rows of training pairs; see `training_pairs`.
    """

    candidates: tuple[np.ndarray, np.ndarray]
    val: dict[str, list[Units]]
    train: dict[str, tuple[np.ndarray, np.ndarray]]


class EpochLosses(NamedTuple):
    """Losses at one epoch, means over networks.

    Attributes:
        val: {measure: (losses, units)}, every loss on val.
        train: {measure: (P,)}, the first loss on training pairs.
    """

    val: dict[str, np.ndarray]
    train: dict[str, np.ndarray]


def draw_sample(generator: Callable[..., np.random.Generator], noise: Noise, prepared: Prepared, settings: ConfigDict,
                batch: int) -> Sample:
    """Choose the pairs to measure.

    Args:
        generator: the random generator of each name.
        noise: which image each training caption is paired with.
        prepared: the data.
        settings: `config.certify`.
        batch: number B of candidates, a pair's own among them.
    """
    test, image_of = prepared.test, np.asarray(prepared.val.image_of)
    candidates = estimate.candidate_rows(generator("candidates"), len(test.images), len(test.texts), batch - 1,
                                         settings.candidates)
    as_given = estimate.as_given(image_of)
    noisy = as_given if noise.true_rate is None else estimate.with_noise(
        generator("noise", noise.rate), image_of, noise.true_rate)
    val = {"clean_risk": [as_given], "shuffled_risk": estimate.matchings(generator("matchings"), image_of, 4),
           "noisy_risk": [noisy]}
    return Sample(candidates, val, training_pairs(generator("pairs", noise.sha256), noise, settings.pairs))


def training_pairs(generator: np.random.Generator, noise: Noise, limit: int) -> dict[str, tuple]:
    """{measure: (images, captions)} of up to `limit` training pairs each, to measure memorization.

    `train_matched` and `train_mismatched` are pairs that were trained on; `train_unseen` are the images and captions of
    `train_mismatched` in pairs that were not. Where the truth is unknown there is only `train_given`.
    """
    pick = lambda rows: np.sort(generator.permutation(rows)[:limit])
    image_of, true = np.asarray(noise.image_of), np.asarray(noise.true_image_of)
    if noise.mismatched is None:
        rows = pick(np.arange(len(image_of)))
        return {"train_given": (image_of[rows], rows)}
    matched = pick(np.flatnonzero(~noise.mismatched))
    pairs = {"train_matched": (image_of[matched], matched)} if len(matched) else {}
    wrong = pick(np.flatnonzero(noise.mismatched))
    other = generator.permutation(wrong)
    # The same images and captions, except for pairs that are right by chance or as they were trained on.
    unseen = (image_of[other] != image_of[wrong]) & (true[other] != image_of[wrong])
    if unseen.sum() > 1:
        pairs |= {"train_mismatched": (image_of[wrong[unseen]], wrong[unseen]),
                  "train_unseen": (image_of[wrong[unseen]], other[unseen])}
    return pairs


def measure_losses(sample: Sample, prepared: Prepared, networks: Iterable[Any], losses: tuple) -> EpochLosses:
    """Losses of the networks at one epoch, averaged over networks.

    Args:
        sample: of `draw_sample`.
        prepared: the data and the model.
        networks: parameters of each network.
        losses: (name, q) of each loss; training pairs are measured by the first.
    """
    measured = [_losses_of_network(sample, prepared, params, losses) for params in networks]
    return EpochLosses(
        {name: np.concatenate(list(np.mean([val[name] for val, _ in measured], 0)), -1) for name in sample.val},
        {name: np.mean([train[name] for _, train in measured], 0) for name in sample.train})


def _losses_of_network(sample: Sample, prepared: Prepared, params: Any, losses: tuple) -> tuple[dict, dict]:
    """{measure: [(losses, units) per group]} on val and {measure: (P,)} on training pairs."""
    model, test = prepared.model, prepared.test
    images, captions = sample.candidates
    sets, size = images.shape
    candidates = [part.reshape(sets, size, -1) for part in embeddings(
        model, params, Inputs(test.images[images.ravel()], test.texts[captions.ravel()], None))]
    v, t = embeddings(model, params, prepared.val)
    val = {name: [estimate.by_unit(estimate.losses_among(losses, v[units.images], t[units.captions], candidates,
                                                         model.tau), units) for units in groups]
           for name, groups in sample.val.items()}
    train = {}
    for name, (images, captions) in sample.train.items():
        texts = jnp.asarray(prepared.captions.train[captions])
        v, t = embeddings(model, params, Inputs(prepared.train_images[images], texts, None))
        train[name] = estimate.losses_among(losses[:1], v, t, candidates, model.tau)[0]
    return val, train


def memorization(sample: Sample, by_epoch: Sequence[EpochLosses]) -> list[Memory]:
    """How far mismatched pairs were memorized at each epoch; nothing where it is unknown which pairs are mismatched."""
    if not {"train_mismatched", "train_matched"} <= sample.train.keys():
        return []
    _, position = np.unique(sample.train["train_mismatched"][0], return_inverse=True)
    of_image = lambda losses: np.bincount(position, losses) / np.bincount(position)
    return [estimate.memorized(of_image(epoch.train["train_mismatched"]), of_image(epoch.train["train_unseen"]),
                               float(epoch.train["train_matched"].mean())) for epoch in by_epoch]
