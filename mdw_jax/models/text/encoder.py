"""`TextEncoder`: a pretrained text Transformer as pure functions, and its features of captions."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mdw_jax.config.options import POOLINGS
from mdw_jax.errors import UserError
from mdw_jax.models.text import bert, clip
from mdw_jax.models.text.bert import Bert
from mdw_jax.models.text.clip import ClipText, end_positions
from mdw_jax.models.text.tokenizer import encoded, read_tokenizer
from mdw_jax.models.weights.hub import model_directory, read_json, read_tensors
from mdw_jax.runtime.mesh import DATA, mesh_for, replicated, shard, to_host

# By the model type in config.json: the class of the module, the function that reads its weights, and its poolings.
_MODELS: dict[str, tuple] = {
    "bert": (Bert, bert.params_from_safetensors, ("mean", "cls", "native")),
    "distilbert": (Bert, bert.params_from_safetensors, ("mean", "cls")),
    "clip": (ClipText, clip.params_from_safetensors, ("native",)),
    "clip_text_model": (ClipText, clip.params_from_safetensors, ("native",)),
}


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A text Transformer and its pooling. It holds no weights and can be a static argument.

    `encode(params, embed(params, ids), mask)` is the feature. `embed` uses `params["word_embeddings"]` alone, and
    `encode` does not use them. Both compute in the dtype of their arguments.

    Attributes:
        model: the Transformer.
        pooling: "mean" over tokens (sentence-transformers); "cls", the first token (the baselines' choice); or
            "native", the model's own: BERT's pooler output, CLIP's projected end-of-text token (`text_embeds`).
        unit: scale features to unit length.
    """

    model: Bert | ClipText
    pooling: str
    unit: bool = True

    @property
    def width(self) -> int:
        """Width d of the feature."""
        return self.model.projection if isinstance(self.model, ClipText) else self.model.hidden

    def embed(self, params, ids):
        """ids: (B, L) integers -> (B, L, h), the word-embedding lookup alone."""
        return self.model.apply({"params": params}, ids, method="embed")

    def encode(self, params, embedded, mask):
        """Positions, layers and pooling: embedded (B, L, h), mask (B, L), 1 = a token -> (B, d).

        Padding comes last. CLIP's end of text is the last position whose mask is 1.
        """
        last = self.model.apply({"params": params}, embedded, mask)
        if self.pooling == "native":
            features = self.model.apply({"params": params}, last, mask, method="native")
        elif self.pooling == "cls":
            features = last[:, 0]
        else:
            weights = mask.astype(last.dtype)[:, :, None]
            features = (last * weights).sum(1) / weights.sum(1)
        return features / jnp.linalg.norm(features, axis=1, keepdims=True) if self.unit else features


def _tokenize(tokenizer, end_token: int | None, captions) -> tuple[np.ndarray, np.ndarray]:
    """K captions -> ids and mask, (K, L) int32 each, padded with 0 to the longest of them."""
    tokens = [encoding.ids for encoding in encoded(tokenizer, list(captions))]
    lengths = np.array([len(ids) for ids in tokens], int)
    ids = np.zeros((len(tokens), lengths.max(initial=0)), np.int32)
    for row, tokens_of_one in zip(ids, tokens, strict=True):
        row[:len(tokens_of_one)] = tokens_of_one
    if end_token is not None and len(tokens):  # a caption may contain the end-of-text token: the rest is ignored
        lengths = end_positions(ids, end_token) + 1
    return ids, (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int32)


def load_text_encoder(source, pooling: str = "mean", max_tokens: int = 64,
                      unit: bool = True) -> tuple[TextEncoder, dict, Callable[[Any], tuple[np.ndarray, np.ndarray]]]:
    """A BERT, DistilBERT or CLIP text encoder from a local Hugging Face directory or from the Hub.

    Args:
        source: as in `mdw_jax.models.weights.hub`: a directory with config.json, model.safetensors (or shards) and
            tokenizer.json (or vocab.txt, or vocab.json and merges.txt); or a Hub model's name.
        pooling: as in `TextEncoder`. BERT has all three, DistilBERT (no pooler) "mean" and "cls", CLIP "native" alone.
        max_tokens: captions are cut to so many tokens, the special ones included and kept.
        unit: scale features to unit length.
    Returns:
        The encoder; its parameters, float32 on the host, BERT's pooler only where it is used; and `tokenize`, a
        function of K captions that returns ids and mask, (K, L) int32, padded to the longest.
    Raises:
        UserError: a pooling that the model does not have, an impossible `max_tokens`, no such model, one of another
            type, or files that are missing, damaged or do not fit each other.
    """
    if pooling not in POOLINGS:
        raise UserError(f"unknown pooling '{pooling}' for a text encoder; choose one of {', '.join(POOLINGS)}.")
    directory = model_directory(source)
    config, tokenizer = read_json(directory / "config.json"), read_tokenizer(directory)
    kind = config.get("model_type", "bert")  # the oldest BERTs have no such entry
    if kind not in _MODELS:
        raise UserError(f"'{source}' is a '{kind}' model; a text encoder is one of {', '.join(_MODELS)}.")
    module, read_weights, poolings = _MODELS[kind]
    if pooling not in poolings:
        raise UserError(f"'{source}' is a '{kind}' model, which has no '{pooling}' pooling; set the pooling to "
                        f"{' or '.join(poolings)}.")
    model = module.from_config(config)
    if not 3 <= max_tokens <= model.positions:
        raise UserError(f"max_tokens is {max_tokens}, but '{source}' takes from 3 to {model.positions} tokens; choose "
                        "one of these.")
    params = read_weights(read_tensors(directory), config)
    if pooling == "native" and kind == "bert" and "pooler" not in params:
        raise UserError(f"'{source}' has no weights for BERT's pooler, which 'native' pooling is; choose mean or cls.")
    if pooling != "native":
        params.pop("pooler", None)  # nothing trains it, and trajectories would store it
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= model.vocabulary:  # XLA would silently clamp such a token to the last row
        raise UserError(f"the tokenizer of '{source}' knows token {last} but the model only {model.vocabulary} tokens; "
                        "give the files of one model.")
    tokenizer.enable_truncation(max_tokens)
    end_token = model.end_token if isinstance(model, ClipText) else None
    tokenize = functools.partial(_tokenize, tokenizer, end_token)
    empty = encoded(tokenizer, [""])[0].ids
    if len(empty) < 2 or (end_token is not None and tokenize([""])[1].sum() != len(empty)):
        raise UserError(f"the tokenizer of '{source}' does not put the model's special tokens around captions (only "
                        f"{empty}); give the files of one model.")
    return TextEncoder(model, pooling, unit), params, tokenize


@functools.partial(jax.jit, static_argnames="encoder")
def _features(encoder, params, ids, mask):
    """(B, L) ids and mask -> (B, d) features."""
    return encoder.encode(params, encoder.embed(params, ids), mask)


def _bucket_lengths(longest: int) -> list[int]:
    """Few lengths that waste little, for one compilation each: 16, 24, 32, 48, 64, 96, ... up to `longest`."""
    lengths, power = [], 16
    while power < longest:
        lengths += [power, power * 3 // 2]
        power *= 2
    return [length for length in lengths if length < longest] + [longest]


def chunk_size() -> int:
    """How many captions are tokenized at the same time: enough to fill batches of one length on all devices."""
    return 4096 * len(jax.devices())


def transformer_features(captions, source, pooling: str = "mean", max_tokens: int = 64, unit: bool = True,
                         batch: int = 64) -> np.ndarray:
    """Frozen features of captions by a pretrained text Transformer, in full float32 precision.

    A caption's padded length depends on its own length alone, so its feature does not depend on the other captions of
    its batch.

    Args:
        captions: K strings.
        source, pooling, max_tokens, unit: as for `load_text_encoder`.
        batch: captions encoded at a time, on each device.
    Returns:
        (K, d) float32.
    Raises:
        UserError: weights that give NaN, or what `load_text_encoder` raises.
    """
    features_of = open_transformer(source, pooling, max_tokens, unit, batch)
    parts = [features_of(captions[first:first + chunk_size()]) for first in range(0, max(1, len(captions)), chunk_size())]
    return np.concatenate(parts)


def open_transformer(source, pooling: str = "mean", max_tokens: int = 64, unit: bool = True,
                     batch: int = 64) -> Callable[[Sequence[str]], np.ndarray]:
    """`transformer_features` of one model, as a function of captions: some thousands at a time (`chunk_size`)."""
    encoder, params, tokenize = load_text_encoder(source, pooling, max_tokens, unit)
    return functools.partial(_encode, (encoder, replicated(jax.device_put(params)), tokenize), source, max_tokens, batch)


def _encode(model, source, max_tokens: int, batch: int, captions) -> np.ndarray:
    encoder, params, tokenize = model
    batch *= len(jax.devices())
    unique = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    tokens, masks = tokenize(list(unique))
    buckets = _bucket_lengths(max_tokens)
    bucket_of = np.searchsorted(buckets, masks.sum(1))
    features = np.empty((len(tokens), encoder.width), np.float32)
    for b, length in enumerate(buckets):
        members = np.flatnonzero(bucket_of == b)
        used = min(length, tokens.shape[1])
        for start in range(0, len(members), batch):
            rows = members[start:start + batch]
            ids, mask = np.zeros((2, batch, length), np.int32)
            mask[:, 0] = 1  # rows beyond the last caption stay finite
            ids[:len(rows), :used], mask[:len(rows), :used] = tokens[rows, :used], masks[rows, :used]
            features[rows] = np.asarray(_on_all_devices(encoder, params, ids, mask))[:len(rows)]
    if not np.isfinite(features).all():
        raise UserError(f"the weights of '{source}' give NaN or infinite features; they are damaged: fetch them again.")
    return features[[unique[caption] for caption in captions]]


def _on_all_devices(encoder: TextEncoder, params, ids: np.ndarray, mask: np.ndarray):
    """`_features`, each device with its share of the rows."""
    if len(jax.devices()) == 1:
        return _features(encoder, params, ids, mask)
    mesh = mesh_for(1)
    with jax.set_mesh(mesh):
        return to_host(_features(encoder, params, *shard(mesh, PartitionSpec(DATA), (ids, mask))))
