"""`Tower`: the interface of image backbones."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


def mean_over_space(params, feature_map):
    """(B, h, w, F), or (B, t, h, w, F) of video clips -> (B, F); it uses no parameters."""
    return feature_map.mean(tuple(range(1, feature_map.ndim - 1)))


class Tower(NamedTuple):
    """An image backbone as pure functions.

    Video clips are (B, T, H, W, C) and their maps (B, t, h, w, F); otherwise they are treated like images.

    Attributes:
        name: of the architecture.
        init: (key) -> params (pretrained towers ignore the key).
        feature_map: (params, images (B, H, W, C) float32 in [0, 1]) -> the last map with spatial positions, (B, h, w,
            F), or any array that `pool` and `grid` take (tokens, for a Transformer). It normalizes its input itself. Of
            bfloat16 images it is computed in bfloat16; parameters stay float32.
        width: F, width of the pooled feature.
        pool: (params, feature map) -> (B, width); by default the mean over space.
        grid: feature map, or its gradient -> (B, h, w, F), the spatial positions alone (for Grad-CAM).
        std: of each channel, what it divides images in [0, 1] by once it has subtracted a mean; None: not known.
        layout: what else is needed to compute it again from its parameters, as JSON can hold it: its "kind" and the
            settings of that kind (`mdw_jax.export.backbone`); None: it cannot be written down.
    """

    name: str
    init: Callable[[Any], Any]
    feature_map: Callable[[Any, Any], Any]
    width: int
    pool: Callable[[Any, Any], Any] = mean_over_space
    grid: Callable[[Any], Any] = lambda feature_map: feature_map
    std: tuple[float, ...] | None = None
    layout: Mapping[str, Any] | None = None

    def features(self, params, images):
        """Pooled features: (B, H, W, C) in [0, 1] -> (B, width)."""
        return self.pool(params, self.feature_map(params, images))
