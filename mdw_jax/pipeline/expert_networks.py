"""The expert networks of a finished stage, read back one at a time, and what they make of pairs."""

import shutil
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.io.records import complete
from mdw_jax.io.trajectory import open_trajectory, read_snapshot
from mdw_jax.method.teacher_embeddings import IN_MEMORY, memory_bytes
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs, embeddings, stored_embeddings
from mdw_jax.pipeline.preset_run import StageFolder

Epoch = int | Literal["best"]  # "best": at the network's best epoch on val; -1: at the last stored snapshot


def expert_networks(experts: StageFolder, epoch: Epoch = "best") -> Iterator[dict]:
    """The parameters of every expert network, one at a time.

    Args:
        experts: the directory of finished experts and their key.
        epoch: which of its snapshots; see `Epoch`.

    Raises:
        UserError: a snapshot was not stored, or files are missing or damaged.
    """
    record = complete(experts.path / "experts.json", experts.key, "networks")
    if record is None:
        raise ValueError(f"there are no finished experts in {experts.path}")
    for n in range(record["networks"]):
        name = f"best_{n:02d}" if epoch == "best" else f"net_{n:02d}"
        trajectory = open_trajectory(experts.path / name, key=experts.key)
        index = 0 if epoch == "best" else epoch % trajectory.length if epoch < 0 else epoch
        yield jax.tree.map(jnp.asarray, read_snapshot(trajectory, index))


def network_embeddings(experts: StageFolder, model: DualEncoder, data: Inputs, epoch: Epoch = "best"
                       ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Unit embeddings of all images (N, D) and of all captions (K, D) of `data` by every expert network, one at a time.

    Beyond `teacher_embeddings.IN_MEMORY` bytes they are memory-mapped files in half precision, removed with the next.
    Bases of networks differ: combine their similarities, or concatenate (`models.embedding.ensemble_of_all`), but never
    average embeddings.
    """
    folder = experts.path / f"embeddings-{jax.process_index()}"
    large = memory_bytes(model.dim, len(data.images) + len(data.texts), 1, []) > IN_MEMORY
    for params in expert_networks(experts, epoch):
        if not large:
            images, texts = embeddings(model, params, data)
            yield np.asarray(images), np.asarray(texts)
            continue
        try:
            yield stored_embeddings(model, [params], data, folder, "network")[0]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
