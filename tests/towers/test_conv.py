import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.towers import conv as module

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
