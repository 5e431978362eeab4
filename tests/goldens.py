"""Where the golden files are: numbers computed by other implementations."""

import os
from pathlib import Path

import numpy as np

OURS = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("MDW_GOLDEN", OURS))


def golden_files(prefix: str) -> list[Path]:
    """Every golden file of one kind, whatever its suffix. Our own folder has at least one of each; one named by
    MDW_GOLDEN may lack a kind, whose tests are then skipped."""
    files = sorted(FOLDER.glob(f"{prefix}_*.npz"))
    assert files or FOLDER != OURS, f"no {prefix}_*.npz in {FOLDER}"
    return files


def assert_close(actual, expected, relative):
    """Largest difference at most `relative` times the largest expected magnitude."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = max(np.abs(expected).max(), 1e-12)
    assert np.abs(actual - expected).max() <= relative * scale
