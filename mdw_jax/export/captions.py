"""Text encoders as files: what turns captions into the features that a text head takes.

    bow          hashed words: a pure function of "dim" and "seed" (`mdw_jax.models.text.bow`)
    transformer  a published model by name, with the sha256 of its files; it is not copied
    precomputed  features from a file: no encoder is known, and sentences cannot be encoded
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.errors import UserError
from mdw_jax.models.text.bow import bow_features
from mdw_jax.models.text.encoder import transformer_features
from mdw_jax.models.weights.hub import directory_digest, model_directory

_WIDEST = 1 << 16


def text_layout(text: ConfigDict, width: int) -> dict:
    """The section "text" of a student's or an export's JSON.

    Args:
        text: a config's text section.
        width: of the features.

    Raises:
        UserError: the model of the encoder is not there any more.
    """
    layout: dict[str, Any] = {"kind": text.encoder, "width": width}
    if text.encoder == "bow":
        return {**layout, "seed": text.seed, "check": bow_check(width, text.seed)}
    if text.encoder == "transformer":
        return {**layout, "source": text.path, "sha256": directory_digest(model_directory(text.path)),
                "pooling": text.pooling, "max_tokens": text.max_tokens}
    return {**layout, "source": text.path}


def bow_check(width: int, seed: int) -> str:
    """sha256 of the feature of one sentence in two decimals, by which another implementation can tell that it agrees."""
    feature = bow_features(["A small red dog, on a beach!"], width, seed)[0]
    return hashlib.sha256(",".join(f"{value + 0.0:.2f}" for value in feature).encode()).hexdigest()


def caption_encoder(layout: Mapping[str, Any], source: str | None = None) -> Callable[[Sequence[str]], np.ndarray]:
    """The function from captions to features (K, width).

    Args:
        layout: what `text_layout` returned, read from a file of strangers: everything in it is checked.
        source: a model directory or Hub name to use instead of the one that the layout names. Where the layout knows the
            sha256 of its model, it must be that model; where it knows none (precomputed), it is taken on trust.

    Returns:
        The function. It raises UserError where no encoder is known.

    Raises:
        UserError: the layout is damaged.
    """
    try:
        kind, width = layout["kind"], layout["width"]
        if kind not in ("bow", "transformer", "precomputed") or not isinstance(width, int) or not 1 <= width <= _WIDEST:
            raise ValueError(f"{kind!r} of width {width!r}")
        if kind == "bow":
            return functools.partial(_bow, width=width, seed=int(layout["seed"]))
        if kind == "precomputed" and source is None:
            return functools.partial(_unknown, name=str(layout["source"]))
        settings = {name: layout.get(name, default) for name, default in (("pooling", "mean"), ("max_tokens", 64))}
        return functools.partial(_transformer, source=source or str(layout["source"]), width=width,
                                 sha256=layout.get("sha256"), **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the text encoder in the file is damaged ({error!r}); copy the files again.") from None


def encodes_sentences(layout: Mapping[str, Any]) -> bool:
    """Whether the layout says how a sentence becomes a feature."""
    return layout.get("kind") in ("bow", "transformer")


def _bow(captions, *, width: int, seed: int) -> np.ndarray:
    return bow_features(captions, width, seed)


def _unknown(captions, *, name: str) -> np.ndarray:
    raise UserError(f"sentences cannot be encoded: the text features came from the file '{name}', which does not say by "
                    "which encoder; give that encoder with --text (a model directory, or a name on the Hugging "
                    "Face Hub).")


def _transformer(captions, *, source: str, width: int, sha256: str | None, pooling: str, max_tokens: int) -> np.ndarray:
    directory = model_directory(source)
    if sha256 is not None and directory_digest(directory) != sha256:
        raise UserError(f"the text encoder '{source}' is not the one that the student was trained with (sha256 differs); "
                        "give the same model and revision with --text.")
    features = transformer_features(captions, directory, pooling=pooling, max_tokens=max_tokens)
    if features.shape[1] != width:
        raise UserError(f"the text encoder '{source}' gives {features.shape[1]} numbers for a caption, and the student "
                        f"takes {width}; give the encoder that it was trained with.")
    return features
