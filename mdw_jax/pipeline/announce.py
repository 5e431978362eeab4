"""The first lines of a command: what is done to the data on purpose, and what was found in them."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from mdw_jax.config.noise import noise_lines
from mdw_jax.config.overrides import preset_config
from mdw_jax.data.pairs import Pairs
from mdw_jax.pipeline.inputs import source_notes
from mdw_jax.runtime.processes import is_main


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


def announce_source(pairs: Pairs) -> None:
    """Print how a data set was read and what was left out."""
    if is_main():
        for line in source_notes(pairs):
            print(f"data: {line}", flush=True)
