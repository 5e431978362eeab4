"""A pretrained backbone where none can be downloaded: the conv net learns the factors of a disjoint generated set.

The baselines start from an ImageNet classifier. This is the counterpart for the generated data (this work): supervised
learning of the factors (which colors, shapes, positions, ... are present), on scenes of a seed that no experiment uses,
without their captions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdw_jax.data.pairs import Split
from mdw_jax.errors import UserError
from mdw_jax.models.image.tower import Tower
from mdw_jax.runtime.rng import named_generator, named_key

_FACTORS = ("shape", "color", "size", "texture", "position")
_JOINT = (("color", "position"), ("shape", "color"), ("texture", "color"))


def factor_labels(split: Split) -> np.ndarray:
    """Which facts hold in each image, of any object: (N, L) float32 of zeros and ones.

    A fact is the value of a factor, the values of a pair of factors of one object, or the background.
    """
    columns = split.attributes
    facts = [[f"background {value}" for value in columns["background"]]]
    for prefix in ("", "second_", "third_"):
        objects = {name: columns[prefix + name] for name in _FACTORS}
        facts += [[f"{name} {value}" for value in objects[name]] for name in _FACTORS]
        facts += [[f"{a} {x}, {b} {y}" for x, y in zip(objects[a], objects[b], strict=True)] for a, b in _JOINT]
    names = sorted({fact for column in facts for fact in column if "none" not in fact})
    column_of = {name: i for i, name in enumerate(names)}
    labels = np.zeros((len(split.images), len(names)), np.float32)
    for values in facts:
        for row, fact in enumerate(values):
            if fact in column_of:
                labels[row, column_of[fact]] = 1
    return labels


def pretrain(tower: Tower, split: Split, *, epochs: int, seed: int, batch: int = 64, lr: float = 2e-3) -> Tower:
    """Train a tower on `factor_labels` (binary cross entropy, Adam with cosine decay).

    Args:
        tower: the tower to train.
        split: images of `scenes` and their attributes.
        epochs, batch, lr: of the training.
        seed: of first weights and batches.

    Returns:
        The same tower, its `init` returning the trained weights.

    Raises:
        UserError: there are fewer images than a batch has.
    """
    if len(split.images) < batch:
        raise UserError(f"pretraining takes batches of {batch} images, but model.pretrain_images is "
                        f"{len(split.images)}; set it to {batch} or more.")
    labels = factor_labels(split)
    share = labels.mean(0).clip(1e-3, 1 - 1e-3)
    params = {"tower": tower.init(named_key(seed, "pretrain")),
              "head": {"kernel": jnp.zeros((tower.width, labels.shape[1])), "bias": jnp.log(share / (1 - share))}}
    steps = len(labels) // batch
    optimizer = optax.adam(optax.cosine_decay_schedule(lr, epochs * steps))

    def loss(params, images, labels):
        features = tower.features(params["tower"], images.astype(jnp.float32) / 255)
        logits = features @ params["head"]["kernel"] + params["head"]["bias"]
        return optax.sigmoid_binary_cross_entropy(logits, labels).sum(-1).mean()

    @jax.jit
    def epoch(params, state, order, images, labels):
        def step(carry, rows):
            params, state = carry
            grads = jax.grad(loss)(params, images[rows], labels[rows])
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), order)[0]

    state = optimizer.init(params)
    images, labels = jnp.asarray(split.images), jnp.asarray(labels)
    for number in range(epochs):
        order = named_generator(seed, "pretrain", number).permutation(len(images))[: steps * batch]
        params, state = epoch(params, state, order.reshape(steps, batch), images, labels)
    return tower._replace(init=lambda key: params["tower"])
