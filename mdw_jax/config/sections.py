"""Configs and tables as plain names, values and text, without jax: what `mdw runs`, `mdw diff` and the page share."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

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


def fields(kind, section: ConfigDict):
    """The fields of dataclass `kind`, read off a config section."""
    return kind(**{field.name: section[field.name] for field in dataclasses.fields(kind)})
