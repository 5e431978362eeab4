"""What may be asked of a run: defaults, options, recipes, presets, and the checks over them."""

from mdw_jax.config.defaults import base, frozen_backbone, published
from mdw_jax.config.validation import resolve

__all__ = ["base", "frozen_backbone", "published", "resolve"]
