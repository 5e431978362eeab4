"""Checks of the JSON files of a run: the types of all fields that reports read."""

from collections.abc import Callable, Mapping
from typing import Any

from mdw_jax.config.presets import KINDS

DIVISION_EDGES = [k / 10 for k in range(11)]  # of the histograms of clean probabilities in report.json
_MAX_COUNT = 1 << 53  # a whole number up to here is exact as a float

# A schema is one of: a test; [the schema of all items]; {"name": schema} for an object, where "name?" may be missing.
Schema = Callable[[Any], bool] | list | Mapping


def check(value, schema: Schema, name: str = "") -> None:
    """Raise ValueError, with the name of the field, where a JSON value has not this schema."""
    if isinstance(schema, list):
        if not isinstance(value, list):
            raise ValueError(f"{name or 'it'} is not an array")
        for index, item in enumerate(value):
            check(item, schema[0], f"{name}[{index}]")
    elif isinstance(schema, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{name or 'it'} is not an object")
        for key, inner in schema.items():
            field = key.removesuffix("?")
            if field in value:
                check(value[field], inner, f"{name}.{field}".lstrip("."))
            elif field == key:
                raise ValueError(f"{name + '.' if name else ''}{field} is missing")
    elif not schema(value):
        raise ValueError(f"{name or 'it'} has a wrong type or value")


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_number(value) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)
                                        and abs(value) <= _MAX_COUNT)


def _is_count(value) -> bool:
    return _is_number(value) and isinstance(value, int) and value > 0


def _is_step(value) -> bool:
    return _is_number(value) and isinstance(value, int) and value >= 0


def _or_null(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or test(value)


def _values(schema: Schema) -> Callable[[Any], bool]:
    """A test for an object whose values all have one schema."""
    def test(value) -> bool:
        if not isinstance(value, dict):
            return False
        for name, inner in value.items():
            check(inner, schema, name)
        return True
    return test


def _is_histogram(value) -> bool:
    return isinstance(value, list) and len(value) == len(DIVISION_EDGES) - 1 and all(map(_is_step, value))


def _is_estimate(value) -> bool:
    check(value, {"eta": _is_number, "low": _is_number, "high": _is_number, "confidence": _is_number}, "estimated")
    return True


_PRESET = {
    "name": _is_text, "label?": _is_text, "kind?": lambda value: value in KINDS, "pairs": _is_count,
    "sets": [_is_text],
    "noise": {"label": _is_text, "protocol": _is_text, "rate": _or_null(_is_number), "sha256": _is_text,
              "estimated?": _or_null(_is_estimate), "assumed?": _or_null(_is_number)},
}
_TRAINED = {"experts": _is_text, "recipe": _is_text, "division": _values(_is_histogram)}  # of presets with experts


def _is_preset(value) -> bool:
    check(value, _PRESET, "presets")
    if "experts" in value:
        check(value, _TRAINED, "presets")
    return True


SUMMARY_SCHEMA = {"config?": _is_text, "data": _is_text, "fingerprint": _is_text, "images": _is_count,
                  "captions": _is_count, "skipped?": _values(_is_step),
                  "source_notes?": [_is_text], "presets": [_is_preset],
                  "splits?": _values({"images": _is_count, "captions": _is_count})}
CONFIG_SCHEMA = {"run": {"seed": lambda value: isinstance(value, int)}, "evaluate": {"select_on": _is_text}}
ENVIRONMENT_SCHEMA = {"packages?": _values(_or_null(_is_text)), "devices?": [_is_text], "python?": _or_null(_is_text),
                      "commit?": _or_null(_is_text)}
METRICS_SCHEMA = [{"step": _is_step, "loss": _is_number, "inner_lr_image": _is_number, "inner_lr_text": _is_number,
                   "val_r_mean?": _is_number, "restart?": _is_number}]
LOG_SCHEMA = [{"generation": _is_text, "epoch": _is_step, "val_r_mean?": _is_number, "precision?": _is_number,
               "recall?": _is_number}]
_CERTIFICATE_INPUTS = {"eta": _is_number, "tracks": _values(
    {"loss": _is_text, "q": _is_number, "certificate?": _or_null(_is_text),
     "excess_risk_bound?": _or_null(_is_number)})}


def _are_certificate_inputs(value) -> bool:
    if value is not None:
        check(value, _CERTIFICATE_INPUTS, "certificate_inputs")
        if any(not (entry.get("certificate") or _is_number(entry.get("excess_risk_bound")))
               for entry in value["tracks"].values()):
            return False
    return True


EXPERTS_SCHEMA = {"networks": _is_step, "certificate_inputs": _are_certificate_inputs}
CARD_SCHEMA = {"sha256": _is_text, "chosen?": _is_text, "candidates?": [
    {"step": _is_step, "correspondence": _is_text, "tau": _or_null(_is_number), "val_r_mean": _is_number,
     "lr_scale": _is_number}]}
