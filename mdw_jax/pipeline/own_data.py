"""`mdw run --data PATH`: a config for a user's own data, with what is there: towers, text encoders, a budget that fits."""

from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mdw_jax.config.defaults import base, frozen_backbone
from mdw_jax.config.options import LOG_MEL_READERS
from mdw_jax.config.stored import CONFIG, read_run_config
from mdw_jax.data.own import OwnData, own_data
from mdw_jax.errors import UserError
from mdw_jax.models.weights.hub import is_installed, is_reachable

PRESETS = ("random", "correspond", "mdw", "closed_form", "experts")
_HUB_TOWER = ("nfnet_l0", "timm/nfnet_l0.ra2_in1k")
_MINILM, _HUB_MINILM = "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"
_MOST_PAIRS, _IMAGES_PER_PAIR = 100, 6  # of the distilled set, unless the user says how many


def own_config(paths: Sequence[str], config: ConfigDict | None = None) -> ConfigDict:
    """A config for the data at `paths`.

    Args:
        paths: see `mdw_jax.data.detect.detect`.
        config: a config to take everything but the data from; None: one that fits the data and this machine.

    Returns:
        The config, not locked and not resolved.

    Raises:
        UserError: see `detect` and the readers.
    """
    given = config is not None
    c = config.copy_and_resolve_references().unlock() if given else _settings_for(jax.default_backend() != "cpu")
    data = own_data(paths, c.data.size)
    size, fit = c.data.size, c.data.fit
    c.data = base().data
    c.data.size, c.data.fit = size, fit
    c.data.update({"name": data.detection.name, **data.settings})
    c.noise = base().noise
    if not given:
        c.run.dir = str(Path("runs") / _run_name(paths))
        _fit(c, data)
    return c


def refuse_other_data(config: ConfigDict) -> None:
    """Raises UserError where the run folder of a config holds a run of other data."""
    folder = Path(config.run.dir)
    if not (folder / CONFIG).is_file():
        return
    stored = read_run_config(folder).data.to_dict()
    if differing := [key for key, value in config.data.to_dict().items() if stored[key] != value]:
        key = differing[0]
        raise UserError(f"'{folder}' holds a run of other data (data.{key} is {stored[key]!r} there and "
                        f"{config.data[key]!r} here); give another folder, as in --config.run.dir=runs/second.")


def _settings_for(accelerator: bool) -> ConfigDict:
    """The tower, the text encoder and the lengths that suit this machine."""
    c = frozen_backbone()
    c.run.presets = PRESETS
    c.data.size = 224
    c.model.tower, c.model.weights = "mobilenet", "mobilenet_v2"
    if accelerator and is_reachable(_HUB_TOWER[1]):
        c.model.tower, c.model.weights = _HUB_TOWER
    if is_installed(_MINILM) or is_reachable(_HUB_MINILM):
        c.text.encoder, c.text.path = "transformer", _MINILM if is_installed(_MINILM) else _HUB_MINILM
    c.experts.init = "auto"  # of few pairs, networks from random parameters learn less than it knows
    c.distill.ceo = False  # it brings nothing measurable (docs/results.md)
    c.distill.inner_steps, c.distill.steps = 64, 150
    c.evaluate.lr_scales = (1.0,)  # every search on Flickr8k chose it (docs/results.md)
    if not accelerator:  # pixels cost most: a fifth of the steps, at smaller images
        c.data.size = 160
        c.distill.prototype_steps, c.distill.steps = 60, 30
        c.distill.correspondence_tau = (0.1,)
        c.evaluate.students = 3
    return c


def _fit(c: ConfigDict, data: OwnData) -> None:
    """Batches and a number of pairs that the data allow, in place."""
    c.distill.pairs = max(2, min(_MOST_PAIRS, data.images // _IMAGES_PER_PAIR))
    c.distill.batch = c.distill.pairs
    c.experts.batch = max(2, min(c.experts.batch, data.captions // 4))
    c.experts.recovery_top_k = max(1, min(c.experts.recovery_top_k, data.captions // 4))
    if data.detection.name in LOG_MEL_READERS:
        c.data.size = base().data.size


def _run_name(paths: Sequence[str]) -> str:
    """The name of a run's folder: that of the data's first directory or file."""
    return Path(paths[0]).expanduser().resolve().name.split(".")[0] or "data"
