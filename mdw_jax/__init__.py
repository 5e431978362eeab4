"""mdw-jax: multi-modal dataset distillation from noisy image-text pairs.

The public names, loaded when first used so that the command line starts quickly.
"""

import importlib

_WHERE = {
    "base": "config", "resolve": "config",
    "Pairs": "data.pairs", "Split": "data.pairs", "scenes": "data.scenes", "karpathy": "data.karpathy",
    "text_features": "text.features", "dual_encoder": "towers.dual",
    "train_experts": "experts", "open_trajectory": "trajectory", "read_snapshot": "trajectory",
    "unroll": "matching", "matching_loss": "matching", "make_outer_step": "distill",
    "DistilledSet": "distilled", "load_distilled": "distilled", "evaluate": "evaluate", "UserError": "errors",
    "torch_dataset": "torch_data",
}
__all__ = sorted(_WHERE)


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module 'mdw_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mdw_jax.{_WHERE[name]}"), name)
