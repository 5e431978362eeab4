"""Presets that an earlier command scored in the same run folder: their rows stay, though a later one names fewer."""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mdw_jax.config.overrides import preset_config
from mdw_jax.config.sections import config_digest
from mdw_jax.config.stored import CONFIG, read_run_config, refuse_stored_functions
from mdw_jax.errors import UserError
from mdw_jax.io.checksums import DamagedError, read_verified_json, rename_listed
from mdw_jax.io.scores import METRICS, SCORES, read_scores
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import noise_of
from mdw_jax.reporting.run_files import SUMMARY


class EarlierPresets(NamedTuple):
    """What an earlier command left of presets that this one does not name.

    Attributes:
        names: the presets.
        rows: their rows of scores.csv.
        summaries: their entries of report.json.
    """

    names: tuple[str, ...] = ()
    rows: tuple[dict, ...] = ()
    summaries: tuple[dict, ...] = ()


def earlier_presets(config: ConfigDict, prepared: Prepared) -> EarlierPresets:
    """The presets scored in `run.dir` that a config does not name, whose scores would be the same today.

    That is: the stored scores are those of the stored config, of the same data, features and model, and a preset has the
    same settings and the same noise draw.

    Args:
        config: the run's config, not resolved.
        prepared: its data and model.
    """
    directory = Path(config.run.dir)
    try:
        summary = read_verified_json(directory / SUMMARY)
        scored = [entry["name"] for entry in summary["presets"]]
        resolved = read_verified_json(directory / CONFIG)
        resolved["run"]["presets"] = scored  # a later command that was interrupted may have named others
        if summary["config"] != config_digest(resolved) or summary["key"] != prepared.key:
            return EarlierPresets()
        stored = read_run_config(directory)
        refuse_stored_functions(stored, directory / CONFIG, ())
        kept = [entry for entry in summary["presets"] if entry["name"] not in config.run.presets
                and _same(stored, config, entry, prepared)]
        names = tuple(entry["name"] for entry in kept)
        rows = [row for row in read_scores(directory / SCORES, numbers=METRICS) if row["preset"] in names] if names else []
        return EarlierPresets(names, tuple(rows), tuple(kept))
    except DamagedError as error:
        raise _damaged(directory, error) from None
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return EarlierPresets()  # no run, or a damaged one: nothing that could be kept


def _same(stored: ConfigDict, config: ConfigDict, entry: dict, prepared: Prepared) -> bool:
    """Whether a preset has the same settings in both configs, and the noise that its entry of report.json names."""
    before, now = preset_config(stored, entry["name"]), preset_config(config, entry["name"])
    digests = [config_digest({**one.to_dict(), "run": {"seed": one.run.seed}}) for one in (before, now)]
    return digests[0] == digests[1] and noise_of(now, prepared).sha256 == entry["noise"]["sha256"]


def keep_other_scores(directory: Path, resolved: ConfigDict, key: str) -> None:
    """Rename the scores of other settings or data that are about to be replaced, as `scores-<8 hex digits>.csv`; say so.

    Args:
        directory: the run folder.
        resolved: the config of the scores to come.
        key: of their data and model, `Prepared.key`.
    """
    scores, settings = directory / SCORES, resolved.to_dict()
    try:
        summary = read_verified_json(directory / SUMMARY)
        settings["run"]["presets"] = [entry["name"] for entry in summary["presets"]]
        before, same = summary["config"], summary["config"] == config_digest(settings) and summary["key"] == key
    except DamagedError as error:
        raise _damaged(directory, error) from None
    except (OSError, ValueError, KeyError, TypeError):
        return  # there are none, or nobody knows of what
    if scores.is_file() and not same:
        kept = rename_listed(scores, f"scores-{before[:8]}.csv")
        print(f"kept:   {kept} (the scores of other settings or data, which were {scores.name})")


def _damaged(directory: Path, error: DamagedError) -> UserError:
    return UserError(f"{CONFIG}, {SUMMARY} or {SCORES} in '{directory}' is damaged or was edited, and says which scores "
                     f"are to be kept there ({error}). Put back what it was, and give a setting that should differ on the "
                     "command line; or delete the file if this command names all presets that you need.")
