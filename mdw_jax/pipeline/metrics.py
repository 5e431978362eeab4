"""The metrics writers that a config names."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from mdw_jax.config import plugins
from mdw_jax.io.metrics import WRITERS, MetricsWriter, WriterFactory, open_metrics


def open_writers(config: ConfigDict, directory: Path) -> MetricsWriter:
    """Open metrics.csv and the writers of `watch.writers` for a directory below run.dir.

    Raises:
        UserError: there is no such writer, its package is missing, or its service cannot be reached.
    """
    return open_metrics(config, directory, [_factory(name) for name in dict.fromkeys(config.watch.writers)])


def _factory(name: str) -> WriterFactory:
    if plugins.is_path(name):
        return functools.partial(plugins.made_by, name, "watch.writers", MetricsWriter)
    return plugins.lookup(WRITERS, name, "watch.writers", "metrics writer")
