"""The first lines of a command: what is done to the data on purpose, before anything is loaded."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from mdw_jax.config.noise import noise_lines
from mdw_jax.config.overrides import preset_config


def announce_noise(config: ConfigDict, presets: Iterable[str] = ()) -> None:
    """Print a line for each kind of noise that is drawn, read or assumed for presets of a run; nothing for natural noise.

    Args:
        config: the run's config, not resolved.
        presets: their names; none: `run.presets`.
    """
    announce(preset_config(config, name) for name in presets or config.run.presets)


def announce(configs: Iterable[ConfigDict]) -> None:
    """The same of resolved configs, of a sweep's cells for example."""
    for line in noise_lines(config.noise for config in configs):
        print(line, flush=True)
