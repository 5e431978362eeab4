"""What the files of a run say of its presets, without importing anybody's code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mdw_jax.config.presets import KINDS, PRESETS
from mdw_jax.io.checksums import read_verified_json

SUMMARY = "report.json"  # of a run: which config the scores belong to, and where its sets and experts lie


class PresetInfo(NamedTuple):
    """What is known of a preset.

    Attributes:
        label: its name in tables.
        kind: "distilled", "coreset" or "reference"; None where the files do not say.
        needs_experts: whether experts are trained for it; None where the files do not say.
    """

    label: str
    kind: str | None = None
    needs_experts: bool | None = None

    def has_sets(self, rows: Sequence[Mapping] = ()) -> bool:
        """Whether it ends in small sets, learned or chosen. rows: its rows of scores.csv, for an unknown kind.

        Only students have a learning-rate scale and a number of steps; the rows of a reference are expert networks,
        which leave both columns empty.
        """
        if self.kind is not None:
            return self.kind != "reference"
        return not rows or any(row.get(name) != "" for row in rows for name in ("lr_scale", "steps"))


def preset_info(name: str, summary: Mapping | None = None) -> PresetInfo:
    """What is known of one preset.

    Args:
        name: built-in, or `module:function`. Reading the files of a run must not run code, so that is not imported.
        summary: report.json of a run with this preset, possibly damaged; it holds the label and the kind.
    """
    if name in PRESETS:
        spec = PRESETS[name]
        return PresetInfo(spec.label or name, spec.kind, spec.needs_experts)
    entries = (summary or {}).get("presets")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name:
            label, kind = entry.get("label"), entry.get("kind")
            known = isinstance(kind, str) and kind in KINDS
            return PresetInfo(label if label and isinstance(label, str) else name, kind if known else None,
                              "experts" in entry if known else None)
    return PresetInfo(name)


def read_summary(directory: Path) -> dict:
    """report.json of a run, unchecked; {} where it cannot be read."""
    try:
        return read_verified_json(directory / SUMMARY)
    except (OSError, ValueError):
        return {}
