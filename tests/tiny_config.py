"""The config of a tiny run: defaults, settings that a module of tests shares, and what one test changes."""

from mdw_jax.config import base, resolve
from mdw_jax.pipeline.prepared import prepare


def tiny_config(settings, folder, **changes):
    """`base()` with settings {dotted key: value}, its run in `folder`, and `section__key=value` for each change."""
    c = base()
    c.update_from_flattened_dict(settings | {"run.dir": str(folder)})
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return c


def prepared_run(tiny, tmp_path_factory):
    """A run directory that the tests of a module share, and the data of `tiny(directory)`."""
    directory = tmp_path_factory.mktemp("run") / "run"
    return directory, prepare(resolve(tiny(directory)))
