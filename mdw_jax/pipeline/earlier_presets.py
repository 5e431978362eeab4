"""Presets that an earlier command scored in the same run folder: their rows stay, though a later one names fewer."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mdw_jax.config.overrides import preset_config
from mdw_jax.config.sections import config_digest
from mdw_jax.config.stored import CONFIG, read_run_config, refuse_stored_functions
from mdw_jax.errors import UserError
from mdw_jax.io.files import read_json
from mdw_jax.io.scores import METRICS, SCORES, read_scores
from mdw_jax.reporting.run_files import SUMMARY


def earlier_presets(config: ConfigDict) -> tuple[str, ...]:
    """The presets scored in `run.dir` that this config does not name, and would not change.

    Args:
        config: the run's config, not resolved.

    Returns:
        Their names; none where the folder holds no finished run, or one of other settings.
    """
    directory = Path(config.run.dir)
    try:
        scored = [entry["name"] for entry in read_json(directory / SUMMARY)["presets"]]
        stored = read_run_config(directory)
        refuse_stored_functions(stored, directory / CONFIG, ())
        return tuple(name for name in scored if name not in config.run.presets and _same(stored, config, name))
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return ()  # no run, or a damaged one: nothing that could be kept


def earlier_results(directory: Path, names: Sequence[str]) -> tuple[list[dict], list[dict]]:
    """What an earlier command left of presets.

    Args:
        directory: the run folder, whose scores.csv and report.json are still those of before.
        names: the presets.

    Returns:
        Their rows of scores.csv, and their entries of report.json.
    """
    if not names:
        return [], []
    rows = [row for row in read_scores(directory / SCORES, numbers=METRICS) if row["preset"] in names]
    return rows, [entry for entry in read_json(directory / SUMMARY)["presets"] if entry["name"] in names]


def _same(stored: ConfigDict, config: ConfigDict, name: str) -> bool:
    """Whether a preset has the same settings in both configs."""
    digests = set()
    for one in (stored, config):
        settings = preset_config(one, name).to_dict()
        digests.add(config_digest({section: values for section, values in settings.items() if section != "run"}
                                  | {"seed": {"seed": settings["run"]["seed"]}}))
    return len(digests) == 1
