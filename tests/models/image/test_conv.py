import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.models.image import conv as module

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
SHAPES = [((8, 8), 3, 1), ((8, 8), 3, 2), ((9, 7), 3, 2), ((7, 10), 5, 2), ((6, 9), 1, 2), ((5, 6), 4, 3), ((9, 8), 2, 1)]


def native(x, kernel, stride, groups=1):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=DIMENSIONS,
                                        feature_group_count=groups)


@pytest.mark.parametrize("size, k, stride", SHAPES)
@pytest.mark.parametrize("depthwise", [False, True])
def test_values_and_gradients_equal_the_native_convolution(monkeypatch, size, k, stride, depthwise):
    monkeypatch.setattr(module, "on_cpu", lambda: True)
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(2, *size, 4)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=(k, k, 1 if depthwise else 4, 4)), jnp.float32)
    ours = (module.depthwise_conv if depthwise else module.conv)
    reference = lambda x, kernel: native(x, kernel, stride, 4 if depthwise else 1)
    objective = lambda f: jax.jit(jax.value_and_grad(lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel))), (0, 1)))
    value, grads = objective(lambda x, kernel: ours(x, kernel, stride))(x, kernel)
    expected, expected_grads = objective(reference)(x, kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-4)


def test_second_order_gradients_of_the_depthwise_form(monkeypatch):
    monkeypatch.setattr(module, "on_cpu", lambda: True)
    generator = np.random.default_rng(1)
    x = jnp.asarray(generator.normal(size=(1, 6, 6, 3)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=(3, 3, 1, 3)), jnp.float32)

    def gradient_norm(f):
        by_kernel = lambda x: jax.grad(lambda kernel: jnp.sum(jnp.sin(f(x, kernel))))(kernel)
        return jax.jit(jax.grad(lambda x: jnp.sum(by_kernel(x) ** 2)))(x)

    ours = gradient_norm(lambda x, kernel: module.depthwise_conv(x, kernel, 2))
    np.testing.assert_allclose(ours, gradient_norm(lambda x, k: native(x, k, 2, 3)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size, k, stride, padding, groups", [
    ((8, 8), 3, 2, 1, 1), ((9, 7), 7, 2, 3, 1), ((9, 8), 1, 2, 0, 1), ((6, 7), 1, 1, 1, 1), ((7, 6), 3, 1, "SAME", 3),
    ((9, 8), 3, 2, 1, 2), ((8, 8), 3, 2, "SAME", 6), ((5, 5), 1, 1, 0, 2)])
@pytest.mark.parametrize("cpu", [True, False])
def test_padding_and_groups_are_those_of_the_native_convolution(monkeypatch, size, k, stride, padding, groups, cpu):
    monkeypatch.setattr(module, "on_cpu", lambda: cpu)
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(2, *size, 6)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=(k, k, 6 // groups, 12)), jnp.float32)

    def reference(x, kernel):
        pads = padding if padding == "SAME" else ((padding, padding),) * 2
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=DIMENSIONS,
                                            feature_group_count=groups)

    def results(f):
        loss = lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel)))
        second = jax.grad(lambda x: jnp.sum(jax.grad(loss, 1)(x, kernel) ** 2))
        return jax.jit(lambda x, kernel: (f(x, kernel), jax.grad(loss, (0, 1))(x, kernel), second(x)))(x, kernel)

    ours = results(lambda x, kernel: module.conv(x, kernel, stride, padding, groups))
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(results(reference)), strict=True):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(8, 6), (7, 8), (5, 9), (1, 1)])
def test_pooling_equals_pooling_by_windows(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)) - 5, jnp.float32)
    windows = lambda x, start, reduce, k, pads: jax.lax.reduce_window(
        x, start, reduce, (1, k, k, 1), (1, 2, 2, 1), ((0, 0), *pads, (0, 0)))
    highest = lambda x: windows(x, -jnp.inf, jax.lax.max, 3, ((1, 1), (1, 1)))
    np.testing.assert_array_equal(module.max_pool(x), highest(x))
    gradient = lambda f: jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))(x)
    np.testing.assert_allclose(gradient(module.max_pool), gradient(highest), rtol=1e-6, atol=1e-6)
    edges = [(0, n % 2) for n in size]
    total, count = (windows(a, 0.0, jax.lax.add, 2, edges) for a in (x, jnp.ones_like(x)))
    np.testing.assert_allclose(module.average_pool(x), total / count, rtol=1e-5)
