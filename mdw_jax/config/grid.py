"""The grid of `mdw sweep`, read from the command line: its axes and the share of one process."""

import re
from collections.abc import Sequence
from typing import Any

from mdw_jax.config.defaults import base
from mdw_jax.config.loading import did_you_mean, parse_value
from mdw_jax.config.plugins import is_path, listed
from mdw_jax.config.presets import PRESETS
from mdw_jax.config.sections import flat
from mdw_jax.errors import UserError


def parse_axes(texts: Sequence[str]) -> dict[str, tuple]:
    """The axes that the words after `--grid` spell, in order.

    Args:
        texts: one "KEY=VALUE,VALUE" for each axis; values that are lists themselves are separated by semicolons.

    Returns:
        {dotted key of the config, or "preset": its values, of the key's type}.

    Raises:
        UserError: no such key or preset, a value of the wrong type, no values, or anything given twice.
    """
    defaults, axes = flat(base()), {}
    for text in texts:
        key, _, values = text.partition("=")
        if not values.strip():
            raise UserError(f"--grid {text} has no values; write --grid KEY=VALUE,VALUE.")
        if key in axes:
            raise UserError(f"--grid {key} is given twice; give all its values in one.")
        if key == "run.dir":
            raise UserError("--grid run.dir: all cells share one directory; write --config.run.dir=DIRECTORY.")
        if key == "run.presets":
            raise UserError(f"--grid run.presets: write --grid preset={values}.")
        items = [item.strip() for item in values.split(";" if isinstance(defaults.get(key), tuple) else ",")]
        axes[key] = tuple(_preset(item) if key == "preset" else parse_value(key, item) for item in items)
        _refuse_repeats(key, items, axes[key])
    return axes


def parse_shard(text: str) -> tuple[int, int]:
    """(1, 3) from "1/3". Raises UserError unless it is I/N with I from 0 to N - 1."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if index >= count:
        raise UserError(f"--shard must be I/N with I from 0 to N - 1, such as 0/2 and 1/2, not '{text}'.")
    return index, count


def _preset(name: str) -> str:
    if name not in PRESETS and not is_path(name):
        choose = f"; choose some of {listed(PRESETS)}."
        raise UserError(f"--grid preset: there is no preset '{name}'{did_you_mean(name, PRESETS) or choose}")
    return name


def _refuse_repeats(key: str, items: Sequence[str], values: Sequence[Any]) -> None:
    repeats = [item for item, value in zip(items, values, strict=True) if values.count(value) > 1]
    if repeats:
        raise UserError(f"--grid {key} has {repeats[-1]} twice; give each value once.")
