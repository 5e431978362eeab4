import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.method.matching import unroll
from mdw_jax.models.image.vit import vit

SHAPE, PATCH, WIDTH, HEADS = (8, 12, 3), 4, 8, 2  # not square: 2 x 3 patches
IMAGES = np.random.default_rng(0).uniform(size=(3, *SHAPE)).astype(np.float32)
TOWER, ONE_BLOCK = (vit(SHAPE, PATCH, WIDTH, depth, HEADS) for depth in (2, 1))


def trained(tower=TOWER):
    """Parameters away from where they start, where blocks are the identity."""
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.3 * generator.normal(size=x.shape).astype(np.float32),
                        tower.init(jax.random.key(0)))


def norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def test_the_map_is_the_formula():
    params = jax.tree.map(np.asarray, trained())
    tokens = [(image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4] - 0.5).reshape(-1) * 4
              for image in IMAGES for i in range(2) for j in range(3)]
    x = np.stack(tokens).reshape(3, 6, -1) @ params["embed"]["kernel"] + params["embed"]["bias"]
    x = x + params["position"].reshape(6, WIDTH)
    for block in (params["block_0"], params["block_1"]):
        h, a, total = norm(x, block["norm_attention"]), block["attention"], 0
        for head in range(HEADS):
            q, k, v = (h @ a[name]["kernel"][:, head] + a[name]["bias"][head] for name in ("query", "key", "value"))
            scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(WIDTH / HEADS))
            total = total + scores / scores.sum(-1, keepdims=True) @ v @ a["out"]["kernel"][head]
        x = x + total + a["out"]["bias"]
        h = norm(x, block["norm_mlp"]) @ block["expand"]["kernel"] + block["expand"]["bias"]
        x = x + np.asarray(jax.nn.gelu(h)) @ block["contract"]["kernel"] + block["contract"]["bias"]
    expected = norm(x, params["norm"]).reshape(3, 2, 3, WIDTH)
    np.testing.assert_allclose(jax.jit(TOWER.feature_map)(trained(), IMAGES), expected, rtol=1e-3, atol=1e-4)
    assert TOWER.width == WIDTH


def permuted(images):
    """The two rows of patches, swapped."""
    return np.concatenate([images[:, PATCH:], images[:, :PATCH]], axis=1)


def test_positions_are_what_tells_one_order_of_patches_from_another():
    params = trained()
    pooled = jax.jit(lambda params, images: TOWER.feature_map(params, images).mean((1, 2)))
    assert jnp.abs(pooled(params, IMAGES) - pooled(params, permuted(IMAGES))).max() > 0.01
    blind = {**params, "position": jnp.zeros_like(params["position"])}
    np.testing.assert_allclose(pooled(blind, IMAGES), pooled(blind, permuted(IMAGES)), atol=1e-5)


def test_blocks_start_as_the_identity():
    shallow, deep = vit(SHAPE, PATCH, WIDTH, 0, HEADS), TOWER
    params = deep.init(jax.random.key(0))
    without = {name: params[name] for name in ("embed", "position", "norm")}
    np.testing.assert_allclose(deep.feature_map(params, IMAGES), shallow.feature_map(without, IMAGES), atol=1e-5)


def test_the_gradient_through_an_unroll_is_right():
    target = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2, 3, WIDTH)), jnp.float32)

    def left(images):
        inner = lambda p, rows: jnp.mean((ONE_BLOCK.feature_map(p["image"], images[rows]) - target[rows]) ** 2)
        params, _ = unroll(inner, {"image": trained(ONE_BLOCK)}, jnp.array([[0, 1, 2]] * 2), {"image": 0.3})
        return jnp.mean((ONE_BLOCK.feature_map(params["image"], IMAGES) - target) ** 2)

    left, gradient = jax.jit(left), jax.jit(jax.grad(left))
    grad = gradient(jnp.asarray(IMAGES))
    assert jnp.isfinite(grad).all()
    direction = grad / jnp.linalg.norm(grad)
    slope = (left(IMAGES + 1e-2 * direction) - left(IMAGES - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(slope, jnp.linalg.norm(grad), rtol=0.02)


def test_a_flat_image_has_finite_second_derivatives():
    """LayerNorm and softmax meet no spread at all in it."""
    flat = jnp.full((1, *SHAPE), 0.5)
    by_params = lambda images: jax.grad(lambda p: jnp.sum(ONE_BLOCK.feature_map(p, images) ** 3))(
        ONE_BLOCK.init(jax.random.key(0)))
    norm2 = lambda images: sum(jnp.sum(g**2) for g in jax.tree.leaves(by_params(images)))
    assert jnp.isfinite(jax.jit(jax.grad(norm2))(flat)).all()


def test_user_errors():
    with pytest.raises(UserError, match="16 px patches cannot cut images of 32 x 40 px .* set model.vit_patch"):
        vit((32, 40, 3))
    with pytest.raises(UserError, match="width 10 .* 4 heads; set model.vit_width"):
        vit((32, 32, 3), 8, 10, 1, 4)
