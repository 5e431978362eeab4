import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import assert_close, golden_files

from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.losses import distillation_loss
from mdw_jax.method.matching import matching_loss, unroll

CASES = list(itertools.product(("WBCE", "NCE"), ("exact", "detached"), ("separate", "merged")))


def convolution(x, weight, bias):
    dimensions = ("NHWC", "OIHW", "NHWC")
    return jax.lax.conv_general_dilated(x, weight, (2, 2), [(1, 1), (1, 1)], dimension_numbers=dimensions) + bias


def embed_image(p, x):
    x = jax.nn.gelu(convolution(x, p["conv1.weight"], p["conv1.bias"]), approximate=False)
    x = jax.nn.gelu(convolution(x, p["conv2.weight"], p["conv2.bias"]), approximate=False)
    return x.mean((1, 2))


def embed_text(p, x):
    h = x @ p["projection.weight"].T + p["projection.bias"]
    y = jax.nn.gelu(h, approximate=False) @ p["fc.weight"].T + p["fc.bias"] + h
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5)
    return y * p["layer_norm.weight"] + p["layer_norm.bias"]


def params_of(golden, which):
    return {
        branch: {name.split("/")[1]: golden[name] for name in golden.files if name.startswith(f"{which}_{branch}/")}
        for branch in ("image", "text")
    }


@pytest.mark.parametrize("loss_name, gradient, merge", CASES)
@pytest.mark.parametrize("path", golden_files("matching"), ids=lambda path: path.stem)
def test_matching_matches_golden(path, loss_name, gradient, merge):
    golden = np.load(path)
    start, target = params_of(golden, "start"), params_of(golden, "target")
    tau, alpha = float(golden["tau"]), float(golden["alpha"])
    soft = distillation_loss(loss_name.lower())
    learned = {name: golden[name] for name in ("images", "texts", "lr_image", "lr_text")}
    learned["p"] = {name: golden[name] for name in ("diag", "left", "right")}

    def objective(learned):
        def inner_loss(params, rows):
            v = embed_image(params["image"], learned["images"][rows])
            t = embed_text(params["text"], learned["texts"][rows])
            v, t = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (v, t))
            return soft(v @ t.T / tau, correspondence(learned["p"], rows, alpha))

        steps = {"image": learned["lr_image"], "text": learned["lr_text"]}
        final, inner = unroll(inner_loss, start, jnp.asarray(golden["batches"]), steps, gradient=gradient)
        return matching_loss(final, start, target, merge), (inner, final)

    learned = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), learned)
    (value, (inner, final)), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(learned)
    expected = lambda field: golden[f"{loss_name}/{gradient}/{merge}/{field}"]
    assert_close(value, expected("loss"), 1e-4)
    assert_close(inner, expected("inner"), 1e-4)
    for branch in ("image", "text"):
        order = [name.split("/")[1] for name in golden.files if name.startswith(f"start_{branch}/")]
        flat = np.concatenate([np.ravel(final[branch][name]) for name in order])
        assert_close(flat, expected(f"final_{branch}_params"), 1e-4)
    for field, grad in {
        "d_images": grads["images"], "d_texts": grads["texts"], "d_diag": grads["p"]["diag"],
        "d_left": grads["p"]["left"], "d_right": grads["p"]["right"],
        "d_lr_image": grads["lr_image"], "d_lr_text": grads["lr_text"],
    }.items():
        assert_close(grad, expected(field), 1e-3)
