"""Projection heads, those of the baselines (VLD, LoRS, RepBlend)."""

import flax.linen as nn


class ProjectionHead(nn.Module):
    """`h = W1 x; out = LayerNorm(W2 gelu(h) + h)`: (B, d) -> (B, dim).

    The baselines' head without its dropout: two passes over one unroll must be the same function.

    Attributes:
        dim: width of the shared space.
    """

    dim: int

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(self.dim, name="projection")(x)
        return nn.LayerNorm(epsilon=1e-5, name="layer_norm")(
            nn.Dense(self.dim, name="fc")(nn.gelu(h, approximate=False)) + h
        )
