"""Configs as runs store them: config.json of a run folder as a config again. Nothing that they name is imported."""

from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from mdw_jax.config.defaults import base
from mdw_jax.config.loading import has_type_of, type_in_words
from mdw_jax.config.options import CHOICES
from mdw_jax.config.plugins import is_path
from mdw_jax.config.sections import flat, refuse_sweep
from mdw_jax.errors import UserError
from mdw_jax.io.files import read_json
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
        stored = flat(read_json(path))
    except FileNotFoundError:
        raise UserError(f"there is no config file {path}; check the path.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"config file {path} cannot be read ({error}); give another.") from None
    config, defaults = base(), flat(base())
    for key, value in stored.items():
        if key not in defaults:
            raise UserError(f"config file {path} sets config.{key}, which this version does not have; it is of another "
                            "version of mdw-jax, or no config.")
        if not has_type_of(defaults[key], value):
            raise UserError(f"config file {path}: config.{key} must be {type_in_words(defaults[key])}, not {value!r}.")
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
    values = {key: value for key, value in flat(config).items()
              if key not in overridden and (key == "run.preset_overrides" or (key in CHOICES and CHOICES[key].plugin))}
    for key, value in values.items():
        for item in value if isinstance(value, tuple) else (value,):
            name = item.partition("=")[2] if key == "run.preset_overrides" else item
            preset = item.rpartition("=")[0].rpartition(":")[0] if key == "run.preset_overrides" else ""
            if is_path(name) or is_path(preset):
                raise UserError(f"'{source}' names {item} for config.{key}, which is not part of mdw-jax, and what a run "
                                f"folder names is never imported; if you trust it, add --config.{key}="
                                f"{','.join(value) if isinstance(value, tuple) else value}.")
