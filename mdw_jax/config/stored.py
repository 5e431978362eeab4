"""Configs as runs store them: config.json of a run folder as a config again. Nothing that they name is imported."""

from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from mdw_jax.config.defaults import base, defaults
from mdw_jax.config.loading import has_type_of, type_in_words
from mdw_jax.config.plugin_values import plugin_values
from mdw_jax.config.plugins import is_path
from mdw_jax.config.sections import flat, refuse_sweep
from mdw_jax.errors import UserError
from mdw_jax.io.checksums import DamagedError, read_verified_json
from mdw_jax.io.locate import wrong_level

CONFIG = "config.json"  # resolved: what a run was made with
AS_GIVEN = "config_as_given.json"  # before recipes were filled in, from which presets are made


def read_run_config(folder: Path) -> ConfigDict:
    """The config that a run folder was made with; its `run.dir` is the folder, wherever it was before.

    Raises:
        UserError: the folder is no run, or its config is damaged or of another version.
    """
    if not (folder / CONFIG).is_file():
        refuse_sweep(folder)
        raise UserError(wrong_level(folder, "run") or f"'{folder}' is not a run folder (it has no {CONFIG}); give one "
                        "that mdw run made, the name of a config (mdw config --list), or a config file.")
    given = folder / AS_GIVEN
    config = read_config_file(given if given.is_file() else folder / CONFIG)
    config.run.dir = str(folder)
    return config


def read_config_file(path: Path) -> ConfigDict:
    """The config in a JSON file. A setting that it lacks, as files of earlier versions may, has its default.

    Raises:
        UserError: the file is no config, has a key that does not exist, or a value of another type.
    """
    try:
        stored = flat(read_verified_json(path, note=path.name in (CONFIG, AS_GIVEN)))  # of a run, and not a user's own
    except FileNotFoundError:
        raise UserError(f"there is no config file {path}; check the path.") from None
    except DamagedError as error:
        raise UserError(f"config file {path} is damaged, or was edited in its place ({error}); give the config that the "
                        "run was made with, or a copy of this file elsewhere if it is as you mean it.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"config file {path} cannot be read ({error}); give another.") from None
    config, known = base(), flat(defaults())
    for key, value in stored.items():
        if key not in known:
            raise UserError(f"config file {path} sets config.{key}, which this version does not have; it is of another "
                            "version of mdw-jax, or no config.")
        if not has_type_of(known[key], value):
            raise UserError(f"config file {path}: config.{key} must be {type_in_words(known[key])}, not {value!r}.")
        section, _, name = key.partition(".")
        config[section][name] = tuple(value) if isinstance(value, list) else value
    return config


def refuse_stored_functions(config: ConfigDict, source: Path, overridden: Collection[str]) -> None:
    """Refuse functions from outside the package (`module:function`) that a stored config names, and no flag does.

    A folder may be a stranger's, and to read it must import nothing.

    Args:
        config: the config with its overrides.
        source: where it was stored.
        overridden: the keys that the command line sets.

    Raises:
        UserError: it names one.
    """
    in_overrides = tuple(entry for entry in config.run.preset_overrides if _names_function(entry))
    for key, names in {**plugin_values(config), "run.preset_overrides": in_overrides}.items():
        if names and key not in overridden:
            value = flat(config)[key]
            raise UserError(f"'{source}' names {names[0]} for config.{key}, which is not part of mdw-jax, and what a run "
                            f"folder names is never imported; if you trust it, add --config.{key}="
                            f"{','.join(value) if isinstance(value, tuple) else value}.")


def _names_function(entry: str) -> bool:
    """Whether the preset, or the value, of an entry `preset:key=value` is `module:function`."""
    left, _, value = entry.partition("=")
    return is_path(value) or is_path(left.rpartition(":")[0])
