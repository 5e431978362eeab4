"""The data set of a config and its noise draw."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from mdw_jax.data.pairs import Pairs
from mdw_jax.data.registry import load, settings_of
from mdw_jax.data.structured_noise import degrade_captions

_load = functools.lru_cache(maxsize=1)(load)  # presets of one run share it


def load_pairs(data: ConfigDict, cache: Path) -> Pairs:
    """The data set of `config.data`. Of its keys a reader gets those it knows; "", () and 0 stand for its defaults.

    `data.captions` holds for every preset, those without noise included: see `structured.degrade_captions`.
    """
    said = {**data.to_dict(), "cache": data.cache or (str(cache / "shards") if data.name == "webdataset" else "")}
    pairs = _load(data.name, **{key: said[key] for key in settings_of(data.name) if said.get(key)})
    return degrade_captions(pairs, data.captions, data.captions_rate, data.seed) if data.captions else pairs


