"""Config files and overrides: read, checked against the defaults, locked."""

import difflib
import math
import os
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from mdw_jax.config.defaults import base
from mdw_jax.config.sections import flat
from mdw_jax.config.shipped import shipped_configs
from mdw_jax.errors import UserError

_PARSERS: dict[type, flags.ArgumentParser] = {
    bool: flags.BooleanParser(), int: flags.IntegerParser(), float: flags.FloatParser(), str: flags.ArgumentParser()}
_LARGEST = 2**63  # of whole numbers: none of more digits means anything, and some do not fit into a float


def load_config(path: str | None, overrides: Iterable[tuple[str, str | None]] = ()) -> ConfigDict:
    """A config, with overrides applied in order.

    Args:
        path: the name of a config that the package holds; a run folder; a JSON file that a run stored; or a Python file
            with get_config(); None for the defaults.
        overrides: (dotted key, text of its value); None instead of a text switches a key on that is true or false.

    Returns:
        The config, locked, not yet resolved.

    Raises:
        UserError: the file cannot be used, a key is not in `base()`, or a value has the wrong type.
    """
    overrides, defaults = list(overrides), flat(base())
    shipped = shipped_configs()
    if path in shipped and not os.path.isfile(os.path.join(path, "config.json")):  # unless a run folder is called so
        path = str(shipped[path])
    stored = path is not None and (Path(path).is_dir() or path.endswith(".json"))
    config = base() if path is None else _read_stored(Path(path)) if stored else _read_python(path, defaults)
    override(config, overrides)
    if stored:
        from mdw_jax.config.stored import refuse_stored_functions

        refuse_stored_functions(config, Path(path), {key for key, _ in overrides})
    return config.lock()


def override(config: ConfigDict, overrides: Iterable[tuple[str, str | None]]) -> None:
    """Sets keys of a config, in place: see `load_config`."""
    defaults = flat(base())
    for key, text in overrides:
        _set_from_text(config, defaults, key, text)


def parse_value(key: str, text: str) -> Any:
    """The value of one key, of the key's type, from its text. Raises UserError as `load_config`."""
    config = base()
    _set_from_text(config, flat(config), key, text)
    return flat(config)[key]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """'; did you mean X?' with the nearest choice, or '' if none is near."""
    nearest = difflib.get_close_matches(word, list(choices), 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _read_stored(path: Path) -> ConfigDict:
    from mdw_jax.config.stored import read_config_file, read_run_config  # here, because it imports numpy

    return read_run_config(path) if path.is_dir() else read_config_file(path)


def _read_python(path: str, defaults: dict[str, Any]) -> ConfigDict:
    """The config of a Python file."""
    if not Path(path).exists() and not Path(path).suffix:
        names = shipped_configs()
        if "/" in path:
            raise UserError(f"there is no run folder or config file '{path}'; check the path (mdw runs lists those below "
                            "runs/).")
        raise UserError(f"there is no run folder, config file or config '{path}'"
                        f"{did_you_mean(path, names) or '; configs are ' + ', '.join(names) + '.'}")
    config = _read_file(path)
    _check_keys(path, flat(config), defaults)
    return config


def _read_file(path: str) -> ConfigDict:
    """Executes the file, which need not be importable, and returns what its get_config() returns."""
    try:
        source = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no config file {path}; check the path.") from error
    except OSError as error:
        raise UserError(f"config file {path} cannot be read: {error.strerror}; give another.") from error
    try:
        code = compile(source, path, "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise UserError(f"config file {path} is not Python: {getattr(error, 'msg', None) or error}"
                        f"{f' (line {line})' if line else ''}; fix the file.") from error
    namespace = {"__name__": "mdw_config", "__file__": path}
    try:
        exec(code, namespace)
        get_config = namespace.get("get_config")
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise UserError(f"config file {path} fails{f' at line {lines[-1]}' if lines else ''}: {reason}; fix the "
                        "file.") from error
    if not callable(get_config):
        raise UserError(f"config file {path} has no function get_config(); define one that returns a changed "
                        "mdw_jax.config.base().")
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() in config file {path} returns {type(config).__name__}, not a ConfigDict; "
                        "return a changed mdw_jax.config.base().")
    return config


def _check_keys(path: str, values: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raises UserError unless the file sets exactly the keys of the defaults, each to a value of its type."""
    for key, value in values.items():
        if key not in defaults:
            raise UserError(f"config file {path}: {_no_such_key(key, defaults)}")
        if not has_type_of(defaults[key], value):
            raise UserError(f"config file {path}: config.{key} must be {type_in_words(defaults[key])}, not {value!r}.")
    for key in defaults:
        if key not in values:
            raise UserError(f"config file {path} does not set config.{key}; start get_config() from "
                            "mdw_jax.config.base().")


def has_type_of(default, value) -> bool:
    """Whether a value has the type of the default: whole numbers also count as numbers, lists also as tuples."""
    if isinstance(default, tuple):
        return type(value) in (tuple, list) and all(has_type_of(default[0], item) for item in value if default)
    if type(value) is int and abs(value) > _LARGEST:
        return False
    return type(value) in ((float, int) if isinstance(default, float) else (type(default),))


def _set_from_text(config: ConfigDict, defaults: dict[str, Any], key: str, text: str | None) -> None:
    """Sets one key of the config from the text of its value."""
    keys_inside = [name for name in defaults if name.startswith(f"{key}.")]
    if keys_inside:
        raise UserError(f"config.{key} is a section; set one of its keys, such as config.{keys_inside[0]}.")
    if key not in defaults:
        raise UserError(_no_such_key(key, defaults))
    default = defaults[key]
    if text is None and not isinstance(default, bool):
        raise UserError(f"config.{key} needs a value; write --config.{key}=VALUE.")
    text = "true" if text is None else text
    section, _, name = key.rpartition(".")
    try:
        value = _parse_list(default, text) if isinstance(default, tuple) else _PARSERS[type(default)].parse(text)
        config[section][name] = value  # where the file made it a reference, keys that refer to it follow
    except (TypeError, ValueError) as error:
        raise UserError(f"config.{key} must be {type_in_words(default)}, not '{text}'.") from error


def _parse_list(default: tuple, text: str) -> tuple:
    """The tuple that `text` spells: items separated by commas, in brackets or not, quoted or not."""
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    items = [item.strip().strip("'\"") for item in inner.split(",")]
    items = items[:-1] if items[-1] == "" else items  # as in "(0.1,)" and "()"
    item_type = type(default[0]) if default else str
    values: tuple[Any, ...] = tuple(item_type(item) for item in items)
    if item_type is float and not all(math.isfinite(value) for value in values):
        raise ValueError("not finite")
    return values


def type_in_words(default) -> str:
    if isinstance(default, tuple):
        return f"a list such as {','.join(map(str, default)) or 'a,b'}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[type(default)]


def _no_such_key(key: str, defaults: Iterable[str]) -> str:
    """The sentence for an unknown key; it names the nearest one, preferably one of the same name in another section."""
    same_name = [name for name in defaults if name.split(".")[-1] == key.split(".")[-1]]
    nearest = difflib.get_close_matches(key, same_name or list(defaults), 1, cutoff=0.0 if same_name else 0.4)
    suggestion = f"did you mean config.{nearest[0]}?" if nearest else "`mdw config` lists all keys."
    return f"there is no config.{key}; {suggestion}"
