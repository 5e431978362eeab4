"""Prototypes: the means of clusters of clean pairs, and images whose frozen features are those means (this work).

See docs/method.md, section 5.7. A mean over a cluster keeps what its pairs share and averages out what is one
photograph's own, so a student learns more from M prototypes than from M real pairs. The text of a prototype is a feature
vector already. Its image is found by gradient descent on the pixels, from the real image nearest to the mean:
`|f(x) - c|^2`, in units of the mean squared distance of the prototypes from their center (feature inversion, Mahendran
and Vedaldi 2015). Images do not interact, so any number is done in parts, in constant memory.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from mdw_jax.errors import UserError


class Prototypes(NamedTuple):
    """Clusters of pairs.

    Attributes:
        image_features: (M, F) mean frozen features of each cluster's images.
        texts: (M, d) mean text features, of unit length if those of the captions are.
        nearest: (M,) the member whose image features are nearest to the mean, an index into the pairs.
    """

    image_features: np.ndarray
    texts: np.ndarray
    nearest: np.ndarray


@threadpool_limits.wrap(limits=1)  # more threads gain little, and the clusters would depend on how many there are
def prototypes(joint: np.ndarray, image_features: np.ndarray, texts: np.ndarray, count: int, seed: int) -> Prototypes:
    """Cluster pairs by mini-batch k-means and average each cluster.

    Args:
        joint: (n, D) joint features of the pairs, by which they are clustered (`coresets.joint_features`).
        image_features: (n, F) frozen features of their images.
        texts: (n, d) frozen features of their captions.
        count: M, how many clusters.
        seed: of k-means.

    Raises:
        UserError: there are fewer pairs than clusters.
    """
    if len(joint) < count:
        raise UserError(f"{count} prototypes need as many clean pairs, and there are only {len(joint)}; lower "
                        "distill.pairs.")
    means = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=4096).fit(np.asarray(joint, np.float32))
    labels = _without_empty_clusters(means, joint)
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.searchsorted(labels[order], np.arange(1, count)))
    centers = np.stack([image_features[rows].mean(0) for rows in members])
    mean_texts = np.stack([texts[rows].mean(0) for rows in members])
    length = np.linalg.norm(texts, axis=1).mean()
    mean_texts *= length / np.maximum(np.linalg.norm(mean_texts, axis=1, keepdims=True), 1e-12)
    nearest = np.array([rows[((image_features[rows] - center) ** 2).sum(1).argmin()]
                        for rows, center in zip(members, centers, strict=True)])
    return Prototypes(centers.astype(np.float32), mean_texts.astype(np.float32), nearest)


def _without_empty_clusters(means: MiniBatchKMeans, joint: np.ndarray) -> np.ndarray:
    """(n,) cluster of each pair. An empty cluster gets the pair farthest from its own center, of a larger cluster."""
    labels = means.labels_.astype(int)
    distance = ((joint - means.cluster_centers_[labels]) ** 2).sum(1)
    for cluster in np.setdiff1d(np.arange(means.n_clusters), labels):
        sizes = np.bincount(labels, minlength=means.n_clusters)
        pair = np.where(sizes[labels] > 1, distance, -1).argmax()
        labels[pair], distance[pair] = cluster, 0
    return labels


@dataclasses.dataclass(frozen=True)
class Inversion:
    """How images are fitted to features.

    Attributes:
        steps: of Adam; 0 leaves the images as they are.
        lr: learning rate of the pixels, which decays by a cosine.
        clip: keep pixels in [0, 1].
    """

    steps: int
    lr: float
    clip: bool


def make_inversion(features: Callable, inversion: Inversion) -> Callable:
    """The function that fits images to features.

    Args:
        features: (model, params, images (n, H, W, C)) -> frozen features (n, F).
        inversion: how.

    Returns:
        (model, params, images, targets (n, F), scale) -> images, and (n,) `|f(x) - c|^2 / scale` of each. `scale` is the
        mean squared distance of the targets from their mean.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(inversion.lr, max(inversion.steps, 1)))

    def errors(model, params, images, targets, scale):
        return ((features(model, params, images) - targets) ** 2).sum(-1) / scale

    def invert(model, params, images, targets, scale) -> tuple[Any, Any]:
        def step(state, _):
            images, optimizer_state = state
            gradient = jax.grad(lambda x: errors(model, params, x, targets, scale).sum())(images)
            updates, optimizer_state = optimizer.update(gradient, optimizer_state)
            images = images + updates
            return (jnp.clip(images, 0, 1) if inversion.clip else images, optimizer_state), None

        (images, _), _ = jax.lax.scan(step, (images, optimizer.init(images)), None, length=inversion.steps)
        return images, errors(model, params, images, targets, scale)

    return invert
