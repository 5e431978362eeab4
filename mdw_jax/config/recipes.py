"""Expert recipes: one word for a set of choices in `config.experts`."""

# An expert recipe is one word for a set of choices in `config.experts`; each ablation of the method is one of them.
RECIPES = {
    "dtcl": {},  # dual-track collaborative learning with recovery: the method
    # The peers' expert, InfoNCE on all pairs; and the same with our averaged weights.
    "infonce": {"division": "clean", "clean_loss": "infonce", "ema_decay": 0.0, "teacher_count": 0},
    "infonce_ema": {"division": "clean", "clean_loss": "infonce", "teacher_count": 0},
    "tolerant": {"division": "tolerant", "teacher_count": 0},  # the tolerant loss on all pairs
    "single": {"dual": False},  # one track: a network divides, recovers and guides for itself
    "one_peer": {"peers": 1},  # taught by its peer alone
    "no_recovery": {"recovery_weight": 0.0},
    "no_guidance": {"guidance_weight": 0.0},
    "no_ema": {"ema_decay": 0.0},
    "no_teachers": {"teacher_count": 0},
    "no_division": {"division": "both", "teacher_count": 0},  # every pair in both tracks
    "filter": {"tolerant_weight": 0.0, "recovery_weight": 0.0, "guidance_weight": 0.0},  # clean track only
    "infonce_clean_track": {"clean_loss": "infonce"},
    # The truth known: right pairs only.
    "oracle": {"division": "oracle", "tolerant_weight": 0.0, "recovery_weight": 0.0, "guidance_weight": 0.0,
               "teacher_count": 0},
    "debiased": {"division": "clean", "clean_loss": "infonce", "debias": True, "teacher_count": 0},  # Fact D (ours)
    "rescaled": {"division": "tolerant", "rescale_step": True, "teacher_count": 0},  # Fact B (ours): step size / (1 - eta)
}
