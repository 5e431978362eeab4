"""`assemble`: layouts transposed, names mapped, and what does not fit is reported."""

import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.models.weights.convert import assemble

LAYOUT = [("stem.weight", ("stem", "kernel"), (5, 3, 2, 4)), ("fc.weight", ("head", "fc", "kernel"), (7, 5)),
          ("fc.bias", ("head", "fc", "bias"), (7,)), ("table.weight", ("table", "embedding"), (6, 5)),
          ("gain", ("stem", "gain"), ())]


def _tensors():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape) for name, _, shape in LAYOUT}


def test_tensors_come_to_their_places_in_our_layout():
    tensors = _tensors()
    params = assemble(LAYOUT, tensors | {"classifier.weight": np.zeros(3)}, "one model")
    assert set(params) == {"stem", "head", "table"} and set(params["head"]["fc"]) == {"kernel", "bias"}
    kernel = params["stem"]["kernel"]
    assert kernel.shape == (2, 4, 3, 5) and kernel.dtype == np.float32
    for o, i, h, w in np.ndindex(5, 3, 2, 4):
        assert kernel[h, w, i, o] == np.float32(tensors["stem.weight"][o, i, h, w])
    np.testing.assert_array_equal(params["head"]["fc"]["kernel"], tensors["fc.weight"].astype(np.float32).T)
    np.testing.assert_array_equal(params["table"]["embedding"], tensors["table.weight"].astype(np.float32))
    np.testing.assert_array_equal(params["head"]["fc"]["bias"], tensors["fc.bias"].astype(np.float32))
    assert params["stem"]["gain"].shape == () and params["stem"]["gain"].dtype == np.float32


def test_the_first_three_faults_are_named_and_all_are_counted():
    tensors = _tensors()
    del tensors["stem.weight"], tensors["gain"]
    tensors["fc.weight"] = tensors["fc.weight"].T
    tensors["fc.bias"] = np.zeros(8)
    with pytest.raises(UserError) as raised:
        assemble(LAYOUT, tensors, "one model")
    assert str(raised.value) == ("the weights do not fit the model in 4 tensors (fc.weight has shape (5, 7), not "
                                 "(7, 5); fc.bias has shape (8,), not (7,); stem.weight is missing); give the weights "
                                 "and the configuration of one model.")
