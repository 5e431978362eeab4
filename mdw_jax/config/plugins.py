"""What a config names: an entry of a table in this package, or `module:function` of somebody's own."""

import importlib
from collections.abc import Mapping
from typing import Any

from mdw_jax.errors import UserError


def is_path(name: str) -> bool:
    """Whether a name is one of somebody's own, as in "my_data:squares"."""
    return ":" in name


def lookup(table: Mapping[str, Any], name: str, setting: str, noun: str):
    """The entry of `table` called `name`, or what `module:function` names.

    Args:
        table: the options of this package, by name.
        name: a key of the table, or `module:function`.
        setting: the config key that holds the name, for messages.
        noun: what the options are, for messages: "distillation loss".

    Raises:
        UserError: there is no such entry, or `module:function` cannot be imported or called.
    """
    if name in table:
        return table[name]
    if is_path(name):
        return function_of(name, setting)
    raise UserError(f"there is no {noun} '{name}'; set {setting} to one of {', '.join(table)}, or to module:function.")


def function_of(name: str, setting: str):
    """The function that `module:function` names, imported from the Python path (or the directory mdw is run in).

    Args:
        name: `module:function`; any other callable will do.
        setting: the config key that holds it, for messages.

    Raises:
        UserError: it cannot be imported, or is not callable.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a module may do anything when it is imported
        raise UserError(f"{setting} names '{name}', which cannot be imported ({_summary(error)}); write "
                        "module:function and put the module's directory on PYTHONPATH.") from error
    if not callable(function):
        raise UserError(f"{setting} names '{name}', which is no function; write module:function.")
    return function


def made_by(name: str, setting: str, kind: type, *args, **settings):
    """What the function that `module:function` names returns.

    Raises:
        UserError: it fails, or what it returns is no `kind`.
    """
    function = function_of(name, setting)
    try:
        value = function(*args, **settings)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{setting} names '{name}', which fails ({_summary(error)}); fix it (--debug shows where)."
                        ) from error
    if not isinstance(value, kind):
        raise UserError(f"{setting} names '{name}', which returns {type(value).__name__}; let it return a "
                        f"{kind.__module__}.{kind.__name__}.")
    return value


def _summary(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:150]
