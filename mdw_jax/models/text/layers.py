"""What the text Transformers share: their layers, and how configurations and weight files speak of them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdw_jax.errors import UserError

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's, of CLIP
    "relu": jax.nn.relu,
}
# Without it GPUs and TPUs round the factors, and features would depend on the machine that computed them.
dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
norm = functools.partial(nn.LayerNorm, use_fast_variance=False)
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Attention(nn.Module):
    """Multi-head self-attention: (B, L, hidden), visible (B, 1 or L, L) -> (B, L, hidden).

    visible[b, q, k] says whether position q sees position k.
    """

    heads: int

    @nn.compact
    def __call__(self, x, visible):
        split = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        q, k, v = (dense(x.shape[2], name=name)(x).reshape(split) for name in ("query", "key", "value"))
        scores = _einsum("bqhd,bkhd->bhqk", q, k) * split[-1] ** -0.5
        scores = jnp.where(visible[:, None], scores, jnp.finfo(scores.dtype).min)
        mixed = _einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
        return dense(x.shape[2], name="output")(mixed.reshape(x.shape))


class TransformerLayer(nn.Module):
    """Attention, then a dense layer in and out, each with a residual: (B, L, hidden), visible -> (B, L, hidden).

    Layer norms come after each sum (BERT), or before each branch (`norm_first`, CLIP).
    """

    heads: int
    intermediate: int
    act: str
    eps: float
    norm_first: bool = False

    @nn.compact
    def __call__(self, x, visible):
        def feed_forward(x):
            h = ACTIVATIONS[self.act](dense(self.intermediate, name="intermediate")(x))
            return dense(x.shape[2], name="output")(h)

        attention = Attention(self.heads, name="attention")
        attention_norm, output_norm = (norm(self.eps, name=name) for name in ("attention_norm", "output_norm"))
        if self.norm_first:
            x = x + attention(attention_norm(x), visible)
            return x + feed_forward(output_norm(x))
        x = attention_norm(x + attention(x, visible))
        return output_norm(x + feed_forward(x))


def sizes(config: dict, names: dict[str, str], what: str) -> dict:
    """Module fields from a configuration: {field: config[name]} for `names` {field: name}, and "act".

    `names` has hidden, heads and act among its fields; all but act are positive integers, and heads divide hidden.
    `what` is the model, for messages: "a BERT". Raises UserError for anything else and for an unknown activation.
    """
    fields = {field: config.get(name) for field, name in names.items()}
    for field, value in fields.items():
        if field != "act" and (type(value) is not int or value < 1):
            raise UserError(f"config.json gives {names[field]} = {value!r}; {what} needs a positive integer there.")
    if fields["act"] not in ACTIVATIONS:
        raise UserError(f"config.json asks for the activation '{fields['act']}'; known are {', '.join(ACTIVATIONS)}.")
    if fields["hidden"] % fields["heads"]:
        raise UserError(f"config.json gives {names['hidden']} {fields['hidden']}, which its {fields['heads']} "
                        "attention heads do not divide.")
    return fields


def dense_layout(theirs: str, ours: tuple[str, ...], inputs: int, outputs: int):
    """`mdw_jax.models.weights.convert.assemble` entries of one dense layer."""
    yield f"{theirs}.weight", (*ours, "kernel"), (outputs, inputs)
    yield f"{theirs}.bias", (*ours, "bias"), (outputs,)


def norm_layout(theirs: str, ours: tuple[str, ...], width: int):
    """`mdw_jax.models.weights.convert.assemble` entries of one layer norm."""
    yield f"{theirs}.weight", (*ours, "scale"), (width,)
    yield f"{theirs}.bias", (*ours, "bias"), (width,)


def layers_layout(theirs: str, names: dict[str, str], count: int, hidden: int, intermediate: int):
    """`mdw_jax.models.weights.convert.assemble` entries of `layer_0` ... : `TransformerLayer`s that are called `theirs`.0 ... there.

    names: for each part of `TransformerLayer`, with dots for its path, its name there.
    """
    ends = {"intermediate": (hidden, intermediate), "output": (intermediate, hidden)}
    for i in range(count):
        for part, name in names.items():
            there, ours = f"{theirs}.{i}.{name}", (f"layer_{i}", *part.split("."))
            if part.endswith("norm"):
                yield from norm_layout(there, ours, hidden)
            else:
                yield from dense_layout(there, ours, *ends.get(part, (hidden, hidden)))
