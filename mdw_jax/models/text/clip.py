"""CLIP's text tower in Flax, reading Hugging Face weights."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.models.text.layers import TransformerLayer, dense, layers_layout, norm, norm_layout
from mdw_jax.models.weights.convert import assemble
from mdw_jax.models.weights.hugging_face import transformer_fields

_SIZES = dict(vocabulary="vocab_size", hidden="hidden_size", layers="num_hidden_layers", heads="num_attention_heads",
              intermediate="intermediate_size", positions="max_position_embeddings", projection="projection_dim",
              end_token="eos_token_id", act="hidden_act")
# Configurations hold only what differs from these, which are those of ViT-B/32.
_DEFAULTS = dict(vocab_size=49408, hidden_size=512, num_hidden_layers=12, num_attention_heads=8,
                 intermediate_size=2048, max_position_embeddings=77, projection_dim=512, hidden_act="quick_gelu",
                 layer_norm_eps=1e-5, eos_token_id=49407)
_LAYER = {"attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
          "attention.value": "self_attn.v_proj", "attention.output": "self_attn.out_proj",
          "attention_norm": "layer_norm1", "intermediate": "mlp.fc1", "output": "mlp.fc2",
          "output_norm": "layer_norm2"}
_LEGACY_END = 2


def end_positions(ids: np.ndarray, end_token: int) -> np.ndarray:
    """Where captions end, as in `transformers`: (B, L) token ids -> (B,) positions.

    The first position of the token `end_token`; but the configurations of OpenAI's own models wrongly have 2 there,
    which stands for the first position of the largest id.
    """
    ids = np.asarray(ids)
    return ids.argmax(1) if end_token == _LEGACY_END else (ids == end_token).argmax(1)


class ClipText(nn.Module):
    """CLIP's text tower (Radford et al. 2021). Made by `ClipText.from_config`.

    `apply(variables, ids, method="embed")` looks words up, `apply(variables, embedded, mask)` is the last hidden state,
    and `apply(variables, last, mask, method="native")` the projection of its end-of-text token (`text_embeds`).
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    projection: int
    act: str = "quick_gelu"
    eps: float = 1e-5
    end_token: int = 49407  # as in the configuration: see `end_positions`

    @classmethod
    def from_config(cls, config: dict) -> "ClipText":
        """The text tower of a Hugging Face `config.json`, of a whole CLIP ("clip") or of its text tower alone.

        Raises:
            UserError: neither of them, a missing or unusable size, an unknown activation.
        """
        kind = config.get("model_type")
        if kind == "clip":
            # The projection is a setting of the whole model. Older files have the others twice; where they differ, the
            # second counts.
            text = {**(config.get("text_config") or {}), **(config.get("text_config_dict") or {})}
            config = {**text, "projection_dim": config.get("projection_dim", _DEFAULTS["projection_dim"])}
        elif kind != "clip_text_model":
            raise UserError(f"config.json describes a '{kind}' model; only clip and clip_text_model ones can be "
                            "read.")
        config = _DEFAULTS | config
        return cls(**transformer_fields(config, _SIZES, "a CLIP"), eps=float(config["layer_norm_eps"]))

    def setup(self):
        self.word_embeddings = nn.Embed(self.vocabulary, self.hidden)
        self.position_embeddings = nn.Embed(self.positions, self.hidden)
        self.layer = [TransformerLayer(self.heads, self.intermediate, self.act, self.eps, norm_first=True)
                      for _ in range(self.layers)]
        self.final_norm = norm(self.eps)
        self.text_projection = dense(self.projection, use_bias=False)

    def embed(self, ids):
        """ids: (B, L) integers -> (B, L, hidden), the word embeddings alone."""
        return self.word_embeddings(ids)

    def __call__(self, embedded, mask):
        """embedded: (B, L, hidden), mask (1 = a token): (B, L) -> last hidden state, after the final norm."""
        length = embedded.shape[1]
        x = embedded + self.position_embeddings(jnp.arange(length))
        visible = jnp.tri(length, dtype=bool) & (mask[:, None, :] > 0)  # each token attends to those up to itself
        for layer in self.layer:
            x = layer(x, visible)
        return self.final_norm(x)

    def native(self, last, mask):
        """The last hidden state (B, L, hidden) -> (B, projection), from the last position where `mask` is 1.

        That is the end-of-text token: of embedded words only the mask tells where it is.
        """
        end = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1] > 0, axis=1)
        return self.text_projection(last[jnp.arange(len(last)), end])


def _layout(model: ClipText):
    """Yields, for every parameter, its Hugging Face name, its path among the parameters, and the tensor's shape."""
    h = model.hidden
    for in_file, table, rows in (("token", "word", model.vocabulary), ("position", "position", model.positions)):
        yield f"text_model.embeddings.{in_file}_embedding.weight", (f"{table}_embeddings", "embedding"), (rows, h)
    yield from layers_layout("text_model.encoder.layers", _LAYER, model.layers, h, model.intermediate)
    yield from norm_layout("text_model.final_layer_norm", ("final_norm",), h)
    yield "text_projection.weight", ("text_projection", "kernel"), (model.projection, h)


def params_from_safetensors(tensors: dict[str, np.ndarray], config: dict) -> dict:
    """Hugging Face CLIP weights as parameters of `ClipText.from_config(config)`, float32, on the host.

    Args:
        tensors: by PyTorch name, in PyTorch layout. Tensors of other names (the image tower, buffers) are ignored.
        config: the Hugging Face configuration.
    Raises:
        UserError: missing or wrong-shaped tensors (names the first few), or what `ClipText.from_config` raises.
    """
    return assemble(_layout(ClipText.from_config(config)), tensors, "one CLIP with its text projection")
