"""`TextFeatures`: the frozen encoder's view of every caption, computed once and cached."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mdw_jax.data.pairs import Pairs
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest, write_atomically
from mdw_jax.models.text.bow import bow_features
from mdw_jax.models.text.encoder import transformer_features
from mdw_jax.models.text.precomputed import precomputed_features
from mdw_jax.models.weights.hub import folder_digest, model_folder

_SPLITS = ("train", "val", "test")
_VERSION = 1  # raise it when an encoder's code changes its numbers, so that older caches are left behind


@dataclasses.dataclass(frozen=True)
class TextFeatures:
    """Features of all captions of a data set.

    train, val, test: (K_split, d) float32, row k for caption k of that split.
    key: sha256 of everything they depend on: encoder, settings, weights or file, captions.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    key: str


# An encoder is a function of (captions, caption_ids) and all settings. It returns the settings that matter to it, for
# the key, and a function without arguments that computes the (K, d) features.


def _bow(captions, caption_ids, *, dim, seed, **_):
    return [dim, seed], lambda: bow_features(captions, dim, seed)


def _precomputed(captions, caption_ids, *, path, **_):
    if path is None:
        raise UserError("the text encoder 'precomputed' needs the path of a feature file; set it.")
    if not Path(path).is_file():
        raise UserError(f"there is no text feature file '{path}'; check the path.")
    with open(path, "rb") as file:
        contents = hashlib.file_digest(file, "sha256").hexdigest()
    return [contents, digest(np.asarray(caption_ids))], lambda: precomputed_features(path, caption_ids)


def _transformer(captions, caption_ids, *, path, pooling, max_tokens, **_):
    if path is None:
        raise UserError("the text encoder 'transformer' needs the path of a model folder or a Hub model's name; set "
                        "it.")
    folder = model_folder(path)
    return ([folder_digest(folder), pooling, max_tokens],
            lambda: transformer_features(captions, folder, pooling=pooling, max_tokens=max_tokens))


ENCODERS: dict[str, Callable] = {"bow": _bow, "precomputed": _precomputed, "transformer": _transformer}


def _read_cache(path: Path, key: str) -> TextFeatures | None:
    """The features stored under the whole `key`, or None. A damaged cache is no error: it is computed again."""
    try:
        with safe_open(path, "np") as file:
            said = file.metadata() or {}
            if said.get("key") != key:
                return None
            arrays = {split: file.get_tensor(split) for split in _SPLITS}
    except (OSError, SafetensorError):
        return None
    return TextFeatures(**arrays, key=key) if said.get("sha256") == digest(*arrays.values()) else None


def text_features(pairs: Pairs, encoder: str, *, cache_dir=None, dim: int = 384, seed: int = 0, path=None,
                  pooling: str = "mean", max_tokens: int = 64) -> TextFeatures:
    """Features of every caption of `pairs` by a frozen encoder.

    The key holds no noise, and need not: noise re-pairs captions with images by index and changes no caption; features
    are stored by caption, and whoever trains looks them up through the noisy pairing. It does hold the captions, the
    truncation and the weights themselves: the peers' caches, named after data set and encoder alone, went stale when
    the captions or their truncation changed, and could give a noisy run clean captions.

    Args:
        pairs: the data set.
        encoder: "bow" (hashed words), "precomputed" (a file) or "transformer" (a BERT, DistilBERT or CLIP;
            L2-normalized).
        cache_dir: keep the result there as `text-<first 16 of the key>.safetensors`, and use it if it is there.
        dim, seed: width and projection of "bow".
        path: the feature file of "precomputed"; the model folder or Hub name of "transformer".
        pooling, max_tokens: of "transformer": see `mdw_jax.models.text.encoder.load_text_encoder`.
    Raises:
        UserError: unknown encoder, a missing path, or what the encoder raises.
    """
    if encoder not in ENCODERS:
        raise UserError(f"unknown text encoder '{encoder}'; choose one of {', '.join(ENCODERS)}.")
    splits = [getattr(pairs, split) for split in _SPLITS]
    captions = [caption for split in splits for caption in split.captions]
    caption_ids = np.concatenate([split.caption_ids for split in splits])
    settings, compute = ENCODERS[encoder](captions, caption_ids, dim=dim, seed=seed, path=path, pooling=pooling,
                                          max_tokens=max_tokens)
    key = digest([_VERSION, encoder, settings], [list(split.captions) for split in splits])
    cache = None if cache_dir is None else Path(cache_dir) / f"text-{key[:16]}.safetensors"
    cached = _read_cache(cache, key) if cache is not None and cache.is_file() else None
    if cached is not None:
        return cached
    ends = np.cumsum([len(split.captions) for split in splits])[:-1]
    arrays = {split: np.ascontiguousarray(part) for split, part in zip(_SPLITS, np.split(compute(), ends))}
    if cache is not None:
        write_atomically(cache, save(arrays, metadata={"key": key, "sha256": digest(*arrays.values())}))
    return TextFeatures(**arrays, key=key)
