"""All data readers, by the name that `data.name` gives them."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mdw_jax.config.options import LOG_MEL_READERS
from mdw_jax.config.plugins import is_path, lookup, made_by
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.readers.audio import audio, esc50
from mdw_jax.data.readers.folder import folder
from mdw_jax.data.readers.hf import hf
from mdw_jax.data.readers.karpathy import karpathy
from mdw_jax.data.readers.tfds import tfds
from mdw_jax.data.readers.webdataset import webdataset
from mdw_jax.data.records import build
from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.data.synthetic.tones import tones
from mdw_jax.errors import UserError

READERS: Mapping[str, Callable[..., Pairs]] = MappingProxyType(
    {"scenes": scenes, "karpathy": karpathy, "folder": folder, "hf": hf, "tfds": tfds, "webdataset": webdataset,
     "tones": tones, "audio": audio, "esc50": esc50})

_NOT_SETTINGS = ("problems", "notes", "decoder")  # arguments of `records.build` that readers pass and configs do not set


def load(name: str, **settings) -> Pairs:
    """Read a data set.

    Args:
        name: a name in `READERS`, or `module:function`.
        settings: those of the reader: see `settings_of`.
    Raises:
        UserError: no such reader, a setting that it does not have, one that it needs, or what the reader raises.
    """
    allowed = settings_of(name)
    if unknown := sorted(set(settings) - set(allowed)):
        raise UserError(f"the data reader '{name}' has no setting '{unknown[0]}'; it has {', '.join(allowed)}.")
    required = [key for key, default in allowed.items() if default is inspect.Parameter.empty]
    if missing := [key for key in required if settings.get(key) in (None, "")]:
        raise UserError(f"the data reader '{name}' needs the setting '{missing[0]}'; give it.")
    return made_by(name, "data.name", Pairs, **settings) if is_path(name) else READERS[name](**settings)


def reader(name: str) -> Callable[..., Pairs]:
    """The reader of that name, or what `module:function` names.

    Raises:
        UserError: there is none.
    """
    return lookup(READERS, name, "data.name", "data reader")


def image_shape(data: Mapping) -> tuple[int, int, int]:
    """(H, W, C) of the images that a config's data section leads to, without reading any.

    A reader from outside the package (`module:function`) is assumed to give RGB images of `data.size`.
    """
    if data["name"] in LOG_MEL_READERS:
        defaults = settings_of(data["name"])
        return data["mels"] or defaults["mels"], data["frames"] or defaults["frames"], 1
    return data["size"], data["size"], 3


def settings_of(name: str) -> dict[str, Any]:
    """{setting: default} of a reader, including those of `records.build` that it passes on.

    `inspect.Parameter.empty` stands for a setting without a default.

    Raises:
        UserError: no such reader, or one whose signature cannot be read.
    """
    try:
        parameters = inspect.signature(reader(name)).parameters.values()
    except ValueError:  # some functions written in C have no signature
        raise UserError(f"data.name names '{name}', whose settings cannot be read; name a Python function."
                        ) from None
    settings = {p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        shared = inspect.signature(build).parameters.values()
        settings |= {p.name: p.default for p in shared if p.kind is p.KEYWORD_ONLY and p.name not in _NOT_SETTINGS}
    return settings
