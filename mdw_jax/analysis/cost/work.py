"""The work of a whole run, stage by stage. What presets share counts once."""

from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from mdw_jax.analysis.cost.counts import Counts
from mdw_jax.analysis.cost.expert_work import expert_work, rate_work
from mdw_jax.analysis.cost.model_cost import ModelCost, model_cost
from mdw_jax.analysis.cost.set_work import (
    candidate_work,
    coreset_work,
    outer_work,
    prototype_work,
    student_work,
)
from mdw_jax.analysis.cost.shared_work import closed_form_work, feature_work, students_feature_work
from mdw_jax.analysis.cost.unit import STAGES, Work
from mdw_jax.config.options import PROTOTYPES
from mdw_jax.pipeline.correspondence import TEACHERS_WITH_CLOSED_FORM
from mdw_jax.pipeline.preset_run import PresetRun, planned_preset

_REPORT_SECONDS, _REPORT_OF_PRESET = 2.0, 0.1  # table, figures and page, on the reference core


Left = Callable[[str, str], float]
"""(kind of work, preset) -> the share of it that is left to do, from 0 to 1; kinds are those of `_add_preset`."""


def run_work(config: ConfigDict, counts: Counts, left: Left = lambda kind, preset: 1.0) -> list[Work]:
    """All work of `mdw run`, in the order of the stages.

    Experts, closed forms and filters that several presets share count once.

    Args:
        config: the run's config, not resolved.
        counts: sizes of the data.
        left: what a run that goes on has not done yet; by default all of it.

    Raises:
        UserError: the config is not valid.
    """
    runs = [planned_preset(config, name) for name in config.run.presets]
    model, _ = model_cost(runs[0].config, counts.text_dim)
    found: dict[tuple, Work] = {}
    features = feature_work(runs[0].config, counts, model)
    if left("features", runs[0].name):
        add(found, ("features",), features, runs)
    for run in runs:
        _add_preset(found, run, counts, model, left)
    add(found, ("report",), Work("report", "table, figures, page", host=_REPORT_SECONDS + _REPORT_OF_PRESET * len(runs)),
        runs)
    # The data, which all stages hold, or map.
    return sorted((work._replace(host_memory=max(work.host_memory, features.host_memory)) for work in found.values()),
                  key=lambda work: STAGES.index(work.stage))


def add(found: dict[tuple, Work], key: tuple, work: Work, runs: Sequence[PresetRun]) -> None:
    """Add a piece of work, or, where it is there already, the presets that need it too."""
    earlier = found.get(key, work)
    presets = tuple(dict.fromkeys((*earlier.presets, *(run.name for run in runs))))
    found[key] = earlier._replace(presets=presets)


def _add_preset(found: dict[tuple, Work], run: PresetRun, counts: Counts, model: ModelCost, left: Left) -> None:
    """Add the work of one preset that is left."""
    c, devices = run.config, run.config.plan.devices

    def need(kind: str, key: tuple, work: Work) -> None:
        if share := left(kind, run.name):
            add(found, key, work.part(share) if share < 1 else work, [run])

    kept = counts
    if run.filter:
        if run.filter.scorer:
            need("scorer", ("experts", run.filter.scorer.experts.key),
                 expert_work(run.filter.scorer, counts, model, devices))
        else:
            need("scorer", ("closed form", run.noise.sha256, None), closed_form_work(c, counts, model))
        kept = counts._replace(captions=round(counts.captions * (1 - (c.filter.drop or c.noise.rate))))
    if needs_closed_form(run):
        need("closed form", ("closed form", run.noise.sha256, run.filter and run.filter.folder.key),
             closed_form_work(c, kept, model))
    if run.spec.needs_experts:
        need("experts", ("experts", run.experts.key), expert_work(run, kept, model, devices))
        if (c.noise.estimate or c.noise.protocol == "natural" and not c.noise.file) and run.filter is None:
            need("rate", ("rate", run.experts.key), rate_work(run, kept, model))
    if run.spec.kind == "coreset" and run.spec.coreset != "random":
        need("sets", ("coreset", run.name), coreset_work(run, kept, model))
    if run.spec.kind == "distilled":
        if c.distill.init == PROTOTYPES:
            need("sets", ("prototypes", run.name), prototype_work(run, kept, model))
        if c.distill.steps:
            need("sets", ("outer steps", run.name), outer_work(run, model, devices))
        need("sets", ("candidates", run.name), candidate_work(run, counts, model))
    if run.spec.has_sets:
        students = students_model(c, counts) if c.evaluate.tower else model
        if c.evaluate.tower and students.projection:
            need("students", ("features of students",), students_feature_work(counts, students))
        need("students", ("students", run.name), student_work(run, counts, students))


def students_model(c: ConfigDict, counts: Counts) -> ModelCost:
    """The costs of the model whose tower is `evaluate.tower`."""
    changed = ConfigDict(c.to_dict())
    changed.model.update({"tower": c.evaluate.tower, "mode": c.evaluate.mode, "weights": c.evaluate.weights})
    return model_cost(changed, counts.text_dim)[0]


def needs_closed_form(run: PresetRun) -> bool:
    """Whether the closed form of a preset's pairs is solved."""
    c, distills = run.config, run.spec.kind == "distilled"
    teaches = c.distill.correspondence_init == "experts" and c.distill.correspondence_teacher in TEACHERS_WITH_CLOSED_FORM
    return run.spec.closed_form or (run.spec.needs_experts and c.experts.closed_form) or (distills and teaches)
