import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.models.image.mobilenet import mobilenet


def write_weights(path, seed=0):
    """A three-layer network in the `.q8.npz` form: a convolution, a depthwise one, a residual pointwise one, pooling."""
    generator = np.random.default_rng(seed)
    shapes = {"conv00": (3, 3, 3, 8), "conv01": (3, 3, 1, 8), "conv02": (1, 1, 8, 8)}
    arrays = {}
    for name, shape in shapes.items():
        arrays[f"{name}/kernel_q"] = generator.integers(0, 256, shape).astype(np.uint8)
        arrays[f"{name}/scale"] = np.array([0.01], np.float32)
        arrays[f"{name}/zero"] = np.array([120], np.int32)
        arrays[f"{name}/bias"] = generator.normal(size=shape[-1]).astype(np.float32)
    ops = [
        {"op": "CONV_2D", "in": [0], "out": 1, "stride": 2, "pad": "SAME", "act": 3, "w": "conv00"},
        {"op": "DEPTHWISE_CONV_2D", "in": [1], "out": 2, "stride": 1, "pad": "SAME", "act": 3, "w": "conv01"},
        {"op": "CONV_2D", "in": [2], "out": 3, "stride": 1, "pad": "SAME", "act": 0, "w": "conv02"},
        {"op": "ADD", "in": [3, 1], "out": 4},
        {"op": "AVERAGE_POOL_2D", "in": [4], "out": 5},
    ]
    np.savez(path, ops_json=json.dumps({"input_tensor": 0, "ops": ops}), **arrays)
    return arrays


def test_forward_by_native_convolutions(tmp_path):
    arrays = write_weights(tmp_path / "tiny.q8.npz")
    tower = mobilenet(tmp_path / "tiny.q8.npz")
    images = np.random.default_rng(1).uniform(size=(2, 10, 12, 3)).astype(np.float32)

    def layer(x, name, stride, groups=1):
        kernel = (arrays[f"{name}/kernel_q"].astype(np.float32) - 120) * np.float32(0.01)
        y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", feature_group_count=groups,
                                         dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + arrays[f"{name}/bias"]

    a = jnp.clip(layer(images * 2 - 1, "conv00", 2), 0, 6)
    b = layer(jnp.clip(layer(a, "conv01", 1, 8), 0, 6), "conv02", 1)
    np.testing.assert_allclose(tower.feature_map(tower.init(None), images), a + b, rtol=1e-4, atol=1e-4)
    assert tower.width == 8 and tower.name == "tiny"


def test_bad_weight_files(tmp_path):
    with pytest.raises(UserError, match="model.weights"):
        mobilenet(tmp_path / "absent.q8.npz")
    write_weights(tmp_path / "whole.q8.npz")
    data = (tmp_path / "whole.q8.npz").read_bytes()
    (tmp_path / "half.q8.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a complete"):
        mobilenet(tmp_path / "half.q8.npz")
    np.savez(tmp_path / "other.q8.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="not a complete"):
        mobilenet(tmp_path / "other.q8.npz")
