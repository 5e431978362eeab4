"""A tower asked for bfloat16 computes in it, its parameters and what it hands on being float32."""

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from mdw_jax.analysis.cost.flops import jaxprs_of
from mdw_jax.config import base
from mdw_jax.config.options import PRETRAINED
from mdw_jax.models.build import tower_without_weights
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.image.conv import as_on_accelerator


def products(jaxpr):
    """The operand dtypes of every convolution and matrix product in it, however deep."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield tuple(str(x.aval.dtype) for x in equation.invars)
        for value in equation.params.values():
            for inner in jaxprs_of(value):
                yield from products(inner)


@pytest.mark.parametrize("name", ["convnet", "vit", *PRETRAINED])
def test_products_are_in_the_dtype_asked_for(name):
    m = ConfigDict({**base().model.to_dict(), "tower": name, "patches": (8, 4), "widths": (8, 8), "vit_depth": 1})
    size = 56 if name.endswith("patch14") else 64
    tower = tower_without_weights(m, (size, size, 3))
    backbone = jax.eval_shape(tower.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)

    def loss(backbone, images):
        model = dual_encoder(tower, backbone, 8, mode="projection", dim=8, dtype="bfloat16")
        return jnp.sum(model.inputs(images) ** 2)

    with as_on_accelerator():
        found = jax.make_jaxpr(jax.grad(loss, (0, 1)))(backbone, images)
    kinds = set(products(found.jaxpr))
    assert ("bfloat16", "bfloat16") in kinds
    assert kinds == {("bfloat16", "bfloat16")}
    assert {str(x.dtype) for x in found.out_avals} == {"float32"}
