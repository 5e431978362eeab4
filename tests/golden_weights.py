"""What the tests of pretrained towers share: weights that follow from their names, and the comparison with a file."""

import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from goldens import assert_close

from mdw_jax.models.image.pretrained import tower_of

# Nearly all of these tests' time is compiling, and optimizing gains them nothing.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def weight(name, shape):
    """The golden files' rule: a tensor follows from its PyTorch name."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return np.float32(0.5) + np.abs(z)
    if len(shape) >= 2:
        return z / np.float32(np.sqrt(np.prod(shape[1:])))
    return 1 + np.float32(0.1) * z if leaf in ("weight", "gain") else np.float32(0.1) * z


def read(path):
    """A golden file and its weights: (name -> array, PyTorch name -> array)."""
    with np.load(path) as file:
        golden = {key: file[key] for key in file}
    manifest = json.loads(str(golden["manifest"]))
    return golden, {name: weight(name, shape) for name, shape in manifest.items()}


def compare(path, name, spec):
    """One tower against the numbers of a golden file: features, pooled, and the gradient by the pixels."""
    golden, tensors = read(path)
    shape = (*golden["hw"].tolist(), 3)
    raw = np.random.RandomState(1234).standard_normal((2, *shape)).astype(np.float32)
    tower = tower_of(spec, name, shape, tensors)
    module, std = spec.module(shape), np.float32(spec.std)

    def objective(images, params):
        last = tower.feature_map(params, images)
        pooled = tower.pool(params, last)
        features = module.apply({"params": params}, last, method="finish") if spec.positions else last
        return jnp.sum(pooled * jnp.linspace(-1, 1, tower.width)), (features, pooled)

    gradient = jit(jax.grad(objective, has_aux=True))
    # The files' inputs are normalized already, and so are what their gradients are by: pixel = input * std + mean.
    by_pixels, (features, pooled) = gradient(raw * std + np.float32(spec.mean), tower.init(None))
    assert_close(features, golden["features"], 1e-4)
    assert_close(pooled, golden["pooled"], 1e-4)
    assert_close((by_pixels * std)[: len(golden["input_grad"])], golden["input_grad"], 2e-3)
