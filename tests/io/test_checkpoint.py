import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

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


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "c"
    save_checkpoint(path, TREE, "key")
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(bad))
        with pytest.raises(UserError, match=f"'{path}' is damaged.*; delete it"):
            load_checkpoint(path, TREE, "key")
    path.write_bytes(good)
    assert load_checkpoint(path, TREE, "key") is not None


def test_exchanged_tensors_are_found(tmp_path):
    tree = {"a": np.arange(4, dtype=np.float32), "b": np.ones(4, np.float32)}
    save_checkpoint(tmp_path / "c", tree, "key")
    with safe_open(tmp_path / "c", framework="numpy") as file:
        header = file.metadata()
    save_file({f"['{name}']": tree[other] for name, other in ("ab", "ba")}, tmp_path / "c", header)
    with pytest.raises(UserError, match="sha256"):
        load_checkpoint(tmp_path / "c", tree, "key")


def test_an_earlier_version_without_a_checksum_is_read_with_a_note(tmp_path, caplog):
    tree = {"a": np.arange(4, dtype=np.float32)}
    save_file({"['a']": tree["a"]}, tmp_path / "c", {"key": "key"})
    with caplog.at_level("INFO"):
        np.testing.assert_array_equal(load_checkpoint(tmp_path / "c", tree, "key")["a"], tree["a"])
    assert "earlier version, without a checksum" in caplog.text
