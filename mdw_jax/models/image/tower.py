"""What an image backbone is to the rest of the system."""

from collections.abc import Callable
from typing import Any, NamedTuple


def mean_over_space(params, feature_map):
    """(B, h, w, F), or (B, t, h, w, F) of clips -> (B, F); there are no parameters in it."""
    return feature_map.mean(tuple(range(1, feature_map.ndim - 1)))


class Tower(NamedTuple):
    """An image backbone as pure functions.

    init: (key) -> params (pretrained towers ignore the key).
    feature_map: (params, images (B, H, W, C) float32 in [0, 1]) -> the last map with places in it, which normalizes its
        input itself: (B, h, w, F), or whatever else `pool` and `grid` understand (tokens, for a transformer). Of
        bfloat16 images it is bfloat16, and computed so; parameters stay float32.
    width: width of the pooled feature.
    pool: (params, feature map) -> (B, width), the rest of the way; the mean over space unless it says otherwise.
    grid: feature map, or its gradient -> (B, h, w, F), the places alone (for Grad-CAM).

    Clips are (B, T, H, W, C) and their maps (B, t, h, w, F); that aside, nothing is different for them.
    """

    name: str
    init: Callable[[Any], Any]
    feature_map: Callable[[Any, Any], Any]
    width: int
    pool: Callable[[Any, Any], Any] = mean_over_space
    grid: Callable[[Any], Any] = lambda feature_map: feature_map

    def features(self, params, images):
        """Pooled features: (B, H, W, C) in [0, 1] -> (B, width)."""
        return self.pool(params, self.feature_map(params, images))
