"""What a Hugging Face `config.json` says of a Transformer: its sizes and its activation, checked."""

import functools
from collections.abc import Mapping

import jax

from mdw_jax.errors import UserError

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's, of CLIP
    "relu": jax.nn.relu,
}


def transformer_fields(config: Mapping, names: Mapping[str, str], model: str, width: str = "hidden") -> dict:
    """Fields of a module, read off a configuration.

    Args:
        config: the contents of `config.json`.
        names: {field: its name in the configuration}; `width`, "heads" and "act" are among the fields.
        model: what the configuration is of, for messages: "a BERT".
        width: the field that "heads" must divide.
    Returns:
        {field: its value}: a name of `ACTIVATIONS` for "act", a positive integer for all others.
    Raises:
        UserError: a missing or unusable size, or an unknown activation.
    """
    fields = {field: config.get(name) for field, name in names.items()}
    for field, value in fields.items():
        if field != "act" and (type(value) is not int or value < 1):
            raise UserError(f"config.json gives {names[field]} = {value!r}; {model} needs a positive integer there.")
    if fields["act"] not in ACTIVATIONS:
        raise UserError(f"config.json asks for the activation '{fields['act']}'; known are {', '.join(ACTIVATIONS)}.")
    if fields[width] % fields["heads"]:
        raise UserError(f"config.json gives {names[width]} {fields[width]}, which its {fields['heads']} attention heads "
                        "do not divide.")
    return fields
