import jax
import jax.numpy as jnp

from mdw_jax.flops import count_flops
from mdw_jax.matching import unroll


def test_matrix_products_and_their_gradients():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert count_flops(jnp.matmul, a, b) == 2 * 3 * 5 * 7
    assert count_flops(jax.grad(lambda a, b: (a @ b).sum(), (0, 1)), a, b) == 3 * 2 * 3 * 5 * 7


def test_batched_products_by_shapes_alone():
    one = jax.ShapeDtypeStruct((4, 3, 5), jnp.float32)
    assert count_flops(lambda x: jnp.einsum("bij,bkj->bik", x, x), one) == 4 * 2 * 3 * 3 * 5


def test_convolutions_count_kernel_by_output():
    x, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 2, 12))

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                            feature_group_count=3)

    forward = 2 * (2 * 4 * 4 * 12) * 3 * 3 * 2
    assert count_flops(conv, x, kernel) == forward
    # The gradient by the kernel is as dear as the forward pass; that by x about so, its dilation's zeros left out.
    gradients = count_flops(jax.grad(lambda x, k: conv(x, k).sum(), (0, 1)), x, kernel)
    assert 2.5 * forward < gradients < 3.6 * forward


def test_a_scan_counts_as_often_as_it_runs():
    def loss(params, batch):
        return ((batch @ params["image"]["w"]) ** 2).sum()

    def total(steps, remat):
        batches = jnp.ones((steps, 4, 6))
        start = {"image": {"w": jnp.ones((6, 2))}}
        return count_flops(lambda p, b: unroll(loss, p, b, {"image": 0.1}, remat=remat), start, batches)

    assert total(1, True) == 2 * (2 * 4 * 6 * 2)
    assert total(8, True) == 8 * total(1, True) == total(8, False)
