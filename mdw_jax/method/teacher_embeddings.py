"""Embeddings of all images and captions by the teachers of networks: in memory where they are small, else in files.

Teachers are ensembles, whose mean similarity is the dot product of their networks' embeddings side by side
(`models.embedding.ensemble_embeddings`). Beyond `IN_MEMORY` bytes each network's embeddings are written once, in half
precision, and an ensemble is a view of those files (`data.stored_rows.SideBySide`): rows side by side exist for a batch
or a block at a time, and similarities likewise.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp

from mdw_jax.data.stored_rows import SideBySide, create_rows, finished_rows
from mdw_jax.method.closed_form import ClosedForm, embed_images, embed_texts
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs, embeddings_of_all, ensemble_of_all, stored_embeddings

IN_MEMORY = 2**30
"""Bytes of embeddings that a generation's teachers may hold in memory, in single precision. What is larger is read from
files, a batch or a block at a time."""
_BLOCK = 65_536  # rows that a closed form embeds at a time


def teacher_ensembles(model: DualEncoder, networks: list, data: Inputs, teachers_of: Sequence[Sequence[int]],
                      folder: Callable[[], Path], name: str) -> list[tuple]:
    """The embeddings of all images and all captions by ensembles of some of the networks.

    Args:
        model: the dual encoder.
        networks: parameters of each network.
        data: the images and captions.
        teachers_of: the networks of each ensemble.
        folder: makes the directory where files may lie; called where they are needed.
        name: how the files' names begin.

    Returns:
        (images (N, n D), captions (K, n D)) by each ensemble of n networks: arrays, or `SideBySide` of files.

    Raises:
        UserError: the file system has no room for the files.
    """
    if memory_bytes(model.dim, len(data.images) + len(data.texts), len(networks), teachers_of) <= IN_MEMORY:
        embeddings = embeddings_of_all(model, networks, data)
        return [ensemble_of_all([embeddings[t] for t in teachers]) for teachers in teachers_of]
    files = stored_embeddings(model, networks, data, folder(), name)
    ensemble = lambda teachers, branch: SideBySide([files[t][branch] for t in teachers], len(teachers)**-0.5)
    return [(ensemble(teachers, 0), ensemble(teachers, 1)) for teachers in teachers_of]


def form_embeddings(form: ClosedForm, features, texts, folder: Callable[[], Path]) -> tuple:
    """The embeddings of all images and all captions by a closed form; as `teacher_ensembles` gives them.

    Args:
        form: the closed form.
        features: (N, F) frozen features of the images.
        texts: (K, d) features of the captions.
        folder: as in `teacher_ensembles`.
    """
    width = len(form.singular_values)
    both = ((embed_images, features, "image"), (embed_texts, texts, "text"))
    if memory_bytes(width, len(features) + len(texts), 0, [[0]]) <= IN_MEMORY:
        return tuple(jnp.asarray(embed(form, rows)) for embed, rows, _ in both)

    def in_file(embed, rows, branch: str) -> SideBySide:
        file = create_rows(folder() / f"closed-form-{branch}.npy", (len(rows), width))
        for start in range(0, len(rows), _BLOCK):
            file[start:start + _BLOCK] = embed(form, rows[start:start + _BLOCK])
        return SideBySide([finished_rows(file)])

    return tuple(in_file(*one) for one in both)


def memory_bytes(dim: int, rows: int, networks: int, teachers_of: Sequence[Sequence[int]]) -> int:
    """Bytes of the embeddings of so many networks and ensembles in single precision, if all were in memory.

    Args:
        dim: width D of one network's embeddings.
        rows: images and captions, N + K.
        networks: how many are embedded.
        teachers_of: the networks of each ensemble.
    """
    return 4 * dim * rows * (networks + sum(map(len, teachers_of)))
