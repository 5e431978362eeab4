"""Which values of a config are `module:function`, and digests of the source behind them."""

from ml_collections import ConfigDict

from mdw_jax.config.options import CHOICES
from mdw_jax.config.plugins import is_path, source_digest


def plugin_values(config: ConfigDict, *sections: str) -> dict[str, tuple[str, ...]]:
    """{config key: its names of functions from outside the package}, of the keys that take any.

    Args:
        config: a config.
        *sections: the sections to look at; none: all of them.
    """
    values = {}
    for key, choice in CHOICES.items():
        section, leaf = key.split(".")
        if choice.plugin and (section in sections or not sections):
            value = config[section][leaf]
            values[key] = tuple(filter(is_path, value if isinstance(value, (tuple, list)) else [value]))
    return {key: names for key, names in values.items() if names}


def plugin_sources(config: ConfigDict, *sections: str) -> tuple[str, ...]:
    """Digests of the source behind each of `plugin_values`, as further parts of a key; none, where there are none."""
    return tuple(source_digest(name) for names in plugin_values(config, *sections).values() for name in names)
