"""Layers that the text Transformers share, and where their parameters are in weight files."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdw_jax.models.weights.hugging_face import ACTIVATIONS

# At default precision GPUs and TPUs round the factors, and features would depend on the machine that computed them.
dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
norm = functools.partial(nn.LayerNorm, use_fast_variance=False)
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Attention(nn.Module):
    """Multi-head self-attention: (B, L, hidden), visible (B, 1 or L, L) -> (B, L, hidden).

    visible[b, q, k]: position q attends to position k.
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


def dense_layout(name: str, path: tuple[str, ...], inputs: int, outputs: int):
    """Entries for `mdw_jax.models.weights.convert.assemble` of one dense layer: `name` in the file, `path` here."""
    yield f"{name}.weight", (*path, "kernel"), (outputs, inputs)
    yield f"{name}.bias", (*path, "bias"), (outputs,)


def norm_layout(name: str, path: tuple[str, ...], width: int):
    """Entries for `mdw_jax.models.weights.convert.assemble` of one layer norm: `name` in the file, `path` here."""
    yield f"{name}.weight", (*path, "scale"), (width,)
    yield f"{name}.bias", (*path, "bias"), (width,)


def layers_layout(stack: str, names: dict[str, str], count: int, hidden: int, intermediate: int):
    """Entries for `mdw_jax.models.weights.convert.assemble` of the `TransformerLayer`s `layer_0`, `layer_1`, ...

    Args:
        stack: what the file calls the stack of layers; layer i is `stack.i` there.
        names: {part of `TransformerLayer`, with dots for its path: its name in the file}.
        count: how many layers.
        hidden, intermediate: their widths.
    """
    shapes = {"intermediate": (hidden, intermediate), "output": (intermediate, hidden)}
    for i in range(count):
        for part, name in names.items():
            in_file, path = f"{stack}.{i}.{name}", (f"layer_{i}", *part.split("."))
            if part.endswith("norm"):
                yield from norm_layout(in_file, path, hidden)
            else:
                yield from dense_layout(in_file, path, *shapes.get(part, (hidden, hidden)))
