"""The state of a generation of experts between two epochs, and where it is kept."""

import functools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mdw_jax.method.expert_step import NetworkState


class ExpertTrainState(NamedTuple):
    """All that changes from one epoch of a generation to the next.

    Attributes:
        epoch: epochs done.
        networks: one `NetworkState` per network.
        snapshots, best, log, clean_probability, correct_bits: as in `TrainedExperts`, of this generation alone.
    """

    epoch: Any
    networks: list[NetworkState]
    snapshots: list
    best: list
    log: Any
    clean_probability: np.ndarray
    correct_bits: np.ndarray


class Checkpointer:
    """Where the state of a generation is kept between epochs. This one keeps nothing; subclasses write files."""

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of the state last saved under `name`, by their names in the pytree; None if there is none."""
        return None

    def save(self, name: str, state: ExpertTrainState) -> None:
        """Keep `state`, a pytree of arrays, under `name`."""

    def should_save(self) -> bool:
        """Whether so much time has passed that the state should be saved before training goes on."""
        return False

    def folder(self) -> Path:
        """Where arrays lie that are too large for memory while a generation trains; this process's own."""
        return Path(self._temporary.name)

    @functools.cached_property
    def _temporary(self) -> tempfile.TemporaryDirectory:
        return tempfile.TemporaryDirectory(prefix="mdw-experts-")
