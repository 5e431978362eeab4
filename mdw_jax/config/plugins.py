"""Options by name: an entry of a table in this package, or `module:function` from outside it."""

import difflib
import functools
import hashlib
import importlib
import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from mdw_jax.errors import UserError

_LOG = logging.getLogger(__name__)
_DIGESTS: dict[int, tuple[Any, str]] = {}  # id of an object: the object, which stays alive, and its source's digest

_MOST_LISTED = 16  # options named in a message

def is_path(name: str) -> bool:
    """Whether a name is `module:function`, as in "my_data:squares", and not the name of a table's entry."""
    return isinstance(name, str) and ":" in name


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
    raise unknown_option(name, setting, noun, table)


def unknown_option(name: Any, setting: str, noun: str, names: Iterable[str], *, plugin: bool = True) -> UserError:
    """The error for a name that is not among the options of a setting: with the nearest one, or all if none is near.

    Args:
        name: the unknown name.
        setting: the config key that holds it.
        noun: what the options are.
        names: the options of this package; an empty one (for none) is not listed.
        plugin: whether `module:function` is an option too.
    """
    names = [choice for choice in names if choice]
    nearest = difflib.get_close_matches(name, names, 1, cutoff=0.75) if isinstance(name, str) else []
    if nearest:
        return UserError(f"there is no {noun} '{name}' for {setting}; did you mean {nearest[0]}?")
    other = ", or to module:function" if plugin else ""
    return UserError(f"there is no {noun} '{name}'; set {setting} to one of {listed(names)}{other}.")


def listed(names: Iterable[str]) -> str:
    """Names of options in a message: all of them, or, of many, the first ones and where the others are."""
    names = list(names)
    if len(names) <= _MOST_LISTED:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_LISTED])} or {len(names) - _MOST_LISTED} others (mdw config --help lists them)"


def function_of(name: str, setting: str):
    """The function that `module:function` names, imported from the Python path (or the directory mdw is run in).

    Args:
        name: `module:function`, or `module:Class.method`; any other callable will do.
        setting: the config key that holds it, for messages.

    Raises:
        UserError: it cannot be imported, or is not callable.
    """
    module, _, attribute = name.partition(":")
    try:
        function = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (Exception, SystemExit) as error:  # a module may do anything when it is imported
        raise UserError(f"{setting} names '{name}', which cannot be imported ({error_summary(error)}); write "
                        "module:function and put the module's directory on PYTHONPATH.") from error
    if not callable(function):
        raise UserError(f"{setting} names '{name}', which is not a function; write module:function.")
    return function


def made_by(name: str, setting: str, kind: type, *args, **settings):
    """What the function that `module:function` names returns when it is called.

    Args:
        name: `module:function`.
        setting: the config key that holds it, for messages.
        kind: the class that it must return.
        *args: arguments of the function.
        **settings: keyword arguments of the function.

    Raises:
        UserError: it cannot be imported, fails, or returns something else.
    """
    function = function_of(name, setting)
    try:
        value = function(*args, **settings)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{setting} names '{name}', which fails ({error_summary(error)}); fix it (--debug shows where)."
                        ) from error
    if not isinstance(value, kind):
        raise UserError(f"{setting} names '{name}', which returns {type(value).__name__}; let it return a "
                        f"{kind.__module__}.{kind.__name__}.")
    return value


def source_digest(name: str) -> str:
    """sha256 of the source behind `module:function`, by which results of an edited function are not taken for new ones.

    The source is that of the named module and of the module that defines the function, if that is another; where
    neither has one, that of the function. It is read once for each function, so that edits during a run do not count.

    Args:
        name: `module:function`.

    Returns:
        A digest of `name` alone, with a logged warning, where no source can be read.

    Raises:
        UserError: it cannot be imported, or is not callable.
    """
    function = function_of(name, "the config")
    function = getattr(function, "__func__", function)  # a class makes its bound methods anew each time
    if id(function) not in _DIGESTS:
        source = _source(function, name.partition(":")[0])
        if source is None:
            _LOG.warning("the source of '%s' cannot be read, so results are not made anew when it changes; delete the "
                         "run directory, or take another, after an edit.", name)
        _DIGESTS[id(function)] = function, hashlib.sha256((source or name).encode()).hexdigest()
    return _DIGESTS[id(function)][1]


def _source(function, module: str) -> str | None:
    """The source of a module and of the one that defines `function`, or of `function` alone; None if there is none."""
    defined_in = inspect.unwrap(function)
    others = [defined_in.__module__] if inspect.isroutine(defined_in) or inspect.isclass(defined_in) else []
    modules = [importlib.import_module(one) for one in dict.fromkeys([module, *others]) if one]
    return "".join(filter(None, map(_source_of, modules))) or _source_of(function)


def _source_of(thing) -> str | None:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return None


def error_summary(error: BaseException) -> str:
    """An exception in a few words on one line: its type, and the beginning of its message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:150]
