"""What encodes sentences and photos, and what is nearest to them."""

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.data.decoding import decode
from mdw_jax.errors import UserError
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import compiled_inputs
from mdw_jax.models.text.bow import bow_features
from mdw_jax.models.text.encoder import load_text_encoder
from mdw_jax.models.text.features import TEXT_ENCODERS
from mdw_jax.pipeline.expert_networks import expert_networks
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.reopen import Trained
from mdw_jax.runtime.mesh import jitted

_BATCH = 64


class Encoder(NamedTuple):
    """Turns what is asked and what is looked through into vectors of one space, whose dot products are cosines.

    Attributes:
        name: what it is, in words.
        sentences: (K sentences) -> (K, D), and a sentence on what was done to them, or "".
        photo: (bytes of an image file) -> (1, D).
        pixels: (N, H, W, C) float in [0, 1] -> (N, D).
        texts: (M, ...) texts of a distilled set -> (M, D).
    """

    name: str
    sentences: Callable[[list[str]], tuple[np.ndarray, str]]
    photo: Callable[[bytes], np.ndarray]
    pixels: Callable[[np.ndarray], np.ndarray]
    texts: Callable[[np.ndarray], np.ndarray]


class Hit(NamedTuple):
    """Row of what was found, and its cosine."""

    row: int
    cosine: float


def nearest_hits(query: np.ndarray, rows, count: int) -> list[Hit]:
    """The rows of largest dot product with a query.

    Args:
        query: (1, D) or (D,).
        rows: (N, D), an array or rows that stay on the host.
        count: how many, at most.
    """
    query = np.asarray(query, np.float32).reshape(-1)
    parts = np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // 65536)))
    scores = np.concatenate([np.asarray(rows[part[0]:part[-1] + 1] if len(part) else rows[:0], np.float32) @ query
                             for part in parts])
    return [Hit(int(row), float(scores[row])) for row in np.argsort(-scores, kind="stable")[:count]]


def encoder_of_experts(trained: Trained, prepared: Prepared, config: ConfigDict) -> Encoder:
    """The expert networks of a preset, as one ensemble.

    Args:
        trained: the preset.
        prepared: its data and model.
        config: the run's config, resolved: how sentences become features, and photos pixels.
    """
    model, networks = prepared.model, list(expert_networks(trained.run.experts))
    images = lambda inputs: _side_by_side(jitted(model.embed_image), [params["image"] for params in networks], inputs)
    texts = lambda rows: _side_by_side(jitted(model.embed_text), [params["text"] for params in networks], rows)

    known = functools.cache(lambda: bow_features(prepared.pairs.train.captions))

    def sentences(asked: list[str]) -> tuple[np.ndarray, str]:
        features, said = sentence_features(asked, config.text, prepared, known)
        return texts(features), said

    def photo(data: bytes) -> np.ndarray:
        pixels = photo_pixels(data, config, prepared.pairs.train.images.shape[1:])
        return images(_inputs(model, pixels[None]))

    return Encoder(f"{len(networks)} expert networks of {trained.run.name}", sentences, photo,
                   lambda pixels: images(_inputs(model, np.asarray(pixels, np.float32))), texts)


def encoder_of_student(student: Any) -> Encoder:
    """A student as `mdw_jax.export.student.load_student` returns it."""
    def sentences(asked: list[str]) -> tuple[np.ndarray, str]:
        return student.embed_captions(asked), ""

    def photo(data: bytes) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:  # a student reads files
            path = Path(folder) / "photo"
            path.write_bytes(data)
            try:
                return student.embed_images([str(path)])
            except UserError as error:
                raise UserError(f"{str(error).replace(str(path), 'the photo')}") from None

    def pixels(images: np.ndarray) -> np.ndarray:
        return student.embed_images(np.round(255 * np.clip(images, 0, 1)).astype(np.uint8))

    return Encoder("the student", sentences, photo, pixels, student.embed_texts)


def sentence_features(sentences: list[str], text: ConfigDict, prepared: Prepared, known: Callable[[], np.ndarray]
                      ) -> tuple[np.ndarray, str]:
    """What the model takes for sentences, and what was done to them, in a sentence.

    The features of `text.encoder=precomputed` come from a file, so no new sentence has any: the caption of the data that
    is nearest in words is taken in its place, and that is said.

    Args:
        sentences: K of them.
        text: a config's section.
        prepared: the data.
        known: returns the features of the training captions as bags of words, for that.

    Raises:
        UserError: the model of the text encoder is not there any more.
    """
    if text.train:
        _, _, tokenize = load_text_encoder(text.path, text.pooling, text.max_tokens)
        ids, mask = tokenize(sentences)
        return np.where(mask, ids, -1), ""
    if text.encoder == "precomputed":
        return _features_of_captions(sentences, prepared, known())
    numbers = np.arange(len(sentences))
    _, features_of = TEXT_ENCODERS[text.encoder](numbers, dim=text.dim, seed=text.seed, path=text.path or None,
                                                 pooling=text.pooling, max_tokens=text.max_tokens)
    return features_of(sentences, numbers), ""


def _features_of_captions(sentences: list[str], prepared: Prepared, known: np.ndarray) -> tuple[np.ndarray, str]:
    """The features of the captions that are nearest in words."""
    captions = prepared.pairs.train.captions
    rows = [nearest_hits(words, known, 1)[0].row for words in bow_features(sentences)]
    words = "; ".join(f"\u201c{captions[row]}\u201d" for row in rows)
    return np.asarray(prepared.texts.train[np.array(rows)]), (
        f"This run read the features of its captions from a file, and no encoder for new sentences is known: searched is "
        f"for the training caption nearest in words, {words}.")


def photo_pixels(data: bytes, config: ConfigDict, shape: Sequence[int]) -> np.ndarray:
    """An image file as the (H, W, 3) uint8 pixels that a run's models see.

    Raises:
        UserError: it is no image that can be read, or the run is not of photos.
    """
    if tuple(shape) != (config.data.size, config.data.size, 3):
        raise UserError(f"the images of this run are of shape {tuple(shape)}; a photo cannot be compared with them.")
    return _decoded(data, lambda data: decode(data, config.data.size, config.data.fit))


def _decoded(data: bytes, decoded: Callable[[bytes], np.ndarray]) -> np.ndarray:
    try:
        return decoded(data)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged files make Pillow raise a dozen kinds
        raise UserError(f"this file cannot be read as an image ({type(error).__name__}); choose another.") from None


def _inputs(model: DualEncoder, pixels: np.ndarray):
    return np.concatenate([np.asarray(compiled_inputs(model)(pixels[start:start + _BATCH]))
                           for start in range(0, len(pixels), _BATCH)])


def _side_by_side(embed: Callable, networks: Sequence, rows) -> np.ndarray:
    """(N, n D) embeddings by n networks: their dot products are the mean cosines."""
    parts = [np.concatenate([np.asarray(embed(params, jnp.asarray(rows[start:start + _BATCH])))
                             for start in range(0, len(rows), _BATCH)]) for params in networks]
    return np.concatenate(parts, -1) / np.sqrt(len(parts))
