"""One piece of work, and what pieces have in common."""

import dataclasses
from typing import NamedTuple

from mdw_jax.analysis.cost.model_cost import ModelCost

# The stages of a run in order, as `mdw plan` and `estimate_in_words` name them.
STAGES = ("features", "closed form", "experts", "prototypes", "distillation", "students", "report")
# Bytes of a process on the host that has imported everything, and of the programs that a stage compiles; measured on a CPU.
HOST_BASE = 0.5e9
HOST_COMPILED = {"experts": 0.35e9, "prototypes": 0.35e9, "distillation": 0.35e9, "students": 0.15e9}
# What a share of some work has less of.
_TIMED = ("flops", "search", "tower_forward", "tower_gradient", "moved", "host", "host_flops", "decoding")
_RANKING_PASSES = 12  # passes over the similarities of a split for its recalls (`method.retrieval.ranks`)
# Passes over the parameters in a step: gradient, momentum and parameters, each written and read; of experts moments and
# moving averages too.
_SGD_PASSES, _EXPERT_PASSES = 6, 12


class Work(NamedTuple):
    """One piece of work of a run.

    Attributes:
        stage: one of `STAGES`.
        what: in words, with its number of networks, sets or steps.
        flops: operations of matrix products, those of towers aside.
        search: operations of products of thousands of rows with each other, in a search for the nearest captions.
        tower_forward: operations of forward passes of the image tower alone.
        tower_gradient: operations of passes of the image tower with gradients.
        moved: bytes that all else moves through the device's memory.
        host: seconds of one core of the host, at the speed of the reference core.
        host_flops: operations on the host whatever the device is.
        decoding: seconds of one core for decoding images, which all cores do while the device works.
        programs: how many programs without a tower are compiled.
        tower_programs: how many passes of a tower are in compiled programs: a gradient has three.
        device_memory: bytes on the device at its peak, by a formula.
        host_memory: bytes on the host beside `HOST_BASE` and `HOST_COMPILED`, files that it maps included.
        disk: bytes that it writes to disk.
        scratch: of them teachers' embeddings, which are removed when the networks are trained.
        presets: the presets that need it.
    """

    stage: str
    what: str
    flops: float = 0.0
    search: float = 0.0
    tower_forward: float = 0.0
    tower_gradient: float = 0.0
    moved: float = 0.0
    host: float = 0.0
    host_flops: float = 0.0
    decoding: float = 0.0
    programs: int = 0
    tower_programs: int = 0
    device_memory: float = 0.0
    host_memory: float = 0.0
    disk: float = 0.0
    scratch: float = 0.0
    presets: tuple[str, ...] = ()

    def part(self, share: float) -> "Work":
        """This share of the work, with the memory of all of it."""
        return self._replace(**{name: share * getattr(self, name) for name in _TIMED})

    @property
    def process_memory(self) -> float:
        """All bytes on the host."""
        return HOST_BASE + HOST_COMPILED.get(self.stage, 0.0) + self.host_memory

    @property
    def operations(self) -> float:
        """All of them, wherever they are done."""
        return self.flops + self.search + self.tower_forward + self.tower_gradient + self.host_flops


@dataclasses.dataclass(frozen=True)
class Amount:
    """Operations, bytes moved by what is no product, and operations of a search (`Work.search`)."""

    flops: float = 0.0
    moved: float = 0.0
    search: float = 0.0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.flops + other.flops, self.moved + other.moved, self.search + other.search)

    def __mul__(self, times: float) -> "Amount":
        return Amount(self.flops * times, self.moved * times, self.search * times)


def student_step(model: ModelCost, batch: int, expert: bool = False) -> Amount:
    """A step of one network on `batch` pairs: the gradient of a loss of their similarities, and the update."""
    passes = _EXPERT_PASSES if expert else _SGD_PASSES
    flops = batch * model.pair * model.step + 3 * 2 * batch**2 * model.dim
    return Amount(flops, 4 * (passes * model.parameters + _RANKING_PASSES * batch**2))


def forward(model: ModelCost, batch: int) -> float:
    """FLOP of the similarities of `batch` pairs."""
    return batch * model.pair + 2 * batch**2 * model.dim


def embedding(model: ModelCost, images: int, captions: int) -> Amount:
    """Embedding a split by one network."""
    return Amount(images * model.image + captions * model.text, 8.0 * model.dim * (images + captions))


def scoring(model: ModelCost, images: int, captions: int) -> Amount:
    """Recalls of one network on a split."""
    similarities = Amount(2 * images * captions * model.dim, 4 * _RANKING_PASSES * images * captions)
    return embedding(model, images, captions) + similarities


def of_networks(work: Work, model: ModelCost, amount: Amount) -> Work:
    """The work of steps of whole networks: of a tower where it is trained, of heads where not."""
    work = work._replace(moved=amount.moved, search=amount.search)
    return work._replace(flops=amount.flops) if model.projection else work._replace(tower_gradient=amount.flops)


def compiled_towers(model: ModelCost, passes: int) -> int:
    """`Work.tower_programs` of a program that trains networks; none where the tower is frozen."""
    return 0 if model.projection else passes
