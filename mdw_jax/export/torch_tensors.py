"""Distilled sets as PyTorch tensors."""

import numpy as np
import torch


def to_torch(arrays: dict) -> dict:
    """Arrays as tensors of their own."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def correspondence(learned, rows, alpha: float):
    """The block of P at `rows` x `rows`: (b,) -> (b, b)."""
    p = _part(learned, "correspondence")
    if not p:
        return torch.eye(len(rows))
    if "matrix" in p:
        return p["matrix"][rows][:, rows]
    left, right = p["left"][rows], p["right"][rows]
    return torch.diag(p["diag"][rows]) + alpha / left.shape[1] * left @ right.T


def _part(params: dict, prefix: str) -> dict:
    return {name.removeprefix(f"{prefix}/"): x for name, x in params.items() if name.startswith(f"{prefix}/")}
