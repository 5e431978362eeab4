"""The rows of a run's table: ways from noisy pairs to a trained model, each a few overrides of one config."""

from ml_collections import ConfigDict

from mdw_jax.config import resolve
from mdw_jax.errors import UserError

# `experts` and `full` distil nothing: they score what the experts themselves reach.
ROUTES = {
    "random": {},  # a random coreset of the noisy pairs
    "infonce": {  # the peers' route: plain InfoNCE experts, identity correspondence
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
DISTILLED = ("random", "infonce", "mdw")


def route_config(config: ConfigDict, route: str) -> ConfigDict:
    """The resolved config of one route. Raises UserError for an unknown one."""
    if route not in ROUTES:
        raise UserError(f"there is no route '{route}'; set run.routes to some of {', '.join(ROUTES)}.")
    changed = config.copy_and_resolve_references().unlock()
    changed.update_from_flattened_dict(ROUTES[route])
    return resolve(changed)
