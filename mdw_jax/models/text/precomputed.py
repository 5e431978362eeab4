"""Text features that were computed elsewhere: a file with one row for each caption number."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.io.numpy_files import numpy_file

_FORMS = "an .npz with `features_q` (R, d) int8 and `scale` (R,), an .npz with float `features` (R, d), or a float .npy"


def _read(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The (R, d) array of `path` and, if its rows are quantized, their (R,) scales."""
    try:
        with numpy_file(path, mmap_mode="r") as stored:  # a .npy is mapped: only the rows asked for are read
            if isinstance(stored, np.ndarray):
                return stored, None
            if "features_q" in stored and "scale" in stored:
                return stored["features_q"], stored["scale"]
            if "features" in stored:
                return stored["features"], None
            names = sorted(stored)
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as text features ({error}): it is damaged, truncated or of another "
                        f"kind; give {_FORMS}.") from error
    raise UserError(f"'{path}' holds {names or 'nothing'} but no text features; give {_FORMS}.")


def precomputed_features(path, caption_ids) -> np.ndarray:
    """The rows `caption_ids` of a feature file, as they are stored (not normalized).

    Args:
        path: an .npz with `features_q` (R, d) int8 and `scale` (R,) float, meaning `features_q * scale[:, None]`; an
            .npz with float `features` (R, d); or a float (R, d) .npy. Row r belongs to caption number r.
        caption_ids: (K,) integers, the data set's own caption numbers.
    Returns:
        (K, d) float32.
    Raises:
        UserError: the file is missing, truncated or of another kind; a caption number without a row; NaN or infinity.
    """
    return open_precomputed(path)(caption_ids)


def open_precomputed(path) -> Callable[[Sequence[int] | np.ndarray], np.ndarray]:
    """`precomputed_features` of one file, as a function of caption numbers: the file is opened once for many calls."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no text feature file '{path}'; check the path.")
    rows, scale = _read(path)
    kind = np.floating if scale is None else np.int8
    if rows.ndim != 2 or not rows.shape[1] or not np.issubdtype(rows.dtype, kind):
        raise UserError(f"the text features in '{path}' are {rows.dtype} of shape {rows.shape}; give {_FORMS}.")
    if scale is not None and (scale.shape != rows.shape[:1] or not np.issubdtype(scale.dtype, np.floating)):
        raise UserError(f"'{path}' has {len(rows)} rows of `features_q` but `scale` is {scale.dtype} of shape "
                        f"{scale.shape}; give one float for each row.")
    return functools.partial(_rows_of, path, rows, scale)


def _rows_of(path: Path, rows: np.ndarray, scale: np.ndarray | None, caption_ids) -> np.ndarray:
    ids = np.asarray(caption_ids, np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= len(rows)):
        raise UserError(f"'{path}' has {len(rows)} rows but the captions are numbered {ids.min()} to {ids.max()}; "
                        "give the feature file of this data set.")
    features = rows[ids].astype(np.float32)
    if scale is not None:
        features *= scale[ids].astype(np.float32)[:, None]
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise UserError(f"'{path}' has NaN or infinite features for {bad.sum()} captions (first: row {ids[bad][0]}); "
                        "compute them again.")
    return features
