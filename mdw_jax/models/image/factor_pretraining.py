"""A pretrained backbone where none can be downloaded: the conv net learns to name what is in pictures of another world.

The peers start from an ImageNet classifier. This is the same thing for the embedded data: supervised learning of the
factors (which colours, shapes, places, ... are present), on scenes of a seed that no experiment uses, captions unseen.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdw_jax.data.pairs import Split
from mdw_jax.models.image.tower import Tower
from mdw_jax.runtime.rng import named_generator, named_key

_FACTORS = ("shape", "colour", "size", "texture", "position")
_JOINT = (("colour", "position"), ("shape", "colour"), ("texture", "colour"))


def factor_labels(split: Split) -> np.ndarray:
    """Which facts hold in each picture, any object: (N, L) float32 of zeros and ones.

    A fact is a factor with a value, a pair of factors of one object with their values, or the background.
    """
    columns = split.attributes
    facts = [[f"background {value}" for value in columns["background"]]]
    for prefix in ("", "second_", "third_"):
        objects = {name: columns[prefix + name] for name in _FACTORS}
        facts += [[f"{name} {value}" for value in objects[name]] for name in _FACTORS]
        facts += [[f"{a} {x}, {b} {y}" for x, y in zip(objects[a], objects[b], strict=True)] for a, b in _JOINT]
    names = sorted({fact for column in facts for fact in column if "none" not in fact})
    place = {name: i for i, name in enumerate(names)}
    labels = np.zeros((len(split.images), len(names)), np.float32)
    for column in facts:
        for row, fact in enumerate(column):
            if fact in place:
                labels[row, place[fact]] = 1
    return labels


def pretrain(tower: Tower, split: Split, *, epochs: int, seed: int, batch: int = 64, lr: float = 2e-3) -> Tower:
    """The same tower, its `init` returning weights trained on `factor_labels` of `split` (binary cross entropy, Adam)."""
    labels = factor_labels(split)
    rate = labels.mean(0).clip(1e-3, 1 - 1e-3)
    params = {"tower": tower.init(named_key(seed, "pretrain")),
              "head": {"kernel": jnp.zeros((tower.width, labels.shape[1])), "bias": jnp.log(rate / (1 - rate))}}
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
