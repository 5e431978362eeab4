"""Configs and tables as plain names, values and text, without jax: what `mdw runs`, `mdw diff` and the page share."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.io.files import digest

_OF_OTHER_COMMANDS = ("watch", "plan", "export", "certify", "fairness")  # sections that no score depends on
_OWN = "run.dir"  # every run has its own


def flat(tree, prefix: str = "") -> dict:
    """{dotted key: value} of a ConfigDict, or of nested dicts."""
    found = {}
    for name, value in tree.items():
        found.update(flat(value, f"{prefix}{name}.") if hasattr(value, "items") else {f"{prefix}{name}": value})
    return found


def differences(*settings: Mapping) -> list[tuple]:
    """(key, its value in each) where they differ, in the order of the keys; None: it has no such key. As `flat`."""
    keys = sorted({key for one in settings for key in one if key != _OWN})
    values = [(key, *(one.get(key) for one in settings)) for key in keys]
    return [(key, first, *others) for key, first, *others in values if any(other != first for other in others)]


def text(value) -> str:
    """A value for people to read: "-" for none."""
    if value is None or value == "":
        return "-" if value is None else '""'
    return ",".join(map(text, value)) if isinstance(value, (list, tuple)) else str(value)


def aligned(rows: list[dict[str, str]]) -> str:
    """Columns for a terminal."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = [dict(zip(rows[0], rows[0], strict=True)), *rows]
    return "\n".join("  ".join(f"{line[name]:<{width}}" for name, width in widths.items()).rstrip() for line in lines)


def half_interval(values: Sequence[float]) -> float | None:
    """Half the two-sided 95 % t-interval of the mean of independent values; None from fewer than two."""
    from scipy.special import stdtrit  # here, because `mdw runs` does without it

    n = len(values)
    return None if n < 2 else float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))


def config_digest(config: Mapping) -> str:
    """sha256 of what the scores of a config depend on: not where the run lies, nor what only other commands read.

    config: nested dicts, resolved, as made or as read back from config.json. Raises ValueError for what is none.
    """
    if not isinstance(config, Mapping):
        raise ValueError("not a config")
    return digest({key: value for key, value in flat(config).items()
                   if key != _OWN and key.partition(".")[0] not in _OF_OTHER_COMMANDS})


def refuse_sweep(folder: Path) -> None:
    """Raises UserError for the folder of a sweep, where a run's is wanted."""
    if (folder / "sweep").is_dir() or (folder / "sweep.csv").exists():
        raise UserError(f"'{folder}' holds a sweep, whose cells have a config each; compare them with mdw table "
                        f"{folder / 'sweep.csv'}.")
