"""PyTorch tensors, by name, as parameters of this package: the one place where layouts are transposed."""

import functools
from collections.abc import Iterable

import numpy as np

from mdw_jax.errors import UserError


def assemble(layout: Iterable[tuple[str, tuple[str, ...], tuple[int, ...]]], tensors: dict[str, np.ndarray],
             model: str) -> dict:
    """Parameters, float32 on the host, from the tensors of a PyTorch model.

    Args:
        layout: for every parameter its name among the tensors, its path among the parameters, and the tensor's shape.
            A path that ends in "kernel" is transposed, from (out, in) to (in, out) or from (out, in, h, w) to
            (h, w, in, out); all others stay as they are.
        tensors: by name; those that are not in `layout` (classifiers, buffers) are ignored.
        model: what the tensors should be, for the message: "one BERT".
    Raises:
        UserError: tensors are missing, of another shape or not finite (names the first few).
    """
    params, missing, wrong = {}, [], []
    for name, path, shape in layout:
        if name not in tensors:
            missing.append(f"{name} is missing")
        elif tensors[name].shape != tuple(shape):
            wrong.append(f"{name} has shape {tensors[name].shape}, not {tuple(shape)}")
        elif not np.isfinite(value := np.asarray(tensors[name], np.float32)).all():
            wrong.append(f"{name} holds NaN or infinite numbers")
        else:
            if path[-1] == "kernel":
                value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            inner = functools.reduce(lambda tree, part: tree.setdefault(part, {}), path[:-1], params)
            inner[path[-1]] = value
    if wrong := wrong + missing:
        raise UserError(f"the weights do not fit the model in {len(wrong)} tensors ({'; '.join(wrong[:3])}); give the "
                        f"weights and the configuration of {model}.")
    return params
