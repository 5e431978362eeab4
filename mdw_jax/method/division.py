"""Division of the training pairs into clean and risky ones (docs/method.md, section 2.2)."""

import numpy as np
from sklearn.mixture import GaussianMixture

FITTED = 1_000_000
"""Pairs that a mixture is fitted to; of more losses, so many random ones: its five numbers are known to three digits."""


def divide(losses, seed: int = 0) -> np.ndarray:
    """`w_n`: the probability that pair n belongs to the low-loss component of a two-component Gaussian mixture.

    Losses are min-max scaled first (DivideMix, NCR; the mixture's constants are NCR's).

    Args:
        losses: (K,) one network's loss of each training pair.
        seed: of the mixture's initialization, and of the sample of more than `FITTED` losses that it is fitted to.

    Returns:
        (K,) float32 in [0, 1]; all ones where the losses do not differ.
    """
    losses = np.asarray(losses, np.float64)
    spread = np.ptp(losses)
    if spread == 0:
        return np.ones(len(losses), np.float32)
    scaled = ((losses - losses.min()) / spread)[:, None]
    seen = scaled
    if len(scaled) > FITTED:
        seen = scaled[np.random.default_rng(seed).choice(len(scaled), FITTED, replace=False)]
    mixture = GaussianMixture(2, max_iter=100, tol=1e-3, reg_covar=5e-4, random_state=seed).fit(seen)
    low = mixture.means_.argmin()
    return np.concatenate([mixture.predict_proba(scaled[start:start + FITTED])[:, low].astype(np.float32)
                           for start in range(0, len(scaled), FITTED)])


def division_quality(clean_probability, mismatched) -> dict[str, float]:
    """How well `w_n >= 0.5` finds the truly matched pairs.

    Args:
        clean_probability: (K,) `w_n`.
        mismatched: (K,) bool, the truth.

    Returns:
        precision and recall of the matched pairs, and share_clean, the share of pairs called clean.
    """
    clean, matched = np.asarray(clean_probability) >= 0.5, ~np.asarray(mismatched)
    hits = float((clean & matched).sum())
    return {
        "precision": hits / max(float(clean.sum()), 1.0),
        "recall": hits / max(float(matched.sum()), 1.0),
        "share_clean": float(clean.mean()),
    }
