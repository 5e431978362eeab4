"""Configs as flat settings, their differences and their digest, without jax."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from mdw_jax.errors import UserError

_WITHOUT_SCORES = ("watch", "plan", "export", "certify", "fairness")  # sections on which no score depends
_DIRECTORY = "run.dir"  # differs between any two runs


def flat(tree: Mapping | ConfigDict, prefix: str = "") -> dict:
    """Flatten a ConfigDict, or nested dicts, to {dotted key: value}."""
    settings = {}
    for name, value in tree.items():
        settings |= flat(value, f"{prefix}{name}.") if hasattr(value, "items") else {f"{prefix}{name}": value}
    return settings


def differences(*settings: Mapping) -> list[tuple]:
    """Where flat settings differ, `run.dir` apart.

    Args:
        *settings: {dotted key: value} each, as from `flat`.

    Returns:
        (key, its value in each) in the order of the keys; None where there is no such key.
    """
    keys = sorted({key for one in settings for key in one if key != _DIRECTORY})
    values = [(key, *(one.get(key) for one in settings)) for key in keys]
    return [(key, first, *others) for key, first, *others in values if any(other != first for other in others)]


def config_digest(config: Mapping) -> str:
    """sha256 of all settings on which scores depend: without `run.dir` and the sections of other commands.

    Args:
        config: resolved; a ConfigDict, or nested dicts as read back from config.json.

    Raises:
        ValueError: it is not a mapping.
    """
    from mdw_jax.io.files import digest  # here, because it imports numpy: commands that need no digest start faster

    if not isinstance(config, Mapping):
        raise ValueError("not a config")
    return digest({key: value for key, value in flat(config).items()
                   if key != _DIRECTORY and key.partition(".")[0] not in _WITHOUT_SCORES})


def refuse_sweep(folder: Path) -> None:
    """Raises UserError for the directory of a sweep, where a run's is needed."""
    if (folder / "sweep").is_dir() or (folder / "sweep.csv").exists():
        raise UserError(f"'{folder}' holds a sweep, in which each cell has its own config; compare them with mdw table "
                        f"{folder / 'sweep.csv'}.")


def fields(kind: type, section: ConfigDict, **others):
    """An instance of the dataclass `kind` whose fields are the settings of those names in a config section.

    Args:
        kind: a dataclass.
        section: of a config.
        **others: values of fields that are no settings of this section; those with a default may be left out.
    """
    optional = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    return kind(**others, **{field.name: section[field.name] for field in dataclasses.fields(kind)
                             if field.name not in others and (field.name in section or field.name not in optional)})
