"""mdw-jax: multi-modal dataset distillation from noisy image-text pairs.

The public names, loaded when first used so that the command line starts quickly.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdw_jax.config import base, published, resolve
    from mdw_jax.data.pairs import Pairs, Split
    from mdw_jax.data.readers.karpathy import karpathy
    from mdw_jax.data.synthetic.scenes import scenes
    from mdw_jax.errors import UserError
    from mdw_jax.export.torch_dataset import torch_dataset
    from mdw_jax.io.distilled_set import DistilledSet, load_distilled
    from mdw_jax.io.trajectory import open_trajectory, read_snapshot
    from mdw_jax.method.distill import make_outer_step
    from mdw_jax.method.experts import train_experts
    from mdw_jax.method.matching import matching_loss, unroll
    from mdw_jax.method.students import evaluate
    from mdw_jax.models.dual_encoder import dual_encoder
    from mdw_jax.models.text.features import text_features

_HOMES = {
    "base": "config", "published": "config", "resolve": "config",
    "Pairs": "data.pairs", "Split": "data.pairs", "scenes": "data.synthetic.scenes", "karpathy": "data.readers.karpathy",
    "text_features": "models.text.features", "dual_encoder": "models.dual_encoder",
    "train_experts": "method.experts", "open_trajectory": "io.trajectory", "read_snapshot": "io.trajectory",
    "unroll": "method.matching", "matching_loss": "method.matching", "make_outer_step": "method.distill",
    "DistilledSet": "io.distilled_set", "load_distilled": "io.distilled_set", "evaluate": "method.students",
    "UserError": "errors", "torch_dataset": "export.torch_dataset",
}
__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'mdw_jax' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"mdw_jax.{_HOMES[name]}"), name)
    globals()[name] = value  # or importing a submodule of the same name would take its place
    return value


def __dir__():
    return sorted([*__all__, "__version__"])
