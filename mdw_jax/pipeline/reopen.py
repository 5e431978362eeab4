"""A run directory opened again by commands that only look: nothing is trained, and nothing is drawn anew."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mdw_jax.config import resolve
from mdw_jax.config.loading import did_you_mean, load_config
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.presets import preset_spec
from mdw_jax.errors import UserError
from mdw_jax.io.locate import refuse_unusable_path
from mdw_jax.io.records import complete
from mdw_jax.pipeline.prepared import Prepared, prepare
from mdw_jax.pipeline.preset_run import PresetRun, open_preset


class Reopened(NamedTuple):
    """A run directory and its data.

    Attributes:
        path: the directory.
        config: the config that it was made with, not resolved, with `run.dir` where the directory is now.
        prepared: its data and model.
    """

    path: Path
    config: ConfigDict
    prepared: Prepared


class Trained(NamedTuple):
    """A preset whose experts are finished, and their record, experts.json."""

    run: PresetRun
    record: dict


def reopen(path) -> Reopened:
    """Open a run directory again: its config and its data, with the features that it has cached.

    Images of a stream are not decoded. Those of a data set in memory are, once: what tells the data set from others
    depends on their pixels.

    Raises:
        UserError: it is not a run directory, its config names functions from outside the package, or the data cannot be
            read.
    """
    refuse_unusable_path(path)
    if not Path(path).is_dir():  # the name of a config, say
        raise UserError(f"there is no run directory '{path}'; check the path.")
    config = load_config(str(path))
    if config.data.stream and config.data.on_error == "stop":  # nothing was left out, so there is nothing to find again
        config = config.unlock()
        config.data.check = False
        config.lock()
    return Reopened(Path(path), config, prepare(resolve(config)))


def trained_preset(opened: Reopened, wanted: str = "") -> Trained:
    """A preset of a run whose experts are finished.

    Args:
        opened: the run.
        wanted: the preset; "": `mdw`, else the first one with experts that sees all pairs, else the first with experts.

    Raises:
        UserError: there is none, or the one that is wanted has none.
    """
    names = list(opened.config.run.presets)
    if wanted and wanted not in names:
        raise UserError(f"the run '{opened.path}' has no preset '{wanted}'{did_you_mean(wanted, names)}; it has "
                        f"{', '.join(names)}.")
    for name in [wanted] if wanted else _by_preference(opened.config, names):
        if not preset_spec(name).needs_experts:
            continue
        run = open_preset(opened.config, opened.prepared, name)
        record = complete(run.experts.path / "experts.json", run.experts.key, "rate", "networks", "recipe")
        if record is not None:
            return Trained(run, record)
    if wanted and not preset_spec(wanted).needs_experts:
        raise UserError(f"the preset '{wanted}' trains no experts; give one that does: --preset PRESET, or run mdw "
                        "experts with the preset mdw.")
    raise UserError(f"'{opened.path}' holds no finished experts{f' of {wanted}' if wanted else ''} for its config and "
                    "data; run mdw experts there first (nothing is trained here).")


def _by_preference(config: ConfigDict, names: Sequence[str]) -> list[str]:
    def rank(name: str) -> tuple[bool, bool]:
        return name != "mdw", bool(preset_spec(name).needs_experts and preset_config(config, name).filter.score)

    return sorted(names, key=rank)
