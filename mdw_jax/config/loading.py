"""Config files and overrides: read, checked against the defaults, locked."""

import difflib
import math
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mdw_jax.config import base
from mdw_jax.config.sections import flat
from mdw_jax.errors import UserError


def load_config(path: str | None, overrides: Iterable[tuple[str, str | None]] = ()) -> ConfigDict:
    """The config of a file (None: the defaults) with overrides applied in order: locked, not yet resolved.

    overrides: (dotted key without "config.", text of the value; None for a bare --config.key).
    Raises UserError for a file that cannot be used, a key that `base()` lacks, or a value of the wrong type.
    """
    config = base() if path is None else _read(path)
    known, found = flat(base()), flat(config)
    for key, value in found.items():
        if key not in known:
            raise UserError(f"config file {path}: {_no_such(key, known)}")
        kinds = {float: (float, int), tuple: (tuple, list)}.get(type(known[key]), (type(known[key]),))
        if type(value) not in kinds:
            raise UserError(f"config file {path}: config.{key} must be {_kind(known[key])}, not {value!r}.")
        if known[key] and type(known[key]) is tuple:
            kind = type(known[key][0])
            if not all(type(item) in ((float, int) if kind is float else (kind,)) for item in value):
                raise UserError(f"config file {path}: config.{key} must be {_kind(known[key])}, not {value!r}.")
    for key in known:
        if key not in found:
            raise UserError(f"config file {path} does not set config.{key}; start get_config() from "
                            "mdw_jax.config.base().")
    for key, text in overrides:
        _override(config, known, key, text)
    return config.lock()


def _read(path: str) -> ConfigDict:
    """What get_config() of the file returns. The file is run as it stands, wherever it lies; nothing is imported."""
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
                        f"{f' (line {line})' if line else ''}; mend the file.") from error
    namespace = {"__name__": "mdw_config", "__file__": path}
    try:
        exec(code, namespace)
        get_config = namespace.get("get_config")
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise UserError(f"config file {path} fails{f' at line {lines[-1]}' if lines else ''}: {reason}; mend the "
                        "file.") from error
    if not callable(get_config):
        raise UserError(f"config file {path} has no function get_config(); define one that returns a changed "
                        "mdw_jax.config.base().")
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() in config file {path} returns {type(config).__name__}, not a ConfigDict; "
                        "return a changed mdw_jax.config.base().")
    return config


def _override(config: ConfigDict, known: dict, key: str, text: str | None):
    """Sets one key from the text of its value."""
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        raise UserError(f"config.{key} is a section; set one of its keys, such as config.{inside[0]}.")
    if key not in known:
        raise UserError(_no_such(key, known))
    default = known[key]
    if text is None and not isinstance(default, bool):
        raise UserError(f"config.{key} needs a value; write --config.{key}=VALUE.")
    text = "true" if text is None else text
    if isinstance(default, tuple):
        text = repr(_items(key, default, text))
    arguments = ["mdw", f"--config.{key}={text}"]
    values = flags.FlagValues()  # our own: the process's flags stay as they are
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"config.{key} must be {_kind(default)}, not '{text}'.") from error


def _items(key: str, default: tuple, text: str) -> tuple:
    """The tuple that `text` spells: items by commas, in brackets or not, quoted or not."""
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    items = [item.strip().strip("'\"") for item in inner.split(",")]
    items = items[:-1] if items[-1] == "" else items  # "(0.1,)", and "()" for none
    try:
        kind = type(default[0]) if default else str
        found: tuple[Any, ...] = tuple(kind(item) for item in items)
        if kind is float and not all(math.isfinite(item) for item in found):
            raise ValueError("not finite")
        return found
    except ValueError as error:
        raise UserError(f"config.{key} must be {_kind(default)}, not '{text}'.") from error


def _kind(default) -> str:
    """What a key takes, in words."""
    if isinstance(default, tuple):
        return f"a list such as {','.join(map(str, default)) or 'a,b'}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[type(default)]


def _no_such(key: str, known) -> str:
    """The sentence for an unknown key: the nearest one, preferably of the same name in another section."""
    same_name = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    nearest = difflib.get_close_matches(key, same_name or list(known), 1, cutoff=0.0 if same_name else 0.4)
    meant = f"did you mean config.{nearest[0]}?" if nearest else "`mdw config` lists all keys."
    return f"there is no config.{key}; {meant}"


def _meant(word: str, known) -> str:
    """'; did you mean X?' with the nearest known word, if one is near."""
    nearest = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
