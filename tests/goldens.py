"""Where the golden files are: numbers computed by other implementations."""

import os
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get("MDW_GOLDEN", Path(__file__).parent / "golden"))


def golden_files(prefix: str) -> list[Path]:
    """Every golden file of one kind, whatever its suffix; at least one, or the tests would pass by testing nothing."""
    files = sorted(FOLDER.glob(f"{prefix}_*.npz"))
    assert files, f"no {prefix}_*.npz in {FOLDER}"
    return files


def assert_close(actual, expected, relative):
    """Largest difference at most `relative` times the largest expected magnitude."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = max(np.abs(expected).max(), 1e-12)
    assert np.abs(actual - expected).max() <= relative * scale
