"""What a distilled set starts from: the real pairs that `distill.init` chooses, and the experts' view of them."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from mdw_jax.method.coresets import joint_features
from mdw_jax.method.selection import INITS, StartInputs
from mdw_jax.models.embedding import Inputs, ensemble_of_all
from mdw_jax.pipeline.expert_networks import Epoch, network_embeddings
from mdw_jax.pipeline.experts import experts_stage, kept_pairs
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun, read_division
from mdw_jax.runtime.rng import named_generator


def start_rows(run: PresetRun, prepared: Prepared, index: int) -> np.ndarray:
    """The real pairs that set `index` of a preset starts from, as `distill.init` says.

    Returns:
        (M,) different rows into the training captions, of pairs that the preset's filter keeps.

    Raises:
        UserError: there are fewer pairs to choose from than `distill.pairs`.
    """
    settings, kept = run.config.distill, kept_pairs(run, prepared)
    chosen = INITS[settings.init](StartInputs(
        image_of=np.asarray(run.noise.image_of)[kept], count=settings.pairs,
        generator=named_generator(run.config.run.seed, "init", run.name, index),
        clean_probability=lambda: read_division(run)[kept],
        features=lambda rows: expert_features(run, prepared, kept[rows])))
    return kept[chosen]


def expert_embeddings(run: PresetRun, prepared: Prepared, epoch: Epoch = "best", rows: np.ndarray | None = None
                      ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Unit embeddings of the training pairs by every expert network of a preset, one network at a time.

    Args:
        run: the preset; its experts are trained if they are not there.
        prepared: data and model.
        epoch: "best": the network at its best epoch on val (it may be one past the stored snapshots); a number: that
            snapshot of its trajectory; -1: its last.
        rows: (n,) rows into the training captions; None: all images and all captions, those of dropped pairs too.

    Yields:
        Images (n, D) and texts (n, D) of these pairs, or of all images (N, D) and all captions (K, D).
    """
    experts_stage(run, prepared)
    data = prepared.train(run.noise)
    if rows is not None:
        images, texts = data.images[data.image_of[rows]], data.texts[rows]
        data = Inputs(jnp.asarray(images), jnp.asarray(texts), np.arange(len(rows)))
    return network_embeddings(run.experts, prepared.model, data, epoch)


def expert_features(run: PresetRun, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
    """(n, d) float32 joint features of pairs in the experts' space: the embeddings of all networks, side by side.

    Each image is embedded once, however many of its captions are among the rows.
    """
    image_of = np.asarray(run.noise.image_of)[rows]
    pairs = [(images[image_of], texts[rows]) for images, texts in expert_embeddings(run, prepared)]
    images, texts = ensemble_of_all(pairs)
    return joint_features(np.asarray(images), np.asarray(texts), np.arange(len(rows)))
