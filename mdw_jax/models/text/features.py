"""`TextFeatures`: what a frozen encoder computes of all captions, once; then it is cached."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mdw_jax.data.pairs import Pairs
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest
from mdw_jax.io.keyed import read_keyed_arrays, write_keyed_arrays
from mdw_jax.models.text.bow import bow_features
from mdw_jax.models.text.encoder import transformer_features
from mdw_jax.models.text.precomputed import precomputed_features
from mdw_jax.models.weights.hub import directory_digest, model_directory

_SPLITS = ("train", "val", "test")
_VERSION = 1  # raise it when the code of an encoder changes its numbers, so that older caches are not used


@dataclasses.dataclass(frozen=True)
class TextFeatures:
    """Features of all captions of a data set.

    Attributes:
        train, val, test: (K_split, d) float32, row k for caption k of that split.
        key: sha256 of everything they depend on: encoder, settings, weights or file, captions.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    key: str


# An encoder is a function of K captions, their numbers (K,) and all settings. It returns the settings that its features
# depend on, for the key, and a function without arguments that computes the features (K, d).
Encoder = Callable[..., tuple[list, Callable[[], np.ndarray]]]


def _bow(captions, caption_ids, *, dim, seed, **_):
    return [dim, seed], lambda: bow_features(captions, dim, seed)


def _precomputed(captions, caption_ids, *, path, **_):
    if path is None:
        raise UserError("the text encoder 'precomputed' needs a feature file; set text.path to it.")
    if not Path(path).is_file():
        raise UserError(f"there is no text feature file '{path}'; check text.path.")
    with open(path, "rb") as file:
        contents = hashlib.file_digest(file, "sha256").hexdigest()
    return [contents, digest(np.asarray(caption_ids))], lambda: precomputed_features(path, caption_ids)


def _transformer(captions, caption_ids, *, path, pooling, max_tokens, **_):
    if path is None:
        raise UserError("the text encoder 'transformer' needs a model; set text.path to a directory or a Hub model's "
                        "name.")
    directory = model_directory(path)
    return ([directory_digest(directory), pooling, max_tokens],
            lambda: transformer_features(captions, directory, pooling=pooling, max_tokens=max_tokens))


# The settings that each takes stand in `options.TEXT_ENCODER_SETTINGS`.
TEXT_ENCODERS: dict[str, Encoder] = {"bow": _bow, "precomputed": _precomputed, "transformer": _transformer}


def text_features(pairs: Pairs, encoder: str, *, cache_dir=None, dim: int = 384, seed: int = 0, path=None,
                  pooling: str = "mean", max_tokens: int = 64) -> TextFeatures:
    """Features of every caption of `pairs` by a frozen encoder.

    The cache's key does not depend on the noise: noise re-pairs captions with images by index and changes no caption;
    features are stored by caption and looked up through the noisy pairing. The key depends on the captions, the
    truncation and the weights themselves. (The baselines' caches, named after data set and encoder alone, went stale
    when the captions or their truncation changed, and could give a noisy run clean captions.)

    Args:
        pairs: the data set.
        encoder: one of `TEXT_ENCODERS`: "bow" (hashed words), "precomputed" (a file) or "transformer" (a BERT,
            DistilBERT or CLIP; L2-normalized).
        cache_dir: directory that keeps the result, as `text-<first 16 of the key>.safetensors`, for later calls.
        dim, seed: width and projection of "bow".
        path: the feature file of "precomputed"; the model directory or Hub name of "transformer".
        pooling, max_tokens: of "transformer": see `mdw_jax.models.text.encoder.load_text_encoder`.
    Raises:
        UserError: an unknown encoder, a missing path, or what the encoder raises.
    """
    if encoder not in TEXT_ENCODERS:
        raise UserError(f"unknown text encoder '{encoder}'; set text.encoder to one of {', '.join(TEXT_ENCODERS)}.")
    splits = [getattr(pairs, split) for split in _SPLITS]
    captions = [caption for split in splits for caption in split.captions]
    caption_ids = np.concatenate([split.caption_ids for split in splits])
    settings, compute = TEXT_ENCODERS[encoder](captions, caption_ids, dim=dim, seed=seed, path=path, pooling=pooling,
                                               max_tokens=max_tokens)
    key = digest([_VERSION, encoder, settings], [list(split.captions) for split in splits])
    cache = None if cache_dir is None else Path(cache_dir) / f"text-{key[:16]}.safetensors"
    cached = None if cache is None else read_keyed_arrays(cache, key)
    if cached is not None:
        return TextFeatures(**cached, key=key)
    ends = np.cumsum([len(split.captions) for split in splits])[:-1]
    arrays = {split: np.ascontiguousarray(part) for split, part in zip(_SPLITS, np.split(compute(), ends))}
    if cache is not None:
        write_keyed_arrays(cache, arrays, key)
    return TextFeatures(**arrays, key=key)
