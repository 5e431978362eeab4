"""How long students train, when they are scored, and how their step sizes fall (docs/method.md, section 6)."""

import math
from typing import Any, NamedTuple

from mdw_jax.config.options import SCHEDULES
from mdw_jax.errors import UserError

# An evaluation waits for this share of the steps done, so that long trainings are not all evaluation. (This work.)
_SPACING = 0.2


class Passes(NamedTuple):
    """A published schedule, in passes over the set.

    Attributes:
        total: number of passes.
        every: passes between evaluations: after the first pass, and then every so many.
        decay_after: passes after which step sizes are a tenth; `total`: never.
        one_step_size: the text branch has the step size of the image branch.
    """

    total: int
    every: int
    decay_after: int
    one_step_size: bool = False


# epoch.py of each. Epochs 0 to E are E + 1 passes. LoRS and RepBlend keep the best evaluation. VLD makes the last one
# alone; its batches are those of a shuffled set, the last of them smaller, where these are drawn anew, as LoRS's are.
PUBLISHED = {
    "lors": Passes(total=101, every=10, decay_after=51),
    "repblend": Passes(total=101, every=20, decay_after=51),
    "vld": Passes(total=51, every=0, decay_after=51, one_step_size=True),
}


class Schedule(NamedTuple):
    """When students are scored, and their step sizes until then.

    Attributes:
        every: steps between two calls of the trainer.
        stops: numbers of steps after which students are scored, multiples of `every`.
        decay_after: steps after which step sizes are a tenth.
        one_step_size: as in `Passes`.
        searched: whether steps and scale of the step sizes are a search, which may stop early and grow.
    """

    every: int
    stops: list[int]
    decay_after: float = math.inf
    one_step_size: bool = False
    searched: bool = True

    def step_sizes(self, learned: dict[str, Any], done: int) -> dict[str, Any]:
        """{branch: step size} after `done` steps."""
        factor = 0.1 if done >= self.decay_after else 1.0
        return {branch: factor * learned["image" if self.one_step_size else branch] for branch in learned}


def schedule_of(protocol, pairs: int, on_test: bool = False) -> Schedule:
    """The schedule that a protocol names.

    Args:
        protocol: a `students.Protocol`.
        pairs: size M of the set.
        on_test: evaluations on test choose, as in published tables: then the schedule is a published one, LoRS's unless
            the protocol names another.

    Raises:
        UserError: there is no such schedule.
    """
    if protocol.schedule not in SCHEDULES:
        raise UserError(f"there is no schedule '{protocol.schedule}'; set evaluate.schedule to one of "
                        f"{', '.join(SCHEDULES)}.")
    passes = PUBLISHED.get("lors" if on_test and protocol.schedule == "constant" else protocol.schedule)
    if passes is None:
        return Schedule(protocol.every, stops(protocol))
    steps = math.ceil(pairs / protocol.batch)  # of a pass
    read = range(1, passes.total + 1, passes.every) if passes.every else [passes.total]
    return Schedule(steps, [steps * number for number in read],
                    math.inf if passes.decay_after == passes.total else steps * passes.decay_after,
                    passes.one_step_size, searched=False)


def stops(protocol) -> list[int]:
    """The numbers of steps after which students are evaluated, up to `protocol.steps`.

    They are `protocol.every` apart at first, and later a fifth of the steps done. All are multiples of `every`.
    """
    done, last = [1], protocol.steps // protocol.every
    while done[-1] < last:
        done.append(min(last, max(done[-1] + 1, math.ceil((1 + _SPACING) * done[-1]))))
    return [protocol.every * segments for segments in done]
