import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdw_jax.errors import UserError
from mdw_jax.io.checkpoint import load_checkpoint, save_checkpoint

PARAMS = {"w": jnp.arange(6.0).reshape(2, 3).T, "none": {}, "scalar": jnp.float32(1.5)}
TREE = {"params": PARAMS, "optimizer": optax.adam(0.1).init(PARAMS), "step": jnp.int32(7), "best": np.float32(-1)}


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "c", TREE, "key")
    like = jax.tree.map(jnp.zeros_like, TREE)
    loaded = load_checkpoint(tmp_path / "c", like, "key")
    assert jax.tree.structure(loaded) == jax.tree.structure(like)
    for found, wanted in zip(jax.tree.leaves(loaded), jax.tree.leaves(TREE), strict=True):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        np.testing.assert_array_equal(found, wanted)


def test_absent(tmp_path):
    assert load_checkpoint(tmp_path / "c", TREE, "key") is None


def test_what_cannot_be_gone_on_with(tmp_path):
    path = tmp_path / "c"
    save_checkpoint(path, TREE, "key")
    with pytest.raises(UserError, match="another configuration.*run.dir"):
        load_checkpoint(path, TREE, "other")
    with pytest.raises(UserError, match="other tensors"):
        load_checkpoint(path, {**TREE, "step": jnp.zeros(2, jnp.int32)}, "key")
    with pytest.raises(UserError, match="other tensors"):
        load_checkpoint(path, {"params": PARAMS}, "key")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged.*delete"):
        load_checkpoint(path, TREE, "key")
    path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path, TREE, "key")
