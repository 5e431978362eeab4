"""A generation of expert networks: what stays the same while it trains, and how its state begins, is saved and restored."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mdw_jax.data.stored_rows import stays_on_host
from mdw_jax.method.caption_search import search_of
from mdw_jax.method.closed_form import ClosedForm
from mdw_jax.method.closed_form_heads import closed_form_heads
from mdw_jax.method.expert_state import Checkpointer, ExpertTrainState
from mdw_jax.method.expert_step import ExpertSteps, Recipe, make_expert_steps
from mdw_jax.method.teachers import Teacher
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs
from mdw_jax.runtime.mesh import replicated
from mdw_jax.runtime.pytree import restore
from mdw_jax.runtime.rng import named_generator, named_key

# Seed names by generation, where they are not its own name: kept so that stored numbers reproduce.
_SEED_NAMES = {"teachers": "scouts"}


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """What stays the same while a generation of networks trains.

    Attributes:
        name: "teachers", "experts", or the name of a fold (`noise_rate.py`); in the log and in names of files.
        model, train, val, recipe: as in `train_experts`.
        steps: the compiled steps.
        networks: how many networks, two per expert.
        epochs: epochs to train.
        keep: snapshots 0 .. keep are kept.
        seed: of all random draws.
        mismatched: (K,) bool, the truth, or None.
        teacher: makes the finished teacher that teaches all networks from the first step; None: they teach each other
            after the warm-up.
        form: the closed form that the networks start from; None: from random parameters.
        folder: makes the directory for embeddings that are too large for memory.
    """

    name: str
    model: DualEncoder
    train: Inputs
    val: Inputs
    recipe: Recipe
    steps: ExpertSteps
    networks: int
    epochs: int
    keep: int
    seed: int
    mismatched: np.ndarray | None
    teacher: Callable[[], Teacher] | None
    form: ClosedForm | None
    folder: Callable[[], Path]

    @property
    def image_of(self) -> np.ndarray:
        return np.asarray(self.train.image_of)

    @property
    def search(self) -> str:
        """How recovery searches, an entry of `caption_search.SEARCHES`."""
        return search_of(self.recipe.recovery_search, len(self.train.images), len(self.train.image_of))

    def key(self, network: int, *names):
        """A random key of one network."""
        return named_key(self.seed, _SEED_NAMES.get(self.name, self.name), network // 2, *names, network % 2)

    def generator(self, network: int, *names) -> np.random.Generator:
        """A random generator of one network, on the host."""
        return named_generator(self.seed, _SEED_NAMES.get(self.name, self.name), network // 2, *names, network % 2)


def make_generation(name: str, model: DualEncoder, train: Inputs, val: Inputs, recipe: Recipe, *, count: int,
                    epochs: int, seed: int, folder: Callable[[], Path], keep: int = 0, rate: float = 0.0,
                    mismatched: np.ndarray | None = None, teacher: Callable[[], Teacher] | None = None,
                    form: ClosedForm | None = None) -> Generation:
    """A generation of `count` pairs of networks, its data on all devices or, where they stay on the host, there.

    Args: as in `Generation` and `train_experts`.
    """
    steps = make_expert_steps(model, recipe, rate, epochs * (len(train.image_of) // recipe.batch))
    placed = lambda rows: rows if stays_on_host(rows) else replicated(rows)
    train = train._replace(images=placed(train.images), texts=placed(train.texts))
    return Generation(name, model, train, val, recipe, steps, 2 * count, epochs, keep, seed, mismatched, teacher, form,
                      folder)


def init_state(generation: Generation) -> ExpertTrainState:
    """The state before the first epoch."""
    networks = range(generation.networks)
    params = [generation.model.init(generation.key(n, "init")) for n in networks]
    if generation.form is not None:
        params = [closed_form_heads(p, generation.form, generation.key(n, "rotation")) for n, p in enumerate(params)]
    pairs = len(generation.image_of)
    return ExpertTrainState(0, [generation.steps.init(p) for p in params], [[p] for p in params], params, [],
                            np.ones(pairs, np.float32),
                            np.zeros((len(networks), generation.epochs, (pairs + 7) // 8), np.uint8))


def save_state(checkpointer: Checkpointer, generation: Generation, state: ExpertTrainState) -> None:
    """Hand the state to the checkpointer, as arrays."""
    log = np.frombuffer(json.dumps(state.log).encode(), np.uint8)
    checkpointer.save(generation.name, state._replace(epoch=np.int32(state.epoch), log=log))


def restore_state(generation: Generation, saved: Mapping[str, np.ndarray] | None) -> ExpertTrainState:
    """The state that `save_state` saved, or the one before the first epoch where nothing was saved that fits."""
    start = init_state(generation)
    if saved is None:
        return start
    try:
        epoch = int(saved[".epoch"])
        stored = min(epoch, generation.keep) + 1
        state = restore(saved, start._replace(epoch=saved[".epoch"], log=saved[".log"], snapshots=[
            snapshots * stored for snapshots in start.snapshots]))
    except (KeyError, ValueError):  # saved by another version
        return start
    return state._replace(epoch=epoch, log=json.loads(state.log.tobytes()))
