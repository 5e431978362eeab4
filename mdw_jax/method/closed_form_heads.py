"""Projection heads that compute a closed form: where experts may start from (this work; docs/method.md, 2.7)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.method.closed_form import ClosedForm


def closed_form_heads(params: Any, form: ClosedForm, key: jax.Array) -> Any:
    """Parameters of a dual encoder on frozen features, both heads replaced by ones whose cosines are a closed form's.

    A head is `LayerNorm(W2 gelu(h) + h)` with `h = W1 x` (`models.heads`). `W2 = 0`, and W1 maps a closed form's
    coordinates z to `s Q z`: Q has orthonormal columns that are orthogonal to the vector of ones, so that LayerNorm, which
    subtracts the mean over the D coordinates, changes nothing but the length, and cosines are those of z. Q is a random
    rotation, another for each key, and the same for both heads: networks that start from one closed form differ in what
    `gelu` sees. s brings the coordinates of h to a variance of about 1.

    Args:
        params: as `DualEncoder.init` returns them, in projection mode with a frozen text encoder.
        form: of k directions; of more than D - 1, the D - 1 with the largest singular values are taken.
        key: typed key of the rotation.

    Raises:
        UserError: the parameters are not those of two heads, or the form's features have other widths.
    """
    if set(params["image"]) != {"head"} or "projection" not in params["text"]:
        raise UserError("only heads on frozen features can start from a closed form; set experts.init to random.")
    image, text = params["image"]["head"], params["text"]
    dim = image["fc"]["bias"].shape[0]
    directions = min(form.image_map.shape[1], dim - 1)
    basis = _without_mean(key, dim)[:, :directions].T * np.sqrt(dim / form.singular_values[:directions].sum())
    return {**params, "image": {"head": _head(image, form.image_mean, form.image_map[:, :directions] @ basis)},
            "text": _head(text, form.text_mean, form.text_map[:, :directions] @ basis)}


def _head(head: Any, mean: np.ndarray, kernel: np.ndarray) -> Any:
    """A fresh head that computes `LayerNorm((x - mean) @ kernel)`."""
    if head["projection"]["kernel"].shape != kernel.shape:
        raise UserError(f"a head of shape {head['projection']['kernel'].shape} cannot start from a closed form of shape "
                        f"{kernel.shape}: they are of different features.")
    projection = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(-(mean @ kernel), jnp.float32)}
    return {**head, "projection": projection, "fc": jax.tree.map(jnp.zeros_like, head["fc"])}


def _without_mean(key: jax.Array, dim: int) -> np.ndarray:
    """(D, D - 1) a random orthonormal basis of the vectors whose coordinates add to 0."""
    ones = np.full((dim, 1), dim**-0.5)
    basis = np.linalg.qr(np.concatenate([ones, np.eye(dim)[:, 1:]], axis=1))[0][:, 1:]
    gaussian = np.asarray(jax.random.normal(key, (dim - 1, dim - 1)), np.float64)
    return basis @ np.linalg.qr(gaussian)[0]
