"""The config of one preset: the run's config, the preset's overrides, then those of `run.preset_overrides`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mdw_jax.config.defaults import defaults
from mdw_jax.config.loading import has_type_of, type_in_words
from mdw_jax.config.noise import default_protocol
from mdw_jax.config.plugins import is_path
from mdw_jax.config.presets import PRESETS, PresetSpec, preset_spec
from mdw_jax.config.sections import flat
from mdw_jax.config.validation import resolve
from mdw_jax.errors import UserError

OF_PRESETS = ("noise", "filter", "experts", "distill", "evaluate")  # sections that presets of one run may set differently


def preset_config(config: ConfigDict, preset: str) -> ConfigDict:
    """The resolved config of one preset.

    Args:
        config: the run's config; it stays as it is.
        preset: a name as in `run.presets`.

    Raises:
        UserError: there is no such preset, it overrides a key that does not exist or that holds for all presets of a
            run, or to a value of another type; an entry of `run.preset_overrides` is neither `preset:key=value` nor
            `preset@budget:key=value`; or the result cannot be run.
    """
    changed = config.copy_and_resolve_references().unlock()
    if changed.noise.file:  # re-pairing by a file stays a study for presets that leave the file out, such as `full`
        changed.noise.protocol = changed.noise.protocol or default_protocol(changed)
    pairs = config.distill.pairs
    spec = preset_spec(preset)
    for overrides in (spec.overrides, *spec.overrides_by_pairs.values()):
        _check(preset, overrides)
    changed.update_from_flattened_dict(spec.overrides_for(pairs))
    for entry in map(_parse, config.run.preset_overrides):
        if entry.preset == preset and pairs >= entry.budget:
            changed.update_from_flattened_dict({entry.key: entry.value})
    resolved = resolve(changed)
    _check_experts(preset, spec, resolved)
    return resolved


def _check_experts(preset: str, spec: PresetSpec, config: ConfigDict) -> None:
    """Raises UserError where a preset distills by experts that it does not train, or trains some that nothing reads."""
    objective, init = config.distill.objective, config.distill.init
    if spec.kind != "distilled":
        return
    if spec.needs_experts and objective == "covariance":
        raise UserError(f"the preset '{preset}' trains experts, and distill.objective covariance reads none; choose the "
                        "preset covmatch.")
    if not spec.needs_experts and objective != "covariance":
        raise UserError(f"the preset '{preset}' trains no experts, and distill.objective {objective} follows them; leave "
                        "the objective as it is.")
    if not spec.needs_experts and init != "random":
        raise UserError(f"the preset '{preset}' trains no experts, and distill.init {init} asks them; set it to random.")


def _check(preset: str, overrides: Mapping[str, Any]) -> None:
    """Raises UserError for a key that a preset cannot override, or a value of another type."""
    known = flat(defaults())
    for key, value in overrides.items():
        if key not in known:
            raise UserError(f"the preset '{preset}' overrides '{key}', which is not a config key; `mdw config` lists "
                            "all keys.")
        _refuse_shared(f"the preset '{preset}' overrides '{key}'", key)
        if not has_type_of(known[key], value):
            raise UserError(f"the preset '{preset}' sets {key} to {value!r}, but it must be "
                            f"{type_in_words(known[key])}; change the preset.")


def _refuse_shared(beginning: str, key: str) -> None:
    """Raises UserError, with a sentence that begins so, for a key that is used once for all presets of a run."""
    if key.partition(".")[0] not in OF_PRESETS:
        raise UserError(f"{beginning}, but config.{key} holds for all presets of a run; set it in the config instead.")


class _Override(NamedTuple):
    preset: str
    budget: int  # it holds from so many distilled pairs up
    key: str
    value: Any


def _parse(entry: str) -> _Override:
    """`preset:section.key=value` or `preset@budget:section.key=value`, the value read by the type of its default."""
    left, _, text = entry.partition("=")
    name, _, key = left.rpartition(":")
    name, at, budget = name.partition("@")
    section, _, leaf = key.partition(".")
    try:
        default = defaults()[section][leaf]
        value = {"true": True, "false": False}[text] if isinstance(default, bool) else type(default)(text)
        least = int(budget) if at else 0
        if isinstance(default, tuple) or not (name in PRESETS or is_path(name)):
            raise KeyError(name)
    except (KeyError, ValueError, AttributeError):
        raise UserError(f"run.preset_overrides holds '{entry}'; write preset:section.key=value, such as "
                        "lors:distill.lr_images=0.03, or lors@200:... for what holds from 200 pairs up.") from None
    _refuse_shared(f"run.preset_overrides holds '{entry}'", key)
    return _Override(name, least, key, value)
