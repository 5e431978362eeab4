"""BERT and DistilBERT in Flax, reading Hugging Face weights."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.models.text.layers import TransformerLayer, dense, dense_layout, layers_layout, norm, norm_layout
from mdw_jax.models.weights.convert import assemble
from mdw_jax.models.weights.hugging_face import transformer_fields

# Fields of `Bert` by their names in config.json.
_SIZES = {
    "bert": dict(vocabulary="vocab_size", hidden="hidden_size", layers="num_hidden_layers",
                 heads="num_attention_heads", intermediate="intermediate_size", positions="max_position_embeddings",
                 token_types="type_vocab_size", act="hidden_act"),
    "distilbert": dict(vocabulary="vocab_size", hidden="dim", layers="n_layers", heads="n_heads",
                       intermediate="hidden_dim", positions="max_position_embeddings", act="activation"),
}
# What weight files call the stack of layers, and each part of a layer.
_LAYERS = {
    "bert": ("encoder.layer", {
        "attention.query": "attention.self.query", "attention.key": "attention.self.key",
        "attention.value": "attention.self.value", "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm", "intermediate": "intermediate.dense",
        "output": "output.dense", "output_norm": "output.LayerNorm"}),
    "distilbert": ("transformer.layer", {
        "attention.query": "attention.q_lin", "attention.key": "attention.k_lin", "attention.value": "attention.v_lin",
        "attention.output": "attention.out_lin", "attention_norm": "sa_layer_norm", "intermediate": "ffn.lin1",
        "output": "ffn.lin2", "output_norm": "output_layer_norm"}),
}


def _kind(config: dict) -> str:
    """"bert" (also where a configuration has no model type, like the oldest) or "distilbert"."""
    kind = config.get("model_type", "bert")
    if kind not in _SIZES:
        raise UserError(f"config.json describes a '{kind}' model; only {' and '.join(_SIZES)} models can be read.")
    return kind


class Bert(nn.Module):
    """BERT (Devlin et al. 2019) or DistilBERT (Sanh et al. 2019), without dropout. Made by `Bert.from_config`.

    A DistilBERT is a BERT without token types and pooler. `apply(variables, ids, method="embed")` looks words up,
    `apply(variables, embedded, mask)` is the last hidden state, and `apply(variables, last, mask, method="native")` the
    pooler's output.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    token_types: int = 0  # 0: a DistilBERT
    act: str = "gelu"
    eps: float = 1e-12

    @classmethod
    def from_config(cls, config: dict) -> "Bert":
        """The module that a Hugging Face `config.json` describes.

        Raises:
            UserError: neither model, a missing or unusable size, an unknown activation or kind of position.
        """
        kind = _kind(config)
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise UserError(f"config.json asks for '{config['position_embedding_type']}' positions; only BERT models "
                            "with 'absolute' ones can be read.")
        names = _SIZES[kind]
        fields = transformer_fields({names["act"]: "gelu"} | config, names,
                                    "a BERT" if kind == "bert" else "a DistilBERT")
        return cls(**fields, eps=float(config.get("layer_norm_eps", 1e-12)))

    def setup(self):
        self.word_embeddings = nn.Embed(self.vocabulary, self.hidden)
        self.position_embeddings = nn.Embed(self.positions, self.hidden)
        self.embedding_norm = norm(self.eps)
        self.layer = [TransformerLayer(self.heads, self.intermediate, self.act, self.eps) for _ in range(self.layers)]
        if self.token_types:
            self.token_type_embeddings = nn.Embed(self.token_types, self.hidden)
            self.pooler = dense(self.hidden)

    def embed(self, ids):
        """ids: (B, L) integers -> (B, L, hidden), the word embeddings alone."""
        return self.word_embeddings(ids)

    def __call__(self, embedded, mask, types=None):
        """embedded: (B, L, hidden); mask (1 = a token), types (default 0): (B, L) -> last hidden state."""
        x = embedded + self.position_embeddings(jnp.arange(embedded.shape[1]))
        if self.token_types:
            x = x + self.token_type_embeddings(jnp.zeros(mask.shape, int) if types is None else types)
        x = self.embedding_norm(x)
        for layer in self.layer:
            x = layer(x, mask[:, None, :] > 0)
        return x

    def native(self, last, mask):
        """The last hidden state (B, L, hidden) -> (B, hidden), `tanh` of a dense layer on the first token (BERT)."""
        return jnp.tanh(self.pooler(last[:, 0]))


def _layout(model: Bert, kind: str):
    """Yields, for every parameter, its Hugging Face name, its path among the parameters, and the tensor's shape."""
    h = model.hidden
    tables = dict(word=model.vocabulary, position=model.positions, token_type=model.token_types)
    for table, rows in tables.items():
        if rows:
            yield f"embeddings.{table}_embeddings.weight", (f"{table}_embeddings", "embedding"), (rows, h)
    yield from norm_layout("embeddings.LayerNorm", ("embedding_norm",), h)
    yield from layers_layout(*_LAYERS[kind], model.layers, h, model.intermediate)
    if model.token_types:
        yield from dense_layout("pooler.dense", ("pooler",), h, h)


def params_from_safetensors(tensors: dict[str, np.ndarray], config: dict) -> dict:
    """Hugging Face (Distil)BERT weights as parameters of `Bert.from_config(config)`, float32, on the host.

    Args:
        tensors: by PyTorch name, with or without "bert." or "distilbert." in front, in PyTorch layout (linear layers
            (out, in)). Tensors of other names (heads, buffers) are ignored, and the pooler may be missing.
        config: the Hugging Face configuration.
    Raises:
        UserError: missing or wrong-shaped tensors (names the first few), or what `Bert.from_config` raises.
    """
    kind = _kind(config)
    # bert-base-uncased itself still has its layer norms under their TensorFlow names.
    tensors = {name.removeprefix(f"{kind}.").replace("LayerNorm.gamma", "LayerNorm.weight")
             .replace("LayerNorm.beta", "LayerNorm.bias"): tensor for name, tensor in tensors.items()}
    pooled = any(name.startswith("pooler.") for name in tensors)
    layout = _layout(Bert.from_config(config), kind)
    return assemble((entry for entry in layout if pooled or not entry[0].startswith("pooler.")), tensors,
                    "one BERT" if kind == "bert" else "one DistilBERT")
