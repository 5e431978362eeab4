"""What is known of a preset by its name alone, without importing anybody's code."""

from mdw_jax.config.presets import PRESETS, PresetSpec


def spec_by_name(name: str) -> PresetSpec:
    """The spec of a built-in preset; of a preset from outside this package, one that distills a set with experts.

    Reading the files of a run must not run code, so `module:function` is not imported; report.json holds its label and
    kind.
    """
    return PRESETS[name] if name in PRESETS else PresetSpec(label=name)
