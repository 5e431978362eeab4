"""What a config names as `module:function`: data readers and image towers that live outside this package."""

import importlib

from mdw_jax.errors import UserError


def is_path(name: str) -> bool:
    """Whether a name is one of somebody's own, as in "my_data:squares"."""
    return ":" in name


def function_of(name: str, setting: str):
    """The function that `module:function` names, imported from the Python path (or the folder mdw is run in).

    setting: the config key that named it, for the message. Raises UserError if there is none.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # a module may do anything when it is imported
        raise UserError(f"{setting} names '{name}', which cannot be imported ({_said(error)}); write module:function "
                        "and put the module's folder on PYTHONPATH.") from error
    if not callable(found):
        raise UserError(f"{setting} names '{name}', which is no function; write module:function.")
    return found


def made_by(name: str, setting: str, kind: type, *args, **settings):
    """What the function that `module:function` names returns. Raises UserError if it fails or that is no `kind`."""
    function = function_of(name, setting)
    try:
        made = function(*args, **settings)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{setting} names '{name}', which fails ({_said(error)}); mend it (--debug shows where)."
                        ) from error
    if not isinstance(made, kind):
        raise UserError(f"{setting} names '{name}', which returns {type(made).__name__}; let it return a "
                        f"{kind.__module__}.{kind.__name__}.")
    return made


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:150]
