"""The data set of a config."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from mdw_jax.config.options import LOG_MEL_READERS
from mdw_jax.config.validation import refuse_unused
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.problems import in_words
from mdw_jax.data.registry import load, settings_of
from mdw_jax.data.structured_noise import degrade_captions

_load = functools.lru_cache(maxsize=1)(load)  # presets of one run share the data


def load_pairs(data: ConfigDict, cache: Path, check: bool = True) -> Pairs:
    """Read the data set of `config.data`.

    `data.captions` degrades the captions for every preset, those without noise included.

    Args:
        data: the data section of a config. The reader gets the settings it takes; those that are "", () or 0 are left
            at the reader's own defaults.
        cache: directory for what readers keep on the way.
        check: with `data.stream`, whether every image is decoded once to find broken ones (`records.build`).

    Raises:
        UserError: there is no such reader, it lacks a setting or does not take one that is set, or the data cannot be
            read.
    """
    settings = data.to_dict()
    if data.name == "webdataset" and not data.cache:
        settings["cache"] = str(cache / "shards")
    taken = settings_of(data.name)
    used = {*taken, "name", "captions", "captions_rate", *(["seed"] if data.captions else [])}
    refuse_unused("data", data, "name", "reader", used - {"size", "fit"} if data.name in LOG_MEL_READERS else used)
    unchecked = {"check": False} if not check and "check" in taken else {}
    pairs = _load(data.name, **{key: settings[key] for key in taken if settings.get(key)}, **unchecked)
    return degrade_captions(pairs, data.captions, data.captions_rate, data.seed) if data.captions else pairs


def source_notes(pairs: Pairs) -> list[str]:
    """What a user must know of how a data set was read, in sentences: what was left out, and what the reader says."""
    left_out = [f"left out: {in_words(pairs.skipped)}."] if pairs.skipped else []
    return [*left_out, *pairs.notes]
