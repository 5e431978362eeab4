"""What a run that goes on has still to do, by the records that its stages left."""

from collections.abc import Sequence

from mdw_jax.analysis.cost.work import Left
from mdw_jax.io.checksums import read_verified_json
from mdw_jax.io.distilled_set import CARD
from mdw_jax.pipeline.closed_form import closed_form_folder
from mdw_jax.pipeline.evaluate import scores_place
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun
from mdw_jax.pipeline.sets import set_folder


def what_is_left(prepared: Prepared, runs: Sequence[PresetRun]) -> Left:
    """The share of each kind of work that is left; what was begun and has no record yet counts whole.

    Args:
        prepared: data and features, which are there.
        runs: the presets, opened.
    """
    by_name = {run.name: run for run in runs}

    def left(kind: str, preset: str) -> float:
        return 0.0 if kind == "features" else _LEFT[kind](by_name[preset], prepared)

    return left


def _experts(run: PresetRun, prepared: Prepared) -> float:
    return not (run.experts.path / "experts.json").is_file()


def _rate(run: PresetRun, prepared: Prepared) -> float:
    try:
        return read_verified_json(run.experts.path / "experts.json")["rate"]["estimated"] is None
    except (OSError, ValueError, KeyError, TypeError):  # it is not there; or damaged, which its stage says
        return 1.0


def _scorer(run: PresetRun, prepared: Prepared) -> float:
    filtering = run.filter
    done = filtering is None or (filtering.folder.path / "filter.json").is_file()
    return not (done or (filtering and filtering.scorer
                         and (filtering.scorer.experts.path / "experts.json").is_file()))


def _closed_form(run: PresetRun, prepared: Prepared) -> float:
    return not (closed_form_folder(run, prepared).path / "closed_form.json").is_file()


def _sets(run: PresetRun, prepared: Prepared) -> float:
    folders = [set_folder(run, index) for index in range(run.config.distill.sets)]
    return sum(not (folder / CARD).is_file() for folder in folders) / len(folders)


def _students(run: PresetRun, prepared: Prepared) -> float:
    places = [scores_place(run, index).path for index in range(run.config.distill.sets)]
    return sum(not path.is_file() for path in places) / len(places)


_LEFT = {"experts": _experts, "rate": _rate, "scorer": _scorer, "closed form": _closed_form, "sets": _sets,
         "students": _students}
