"""A BERT encoder in Flax that reads Hugging Face weights, and the caption features it gives."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.text.hub import model_folder, read_json, read_tensors, read_tokenizer
from mdw_jax.weights import assemble

_ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
# Without it GPUs and TPUs round the factors, and features would depend on the machine that computed them.
_dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
_norm = functools.partial(nn.LayerNorm, use_fast_variance=False)


class BertLayer(nn.Module):
    """One post-norm Transformer layer: (B, L, hidden), (B, L) mask -> (B, L, hidden)."""

    hidden: int
    heads: int
    intermediate: int
    act: str
    eps: float

    @nn.compact
    def __call__(self, x, mask):
        split = (*x.shape[:2], self.heads, self.hidden // self.heads)
        q, k, v = (_dense(self.hidden, name=name)(x).reshape(split) for name in ("query", "key", "value"))
        exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        scores = exact("bqhd,bkhd->bhqk", q, k) / np.sqrt(split[-1])
        scores = jnp.where(mask[:, None, None, :] > 0, scores, jnp.finfo(scores.dtype).min)
        mixed = exact("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v).reshape(x.shape)
        x = _norm(self.eps, name="attention_norm")(x + _dense(self.hidden, name="attention_output")(mixed))
        h = _ACTIVATIONS[self.act](_dense(self.intermediate, name="intermediate")(x))
        return _norm(self.eps, name="output_norm")(x + _dense(self.hidden, name="output")(h))


class Bert(nn.Module):
    """BERT (Devlin et al. 2019), eval mode: no dropout. Build it with `Bert.from_config`.

    `apply(variables, ids, mask)` is the last hidden state; `apply(variables, last, method="pool")` the pooler's output.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    token_types: int = 2
    act: str = "gelu"
    eps: float = 1e-12

    @classmethod
    def from_config(cls, config: dict) -> "Bert":
        """The module a Hugging Face `config.json` describes.

        Raises:
            UserError: not a BERT, a missing or unusable size, an unknown activation or kind of position.
        """
        if config.get("model_type", "bert") != "bert":
            raise UserError(f"config.json describes a '{config['model_type']}' model; only 'bert' models can be read.")
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise UserError(f"config.json asks for '{config['position_embedding_type']}' positions; only BERT models "
                            "with 'absolute' ones can be read.")
        names = dict(vocabulary="vocab_size", hidden="hidden_size", layers="num_hidden_layers",
                     heads="num_attention_heads", intermediate="intermediate_size",
                     positions="max_position_embeddings", token_types="type_vocab_size")
        for name in names.values():
            if not isinstance(config.get(name), int) or config[name] < 1:
                raise UserError(f"config.json gives {name} = {config.get(name)!r}; a BERT needs a positive "
                                "integer there.")
        act = config.get("hidden_act", "gelu")
        if act not in _ACTIVATIONS:
            raise UserError(f"config.json asks for the activation '{act}'; known are {', '.join(_ACTIVATIONS)}.")
        if config["hidden_size"] % config["num_attention_heads"]:
            raise UserError(f"config.json gives hidden_size {config['hidden_size']}, which its "
                            f"{config['num_attention_heads']} attention heads do not divide.")
        return cls(**{field: config[name] for field, name in names.items()}, act=act,
                   eps=float(config.get("layer_norm_eps", 1e-12)))

    def setup(self):
        self.word_embeddings = nn.Embed(self.vocabulary, self.hidden)
        self.position_embeddings = nn.Embed(self.positions, self.hidden)
        self.token_type_embeddings = nn.Embed(self.token_types, self.hidden)
        self.embedding_norm = _norm(self.eps)
        self.layer = [BertLayer(self.hidden, self.heads, self.intermediate, self.act, self.eps)
                      for _ in range(self.layers)]
        self.pooler = _dense(self.hidden)

    def __call__(self, ids, mask, types=None):
        """ids, mask (1 = a token), types (default 0): (B, L) integers -> last hidden state (B, L, hidden)."""
        types = jnp.zeros_like(ids) if types is None else types
        x = self.word_embeddings(ids) + self.position_embeddings(jnp.arange(ids.shape[1]))
        x = self.embedding_norm(x + self.token_type_embeddings(types))
        for layer in self.layer:
            x = layer(x, mask)
        return x

    def pool(self, last):
        """last: (B, L, hidden), the last hidden state -> (B, hidden), `tanh` of a dense layer on the first token."""
        return jnp.tanh(self.pooler(last[:, 0]))


def _layout(model: Bert):
    """Yields, for every parameter, its Hugging Face name, its path among our parameters, and its shape there."""
    h = model.hidden

    def dense(theirs, ours, inputs, outputs):
        yield f"{theirs}.weight", (*ours, "kernel"), (outputs, inputs)
        yield f"{theirs}.bias", (*ours, "bias"), (outputs,)

    def norm(theirs, ours):
        yield f"{theirs}.weight", (*ours, "scale"), (h,)
        yield f"{theirs}.bias", (*ours, "bias"), (h,)

    for table, rows in (("word", model.vocabulary), ("position", model.positions), ("token_type", model.token_types)):
        yield f"embeddings.{table}_embeddings.weight", (f"{table}_embeddings", "embedding"), (rows, h)
    yield from norm("embeddings.LayerNorm", ("embedding_norm",))
    for i in range(model.layers):
        theirs, ours = f"encoder.layer.{i}", f"layer_{i}"
        for name in ("query", "key", "value"):
            yield from dense(f"{theirs}.attention.self.{name}", (ours, name), h, h)
        yield from dense(f"{theirs}.attention.output.dense", (ours, "attention_output"), h, h)
        yield from norm(f"{theirs}.attention.output.LayerNorm", (ours, "attention_norm"))
        yield from dense(f"{theirs}.intermediate.dense", (ours, "intermediate"), h, model.intermediate)
        yield from dense(f"{theirs}.output.dense", (ours, "output"), model.intermediate, h)
        yield from norm(f"{theirs}.output.LayerNorm", (ours, "output_norm"))
    yield from dense("pooler.dense", ("pooler",), h, h)


def params_from_safetensors(tensors: dict[str, np.ndarray], config: dict) -> dict:
    """Hugging Face BERT weights as parameters of `Bert.from_config(config)`, float32, on the host.

    Args:
        tensors: by PyTorch name, with or without "bert." in front, in PyTorch layout (linear layers (out, in)). Tensors
            of other names (heads, buffers) are ignored, and the pooler may be missing.
        config: the Hugging Face configuration.
    Raises:
        UserError: missing or wrong-shaped tensors (names the first few), or what `Bert.from_config` raises.
    """
    # bert-base-uncased itself still has its layer norms under their TensorFlow names.
    found = {name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
             .replace("LayerNorm.beta", "LayerNorm.bias"): tensor for name, tensor in tensors.items()}
    pooled = any(name.startswith("pooler.") for name in found)
    layout = _layout(Bert.from_config(config))
    return assemble((entry for entry in layout if pooled or not entry[0].startswith("pooler.")), found, "one BERT")


def load_bert(source):
    """A BERT from a local Hugging Face folder, or from the Hub when `source` is not a folder.

    Args:
        source: a folder with config.json, model.safetensors and tokenizer.json or vocab.txt; or a Hub model's name.
    Returns:
        (Bert module, its parameters on the host, its tokenizer without padding and truncation).
    Raises:
        UserError: no such model, or files that are missing, damaged or do not fit each other.
    """
    folder = model_folder(source)
    config, tokenizer = read_json(folder / "config.json"), read_tokenizer(folder)
    model, params = Bert.from_config(config), params_from_safetensors(read_tensors(folder), config)
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= model.vocabulary:  # XLA would clamp such a token to the last row and say nothing
        raise UserError(f"the tokenizer of '{source}' knows token {last} but the model only {model.vocabulary} tokens; "
                        "give the files of one model.")
    return model, params, tokenizer


@functools.partial(jax.jit, static_argnames=("model", "pooling", "normalize"))
def _encode(model, params, ids, mask, pooling, normalize):
    """(B, L) ids and mask -> (B, hidden) features."""
    last = model.apply({"params": params}, ids, mask)
    if pooling == "cls":
        features = last[:, 0]
    else:
        weights = mask.astype(last.dtype)[:, :, None]
        features = (last * weights).sum(1) / weights.sum(1)
    if normalize:
        features = features / jnp.linalg.norm(features, axis=1, keepdims=True)
    return features


def _bucket_lengths(longest: int) -> list[int]:
    """Few lengths that waste little, for one compilation each: 16, 24, 32, 48, 64, 96, ... up to `longest`."""
    lengths, power = [], 16
    while power < longest:
        lengths += [power, power * 3 // 2]
        power *= 2
    return [length for length in lengths if length < longest] + [longest]


def bert_features(captions, source, pooling: str = "mean", max_tokens: int = 64, normalize: bool = True,
                  batch: int = 64) -> np.ndarray:
    """Frozen BERT features of captions, in full float32 precision.

    A caption's padded length follows from its own length alone, so its feature does not depend on those it is batched
    with.

    Args:
        captions: K strings.
        source: as for `load_bert`.
        pooling: "mean" over tokens (sentence-transformers), or "cls", the first token (the peers' choice).
        max_tokens: captions are cut to so many tokens, [CLS] and [SEP] included.
        normalize: divide by the L2 norm.
        batch: captions encoded at a time.
    Returns:
        (K, hidden) float32.
    Raises:
        UserError: unknown pooling, an impossible `max_tokens`, weights that give NaN, or what `load_bert` raises.
    """
    if pooling not in ("cls", "mean"):
        raise UserError(f"unknown pooling '{pooling}' for BERT features; choose 'cls' or 'mean'.")
    model, params, tokenizer = load_bert(source)
    if not 3 <= max_tokens <= model.positions:
        raise UserError(f"max_tokens is {max_tokens}, but '{source}' takes from 3 to {model.positions} tokens; choose "
                        "one of these.")
    tokenizer.enable_truncation(max_tokens)
    unique = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    tokens = [encoding.ids for encoding in tokenizer.encode_batch(list(unique))]
    lengths = np.array([len(ids) for ids in tokens], int)
    params = jax.device_put(params)
    buckets = _bucket_lengths(max_tokens)
    bucket_of = np.searchsorted(buckets, lengths)
    features = np.empty((len(tokens), model.hidden), np.float32)
    for b, length in enumerate(buckets):
        members = np.flatnonzero(bucket_of == b)
        for start in range(0, len(members), batch):
            rows = members[start:start + batch]
            ids, mask = np.zeros((2, batch, length), np.int32)
            mask[:, 0] = 1  # rows beyond the last caption stay finite
            for i, row in enumerate(rows):
                ids[i, :lengths[row]], mask[i, :lengths[row]] = tokens[row], 1
            features[rows] = np.asarray(_encode(model, params, ids, mask, pooling, normalize))[:len(rows)]
    if not np.isfinite(features).all():
        raise UserError(f"the weights of '{source}' give NaN or infinite features; they are damaged: fetch them again.")
    return features[[unique[caption] for caption in captions]]
