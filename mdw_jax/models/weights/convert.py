"""PyTorch tensors, by name, as our parameters: the one place where layouts are turned."""

import functools
from collections.abc import Iterable

import numpy as np

from mdw_jax.errors import UserError


def assemble(layout: Iterable[tuple[str, tuple[str, ...], tuple[int, ...]]], tensors: dict[str, np.ndarray],
             whole: str) -> dict:
    """Parameters, float32 on the host, from tensors of another framework.

    Args:
        layout: for every parameter its name there, its path among ours, and its shape there. What is last in the path
            says how it is laid out: a "kernel" of two dimensions is (out, in) there and (in, out) here, one of four
            (out, in, h, w) there and (h, w, in, out) here; anything else stays as it is.
        tensors: by name; those that `layout` does not name (classifiers, buffers) are ignored.
        whole: what the tensors should be, for the message: "one BERT".
    Raises:
        UserError: tensors are missing, of another shape or not finite; it names the first few.
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
                        f"weights and the configuration of {whole}.")
    return params
