"""Expert recipes: one name for a set of choices in `config.experts`; each ablation of the method is one of them."""

from typing import Any

# Networks that nobody teaches, with the optimizer of published experts.
_ALONE = {"teacher_count": 0, "closed_form": False, "init": "random", "trajectory_epochs": 0, "optimizer": "sgd",
          "decay": "none"}

RECIPES: dict[str, dict[str, Any]] = {
    "dtcl": {},  # dual-track collaborative learning with recovery: the method of this work
    # The experts of published methods, InfoNCE on all pairs; and the same with averaged weights.
    "infonce": {"division": "clean", "clean_loss": "infonce", "ema_decay": 0.0, **_ALONE},
    "infonce_ema": {"division": "clean", "clean_loss": "infonce", **_ALONE},
    "tolerant": {"division": "tolerant", **_ALONE},  # the tolerant loss on all pairs
    "single": {"dual": False},  # each network divides, recovers and guides for itself
    "one_peer": {"peers": 1},  # the other network of the pair is the only teacher
    "no_recovery": {"recovery_weight": 0.0},
    "no_guidance": {"guidance_weight": 0.0},
    "no_ema": {"ema_decay": 0.0},
    "no_teachers": {**_ALONE},
    "no_division": {"division": "both", **_ALONE},  # every pair in both tracks
    "filter": {"tolerant_weight": 0.0, "recovery_weight": 0.0, "guidance_weight": 0.0},  # the clean track alone
    "infonce_clean_track": {"clean_loss": "infonce"},
    # The clean track alone, divided by the truth.
    "oracle": {"division": "oracle", "tolerant_weight": 0.0, "recovery_weight": 0.0, "guidance_weight": 0.0,
               **_ALONE},
    # Proposition 4 (this work): the loss of re-shuffled captions subtracted.
    "debiased": {"division": "clean", "clean_loss": "infonce", "debias": True, **_ALONE},
    # Proposition 2 (this work): step size lr / (1 - eta).
    "rescaled": {"division": "tolerant", "rescale_step": True, **_ALONE},
}
