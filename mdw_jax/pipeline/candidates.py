"""Candidates for a finished set, scored on val by students of their own: the start, every checkpoint, P taken anew."""

import dataclasses
from typing import Any, NamedTuple

from mdw_jax.config.sections import fields
from mdw_jax.method.objective import Method
from mdw_jax.method.students import Protocol, evaluate
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun
from mdw_jax.pipeline.sets import student_data, to_distilled_set

CANDIDATES = "candidates.jsonl"  # all candidates so far, beside a checkpoint
# Students that score a candidate on val: few, for there are many candidates, and seeded apart from those of the table
# (`evaluate.student_seed`), so that a set is not chosen for the students that it is scored by.
CANDIDATE_STUDENTS = 2
CANDIDATE_SEED_OFFSET = 7919


class Candidate(NamedTuple):
    """One candidate and its score.

    Attributes:
        step: outer steps done; 0 is the start, where nothing is distilled.
        correspondence: where its P is from: `teachers` (taken from them for these pairs), `learned`, or `identity`.
        tau: the temperature at which the teachers were read; None for another P.
        val_r_mean: mean r_mean on val of its students.
        lr_scale: the scale of step sizes that was best.
    """

    step: int
    correspondence: str
    tau: float | None
    val_r_mean: float
    lr_scale: float

    @property
    def label(self) -> str:
        """In words: "the start, P from its teachers"."""
        pairs = "the start" if self.step == 0 else f"outer step {self.step}"
        p = {"teachers": f"P from its teachers at tau {self.tau:g}" if self.tau else "", "learned": "P as learned",
             "identity": "identity P"}[self.correspondence]
        return f"{pairs}, {p}"


def score_candidate(run: PresetRun, prepared: Prepared, learned: Any, method: Method, lr_scale: float | None = None
                    ) -> tuple[float, float]:
    """Mean r_mean on val of students of a candidate, and the scale of their step sizes.

    Args:
        run: the preset.
        prepared: data and model.
        learned: `DistillState.average`.
        method: how it was distilled.
        lr_scale: the only scale to try; None: those of the protocol. Students that train until val is flat are
            most of the time that a distillation takes.
    """
    model, protocol = prepared.model, fields(Protocol, run.config.evaluate)
    if lr_scale is not None and protocol.select_on == "val":
        protocol = dataclasses.replace(protocol, lr_scales=(lr_scale,), grow=0)
    result = evaluate(model, student_data(model, to_distilled_set(learned, method)), prepared.val, None,
                      protocol, seed=run.config.run.seed + CANDIDATE_SEED_OFFSET,
                      students=CANDIDATE_STUDENTS)
    return float(result.scores[:, -1].mean()), result.lr_scale
