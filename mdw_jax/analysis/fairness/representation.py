"""Rows of fairness.csv on representation: shares of groups in the real data and in every set of a run.

Distilled images and texts belong to no group. They count for the groups of their nearest real training images and
captions, by features of the frozen encoders. Held-out real pairs are counted in the same way, as a control.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.analysis.fairness import metrics
from mdw_jax.analysis.fairness.attributes import ALL, REST, Attribute
from mdw_jax.analysis.fairness.metrics import Interval
from mdw_jax.data.pairs import Split
from mdw_jax.data.resizing import seen_images
from mdw_jax.data.streaming import concat_map
from mdw_jax.io.distilled_set import load_for_display
from mdw_jax.models.embedding import nearest
from mdw_jax.pipeline.distill import distill_stage
from mdw_jax.pipeline.prepared import Prepared, backbone_features
from mdw_jax.pipeline.preset_run import PresetRun
from mdw_jax.runtime.rng import named_generator


class Neighbors(NamedTuple):
    """Rows of the nearest real training images and captions, (..., k) each."""

    images: np.ndarray
    captions: np.ndarray


def representation_rows(attributes: Sequence[Attribute], presets: Sequence[PresetRun], prepared: Prepared,
                        settings: ConfigDict, seed: int) -> list[dict]:
    """The rows of the real data, of val as a control, and of every preset's sets.

    Args:
        attributes: whose groups are counted.
        presets: of the run; sets that are missing are distilled.
        prepared: the data and the model.
        settings: `config.fairness`.
        seed: of the intervals.
    """
    train, val = prepared.pairs.train, prepared.pairs.val
    find = _neighbor_search(prepared, settings.neighbors)
    captioned, caption = np.unique(val.image_of, return_index=True)
    control = find(prepared.val.images, prepared.texts.val[caption], features=prepared.model.mode == "projection")
    control = control._replace(images=control.images[captioned])
    neighbors = {preset.name: _neighbors_of_sets(find, preset, prepared) for preset in presets if preset.spec.has_sets}
    rows = []
    for attribute in attributes:
        generator = lambda name: named_generator(seed, "fairness", name, attribute.name)
        rows += real_rows(attribute, train, presets)
        rows += control_rows(attribute._replace(val=attribute.val[captioned]), *control, train.image_of,
                             generator("val"), settings.resamples)
        for name, of_sets in neighbors.items():
            rows += distilled_rows(attribute, name, *of_sets, train.image_of, generator(name), settings.resamples)
    return rows


def _neighbor_search(prepared: Prepared, count: int) -> Callable[..., Neighbors]:
    """A function of images (or, if `features`, of their features) and of text features."""
    forward, real = backbone_features(prepared)

    def find(images, texts, features: bool = False) -> Neighbors:
        images = images if features else concat_map(forward, images, 100)
        return Neighbors(nearest(images, real, count), nearest(texts, prepared.texts.train, count))

    return find


def _neighbors_of_sets(find: Callable[..., Neighbors], preset: PresetRun, prepared: Prepared) -> Neighbors:
    """(S, M, k) neighbors of all sets of a preset."""
    sets = [load_for_display(folder)[0] for folder in distill_stage(preset, prepared)]
    neighbors = [find(jnp.asarray(seen_images(distilled)), prepared.text_features_of(distilled.texts))
                 for distilled in sets]
    return Neighbors(*map(np.stack, zip(*neighbors, strict=True)))


def real_rows(attribute: Attribute, train: Split, presets: Sequence[PresetRun]) -> list[dict]:
    """Shares of the real training data: as truly paired, and as each noise draw of the presets pairs it.

    By image, and by caption: each caption counts for the groups of the image it is paired with. Under noise an image's
    groups by words are those that the captions it is paired with mention.
    """
    draws = {preset.noise.sha256: preset.noise for preset in presets if preset.noise.true_rate}
    pairings = {"real": train.image_of} | {f"real, {noise.label} mismatched": noise.image_of
                                           for noise in draws.values()}
    rows = []
    for name, image_of in pairings.items():
        members = attribute.train
        if attribute.mentioned is not None:
            members = metrics.members_by_words(attribute.mentioned, image_of, len(members))
        members = metrics.with_rest(members)
        for modality, counted in (("image", members), ("text", members[image_of])):
            rows += _group_rows(attribute, name, modality, "share", metrics.share(counted), len(counted))
    return rows


def distilled_rows(attribute: Attribute, name: str, images, texts, image_of, generator: np.random.Generator,
                   resamples: int) -> list[dict]:
    """Shares of one preset's sets and their ratios to the real ones.

    Args:
        attribute: whose groups are counted.
        name: of the preset.
        images: (S, M, k) nearest training images of each distilled image.
        texts: (S, M, k) nearest training captions of each distilled text.
        image_of: (K,) the image that each training caption truly describes, for whose groups it counts.
        generator: of the intervals.
        resamples: of the bootstrap.
    """
    members, rows = metrics.with_rest(attribute.train), []
    for modality, near, real in (("image", images, members), ("text", image_of[texts], members[image_of])):
        rows += _share_rows(attribute, name, modality, members[near].mean(2), real.mean(0), generator, resamples)
    return rows


def control_rows(attribute: Attribute, images, texts, image_of, generator: np.random.Generator,
                 resamples: int) -> list[dict]:
    """The same of real pairs: val images with one caption each. The ratio is to val's own true shares.

    Args: as `distilled_rows`, with images and texts (N_val, k).
    """
    rows, members, held_out = [], metrics.with_rest(attribute.train), metrics.with_rest(attribute.val)
    for modality, near in (("image", images), ("text", image_of[texts])):
        rows += _share_rows(attribute, "val", modality, members[near].mean(1)[None], held_out.mean(0), generator,
                            resamples)
        value, chance = metrics.neighbor_consistency(held_out, members, near)
        rows.append({"attribute": attribute.name, "group": ALL, "source": "val", "modality": modality,
                     "measure": "neighbor_consistency", "value": value, "chance": chance, "count": len(near)})
    return rows


def _share_rows(attribute: Attribute, name: str, modality: str, counted, real, generator: np.random.Generator,
                resamples: int) -> list[dict]:
    """Shares of (S, M, G) counted pairs, and their ratios to the (G,) shares `real`."""
    share, ratio = metrics.amplification(counted, real, generator, resamples)
    pairs = counted.shape[0] * counted.shape[1]
    return [*_group_rows(attribute, name, modality, "share", share, pairs),
            *_group_rows(attribute, name, modality, "ratio", ratio, pairs)]


def _group_rows(attribute: Attribute, name: str, modality: str, measure: str, by_group: Interval,
                count: int) -> list[dict]:
    """One row per group of (G + 1,) numbers, the last for images without a value."""
    return [{"attribute": attribute.name, "group": group, "source": name, "modality": modality, "measure": measure,
             "count": count, **by_group.at(g).columns()}
            for g, group in enumerate((*attribute.values, REST))]
