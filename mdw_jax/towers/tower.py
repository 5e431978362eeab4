"""What an image backbone is to the rest of the system."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Tower(NamedTuple):
    """An image backbone as pure functions.

    init: (key) -> params (pretrained towers ignore the key).
    feature_map: (params, images (B, H, W, C) float32 in [0, 1]) -> (B, h, w, width), the last feature map; it
        normalises its input itself. The pooled feature is its mean over space.
    width: channels of the feature map.
    """

    name: str
    init: Callable[[Any], Any]
    feature_map: Callable[[Any, Any], Any]
    width: int


def pool(feature_map):
    """Mean over space: (B, h, w, F) -> (B, F)."""
    return feature_map.mean((1, 2))
