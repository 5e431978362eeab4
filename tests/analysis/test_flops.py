import jax
import jax.numpy as jnp

from mdw_jax.analysis.cost.flops import count_flops
from mdw_jax.method.matching import unroll


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

    # Of 8 pixels, 3 taps at stride 2 meet 3 each at three places and 2 at the last, whose third is padding.
    forward = 2 * (2 * 12) * 11 * 11 * 2
    assert count_flops(conv, x, kernel) == forward
    assert count_flops(jax.grad(lambda x, k: (conv(x, k) ** 2).sum(), (0, 1)), x, kernel) == 3 * forward


def test_second_derivatives_of_convolutions_cost_a_few_times_the_first():
    x, kernel = jnp.ones((2, 32, 32, 4)), jnp.ones((3, 3, 4, 4))

    def conv(x, kernel):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (jnp.tanh(y) ** 2).sum()

    def after_a_step(x):
        return conv(x, kernel - jax.grad(conv, 1)(x, kernel))

    forward = count_flops(conv, x, kernel)
    assert 6 * forward <= count_flops(jax.grad(after_a_step), x) <= 10 * forward


def test_a_scan_counts_as_often_as_it_runs():
    def loss(params, batch):
        return ((batch @ params["image"]["w"]) ** 2).sum()

    def total(steps, remat):
        batches = jnp.ones((steps, 4, 6))
        start = {"image": {"w": jnp.ones((6, 2))}}
        return count_flops(lambda p, b: unroll(loss, p, b, {"image": 0.1}, remat=remat), start, batches)

    assert total(1, True) == 2 * (2 * 4 * 6 * 2)
    assert total(8, True) == 8 * total(1, True) == total(8, False)
