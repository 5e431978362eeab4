"""`TextFeatures`: what a frozen encoder computes of all captions, once; then it is cached."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mdw_jax.config import options
from mdw_jax.data.pairs import Pairs
from mdw_jax.errors import UserError
from mdw_jax.io.file_rows import FileRows
from mdw_jax.io.files import digest
from mdw_jax.io.packed_strings import PackedStrings
from mdw_jax.io.row_cache import cached_rows
from mdw_jax.models.text.bow import bow_features
from mdw_jax.models.text.encoder import chunk_size, open_transformer
from mdw_jax.models.text.precomputed import open_precomputed
from mdw_jax.models.weights.hub import directory_digest, model_directory

_SPLITS = ("train", "val", "test")
_VERSION = 1  # raise it when the code of an encoder changes its numbers, so that older caches are not used


@dataclasses.dataclass(frozen=True)
class TextFeatures:
    """Features of all captions of a data set.

    Attributes:
        train, val, test: (K_split, d) float32 or float16, row k for caption k of that split; `train` is mapped from the
            disk where it is large, and stays there where it is larger (`io.row_cache`).
        key: sha256 of everything they depend on: encoder, settings, weights or file, captions.
    """

    train: np.ndarray | FileRows
    val: np.ndarray
    test: np.ndarray
    key: str


# An encoder is a function of all captions' numbers (K,) and all settings. It returns the settings that its features depend
# on, for the key, and a function of some captions and their numbers that computes their features (n, d).
Encoder = Callable[..., tuple[list, Callable[[Sequence[str], np.ndarray], np.ndarray]]]


def _bow(caption_ids, *, dim, seed, **_):
    return [dim, seed], lambda captions, _: bow_features(captions, dim, seed)


def _precomputed(caption_ids, *, path, **_):
    if path is None:
        raise UserError("the text encoder 'precomputed' needs a feature file; set text.path to it.")
    if not Path(path).is_file():
        raise UserError(f"there is no text feature file '{path}'; check text.path.")
    with open(path, "rb") as file:
        contents = hashlib.file_digest(file, "sha256").hexdigest()
    features_of = functools.cache(open_precomputed)
    return [contents, digest(np.asarray(caption_ids))], lambda _, ids: features_of(path)(ids)


def _transformer(caption_ids, *, path, pooling, max_tokens, **_):
    if path is None:
        raise UserError("the text encoder 'transformer' needs a model; set text.path to a directory or a Hub model's "
                        "name.")
    directory = model_directory(path)
    features_of = functools.cache(open_transformer)  # not opened where the cache has all features
    return ([directory_digest(directory), pooling, max_tokens],
            lambda captions, _: features_of(directory, pooling, max_tokens)(captions))


# The settings that each takes stand in `options.TEXT_ENCODER_SETTINGS`.
TEXT_ENCODERS: dict[str, Encoder] = {"bow": _bow, "precomputed": _precomputed, "transformer": _transformer}


def text_features(pairs: Pairs, encoder: str, *, cache_dir=None, dim: int = 384, seed: int = 0, path=None,
                  pooling: str = "mean", max_tokens: int = 64, dtype: str = "float32") -> TextFeatures:
    """Features of every caption of `pairs` by a frozen encoder.

    The cache's key does not depend on the noise: noise re-pairs captions with images by index and changes no caption;
    features are stored by caption and looked up through the noisy pairing. The key depends on the captions, the
    truncation and the weights themselves. (The baselines' caches, named after data set and encoder alone, went stale
    when the captions or their truncation changed, and could give a noisy run clean captions.)

    Args:
        pairs: the data set.
        encoder: one of `TEXT_ENCODERS`: "bow" (hashed words), "precomputed" (a file) or "transformer" (a BERT,
            DistilBERT or CLIP; L2-normalized).
        cache_dir: directory that keeps the result, as `text-<first 16 of the key>.npy`, for later calls; a call that was
            killed goes on there (`io.row_cache`). Captions are encoded some thousands at a time, never all at once.
        dim, seed: width and projection of "bow".
        path: the feature file of "precomputed"; the model directory or Hub name of "transformer".
        pooling, max_tokens: of "transformer": see `mdw_jax.models.text.encoder.load_text_encoder`.
        dtype: in which features are kept: float32 or float16.
    Raises:
        UserError: an unknown encoder, a missing path, or what the encoder raises.
    """
    if encoder not in TEXT_ENCODERS:
        raise UserError(f"unknown text encoder '{encoder}'; set text.encoder to one of {', '.join(TEXT_ENCODERS)}.")
    if dtype not in options.FEATURE_DTYPES:
        raise UserError(f"text features are kept in {' or '.join(options.FEATURE_DTYPES)}, not in '{dtype}'; set "
                        "text.dtype to one of these.")
    splits = [getattr(pairs, split) for split in _SPLITS]
    caption_ids = np.concatenate([split.caption_ids for split in splits])
    settings, features_of = TEXT_ENCODERS[encoder](caption_ids, dim=dim, seed=seed, path=path, pooling=pooling,
                                                   max_tokens=max_tokens)
    captions = [split.captions if isinstance(split.captions, PackedStrings) else list(split.captions) for split in splits]
    key = digest([_VERSION, encoder, settings], captions)
    key = key if dtype == "float32" else digest(key, dtype)
    ends = np.cumsum([0, *map(len, captions)])

    def compute(start: int) -> Iterator[np.ndarray]:
        for first in range(start, ends[-1], chunk_size()):
            last = min(first + chunk_size(), ends[-1])
            some = [caption for of_split, begin in zip(captions, ends) for caption in
                    of_split[max(0, first - begin):max(0, last - begin)]]
            yield _as(dtype, features_of(some, caption_ids[first:last]))

    cache = None if cache_dir is None else Path(cache_dir) / f"text-{key[:16]}"
    rows = cached_rows(cache, key, int(ends[-1]), dtype, compute)
    train, val, test = (rows.part(start, stop) if isinstance(rows, FileRows) else rows[start:stop]
                        for start, stop in itertools.pairwise(ends.tolist()))
    return TextFeatures(train, np.asarray(val), np.asarray(test), key)


def _as(dtype: str, features: np.ndarray) -> np.ndarray:
    """Features in the type in which they are kept. UserError if it is too small for them."""
    with np.errstate(over="ignore"):
        kept = features.astype(dtype)
    if not np.isfinite(kept).all():
        raise UserError(f"the text features reach {np.abs(features).max():.3g}, too large for {dtype}; set text.dtype to "
                        "float32.")
    return kept
