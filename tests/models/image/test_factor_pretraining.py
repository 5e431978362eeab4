import jax
import numpy as np
import pytest

from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.errors import UserError
from mdw_jax.models.image.convnet import convnet
from mdw_jax.models.image.factor_pretraining import factor_labels, pretrain

PAIRS = scenes(train=1500, val=1, test=200, size=16, seed=3)


def test_labels_say_what_is_there():
    labels, columns = factor_labels(PAIRS.train), PAIRS.train.attributes
    assert set(np.unique(labels)) == {0, 1}
    # Each object has one value of five factors and three pairs of them; two objects may share some.
    objects = columns["objects"].astype(int)
    assert (labels.sum(1) <= 1 + 8 * objects).all() and (labels.sum(1) >= 1 + 8).all()


def probe(tower):
    """Share of test images whose first object's color a linear read-out of the pooled features finds."""
    features = jax.jit(lambda x: tower.features(tower.init(jax.random.key(0)), x))
    x, y = (np.asarray(features(split.images / np.float32(255))) for split in (PAIRS.train, PAIRS.test))
    colors, target = np.unique(PAIRS.train.attributes["color"], return_inverse=True)
    x, y = (np.concatenate([z, np.ones((len(z), 1))], 1) for z in (x, y))
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ np.eye(len(colors))[target])
    return np.mean(colors[(y @ weights).argmax(1)] == PAIRS.test.attributes["color"])


def test_pretraining_helps_a_probe():
    tower = convnet((16, 16, 3), (4, 2), (32, 48))
    trained = pretrain(tower, PAIRS.train, epochs=15, seed=0)
    before, after = probe(tower), probe(trained)
    assert after > before + 0.1, (before, after)


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(UserError, match="batches of 2000 images, but model.pretrain_images is"):
        pretrain(convnet((16, 16, 3), (4, 2), (32, 48)), PAIRS.train, epochs=1, seed=0, batch=2000)
