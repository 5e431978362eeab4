import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.config import base
from mdw_jax.config.options import TOWERS_WITH_BLOCKS
from mdw_jax.models.build import TOWERS, tower_without_weights
from mdw_jax.models.image.blocks import recomputed_blocks
from mdw_jax.models.image.mobilenet import mobilenet
from mdw_jax.models.image.pretrained import clip_spec, tower_of
from mdw_jax.models.weights.shipped import shipped_or_local

SHAPE = (32, 32, 3)
CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "image_size": 32, "num_attention_heads": 2,
        "patch_size": 16, "projection_dim": 8}


def towers():
    m = base().model
    for m.tower in ("vit", "resnet18", "nf_regnet_b1"):
        yield m.tower, lambda m=m.copy_and_resolve_references(): tower_without_weights(m, SHAPE)
    yield "clip", lambda: tower_of(clip_spec(CLIP), "clip", SHAPE)
    for name in ("mobilenet_v1_0.25", "mobilenet_v2"):
        yield name, lambda name=name: mobilenet(shipped_or_local(name))


SLOW = ("nf_regnet_b1", "mobilenet_v2")


@pytest.mark.parametrize("build", [
    pytest.param(build, id=name, marks=[pytest.mark.slow] if name in SLOW else []) for name, build in towers()])
def test_blocks_are_computed_again_and_change_nothing(build):
    tower = build()
    params = tower.init(jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, *SHAPE)), jnp.float32)

    def gradient(again):
        def loss(params, images):
            with recomputed_blocks(again):
                return (tower.features(params, images) ** 2).sum()
        return jax.grad(loss, argnums=(0, 1))

    program = lambda again: str(jax.make_jaxpr(gradient(again))(params, images))
    assert "remat" not in program(False) and program(True).count("remat") >= 2
    wanted, found = (jax.jit(gradient(again))(params, images) for again in (False, True))
    assert jax.tree.structure(wanted) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = max(float(jnp.abs(b).max()), 1e-6)
        np.testing.assert_allclose(a / scale, b / scale, atol=1e-4)


def test_every_tower_is_said_to_have_blocks_or_not():
    assert set(TOWERS) - set(TOWERS_WITH_BLOCKS) == {"convnet"}
