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
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{setting} names '{name}', which cannot be imported ({error}); write module:function and put "
                        "the module's folder on PYTHONPATH.") from error
    if not callable(found):
        raise UserError(f"{setting} names '{name}', which is no function; write module:function.")
    return found
