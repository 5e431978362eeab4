"""Distilled sets as PyTorch tensors."""

from collections.abc import Mapping

import numpy as np
import torch


def to_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Copies of arrays as tensors, by the same names."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def correspondence(learned: Mapping[str, torch.Tensor], rows: torch.Tensor, alpha: float) -> torch.Tensor:
    """A block of the correspondence matrix P (docs/method.md, section 5.3).

    Args:
        learned: tensors of which those of P are named "correspondence/...".
        rows: (b,) rows of the set.
        alpha: scale of a low-rank P.

    Returns:
        (b, b), P at `rows` x `rows`.
    """
    p = subtree(learned, "correspondence")
    if not p:
        return torch.eye(len(rows))
    if "matrix" in p:
        return p["matrix"][rows][:, rows]
    left, right = p["left"][rows], p["right"][rows]
    return torch.diag(p["diag"][rows]) + alpha / left.shape[1] * left @ right.T


def subtree(params: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix/`, by the rest of their names."""
    return {name.removeprefix(f"{prefix}/"): x for name, x in params.items() if name.startswith(f"{prefix}/")}
