"""The rows of a run's table: ways from noisy pairs to a trained model, each a few overrides of one config."""

from ml_collections import ConfigDict

from mdw_jax.config import resolve
from mdw_jax.errors import UserError

# `experts` and `full` distil nothing: they score what the experts themselves reach.
PRESETS = {
    "random": {},  # a random coreset of the noisy pairs
    "infonce": {  # the peers' preset: plain InfoNCE experts, identity correspondence
        "experts.recipe": "infonce",
        "distill.correspondence": "identity",
        "distill.loss": "nce",
        "distill.init": "random",
        "distill.ceo": False,
    },
    "mdw": {},  # the config itself
    "experts": {},  # ceiling of the config's own experts
    "full": {"noise.rate": 0.0, "noise.file": "", "experts.recipe": "infonce"},  # all pairs, none mismatched
}
LABELS = {
    "random": "random pairs",
    "infonce": "InfoNCE experts, identity P",
    "mdw": "MDW",
    "experts": "the noisy experts themselves (ceiling)",
    "full": "full clean data",
}
CORESETS = ("random",)  # real pairs, chosen
WITHOUT_EXPERTS = ("random",)  # those that need no expert to choose by
DISTILLED = (*CORESETS, "infonce", "mdw")  # all that end in a small set


def preset_config(config: ConfigDict, preset: str) -> ConfigDict:
    """The resolved config of one preset. Raises UserError for an unknown one."""
    if preset not in PRESETS:
        raise UserError(f"there is no preset '{preset}'; set run.presets to some of {', '.join(PRESETS)}.")
    changed = config.copy_and_resolve_references().unlock()
    changed.update_from_flattened_dict(PRESETS[preset])
    return resolve(changed)
