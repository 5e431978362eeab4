"""Seconds of work on a device, and how long a run takes here."""

from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from mdw_jax.analysis.cost.counts import Counts
from mdw_jax.analysis.cost.devices import Device, this_machine
from mdw_jax.analysis.cost.model_cost import ModelCost, model_cost
from mdw_jax.analysis.cost.unit import STAGES, Work
from mdw_jax.analysis.cost.work import Left, run_work
from mdw_jax.config.overrides import preset_config

# Of the measured rate of matrix products (of a batch, which are small), what heads reach beside all else, a search by the
# large ones of its blocks, and a tower's forward pass where it is not measured itself; and of a tower's forward pass, what
# passes with gradients do. Measured for this work, on a CPU.
_HEADS_SHARE, _SEARCH_SHARE, _TOWER_SHARE, _GRADIENT_SHARE = 0.85, 1.8, 0.45, 0.9
_MOST_LAYERS = 12  # of a tower that compiles in a second, and is measured before a run
BUSY = 1.3  # more seconds than so pass in one of the processor's: it is said that others use the machine
_HOST_FLOPS = 4e10  # double precision on one core of the reference machine
# Seconds of the reference core to trace and compile a program of heads, and for each layer of a tower in it.
_COMPILE_PROGRAM, _COMPILE_LAYER = 1.2, 0.04


def seconds_of(work: Work, device: Device, model: ModelCost, devices: int = 1, utilization: float = 1.0) -> float:
    """How long a piece of work takes.

    Args:
        work: the work.
        device: what it is done on.
        model: costs of the model.
        devices: how many devices share it; the host's part is not shared.
        utilization: share of the peak FLOP/s to count on, of a device that is not measured.
    """
    on_device, on_host, decoding = _parts(work, device, model, devices, utilization)
    if _share_cores(device):
        return (on_device + decoding + on_host) * device.busy
    return (max(on_device, decoding) + on_host) * device.busy


def waits_for_images(work: Work, device: Device, model: ModelCost, devices: int = 1, utilization: float = 1.0) -> bool:
    """Whether decoding images takes most of the time of a piece of work. Args: as in `seconds_of`."""
    on_device, on_host, decoding = _parts(work, device, model, devices, utilization)
    return decoding > (on_device + on_host if _share_cores(device) else max(on_device, on_host))


def _share_cores(device: Device) -> bool:
    """Whether images are decoded by the cores that are the device."""
    return device.measured and jax.default_backend() == "cpu"


def _parts(work: Work, device: Device, model: ModelCost, devices: int, utilization: float) -> tuple[float, float, float]:
    """Seconds of the devices, of the host, and of decoding images."""
    if device.measured:
        heads, tower = device.matmul * _HEADS_SHARE, device.tower or device.matmul * _TOWER_SHARE
        search = device.matmul * _SEARCH_SHARE
        gradient = tower * _GRADIENT_SHARE
    else:
        heads = search = tower = gradient = device.matmul * utilization
    on_device = (work.flops / heads + work.search / search + work.tower_forward / tower + work.tower_gradient / gradient
                 + work.moved / device.bandwidth)
    compiling = _COMPILE_PROGRAM * work.programs + _COMPILE_LAYER * model.layers * work.tower_programs
    on_host = (work.host + work.host_flops / _HOST_FLOPS + compiling) / device.host
    decoding = work.decoding / (device.cores * devices * device.host)
    return on_device if _share_cores(device) else on_device / devices, on_host, decoding


def seconds_here(config: ConfigDict, counts: Counts) -> dict[str, float]:
    """How long `mdw run` takes on this machine from the start, stage by stage: {stage: seconds}.

    Operations are counted, and this machine is measured for about a second; nothing of the run is done, and what a run
    directory already holds is not looked at. Programs are assumed to be compiled for the first time.

    Args:
        config: the run's config, not resolved.
        counts: sizes of the data: `counts_of_pairs` where they are read, `counts_of` where not.

    Raises:
        UserError: the config is not valid.
    """
    return _seconds_on(measured(config, counts), config, counts)


def measured(config: ConfigDict, counts: Counts) -> Device:
    """This machine, and, where it compiles soon, the tower of a config on it. Args and Raises: as in `seconds_here`."""
    model, tower = model_cost(preset_config(config, config.run.presets[0]), counts.text_dim)
    return this_machine(tower if model.layers <= _MOST_LAYERS else None, model.tower)


def _seconds_on(device: Device, config: ConfigDict, counts: Counts, left: Left | None = None) -> dict[str, float]:
    model, _ = model_cost(preset_config(config, config.run.presets[0]), counts.text_dim)
    work = run_work(config, counts, left) if left else run_work(config, counts)
    return seconds_by_stage(work, device, model, devices=len(jax.devices()))


def seconds_by_stage(work: Sequence[Work], device: Device, model: ModelCost, devices: int = 1, utilization: float = 1.0
                     ) -> dict[str, float]:
    """{stage: seconds} of all stages that there is work for. Args: as in `seconds_of`."""
    found = {stage: sum(seconds_of(piece, device, model, devices, utilization) for piece in work if piece.stage == stage)
             for stage in STAGES}
    return {stage: seconds for stage, seconds in found.items() if seconds}


def estimate_in_words(config: ConfigDict, counts: Counts, left: Left | None = None) -> str:
    """The same in words: "about 6 minutes: features 1, experts 1, prototypes 2, distillation 2, students 1".

    Args: as in `seconds_here`, and of a run that goes on what is `left`, as in `run_work`; None: all of it.

    Raises:
        UserError: as `seconds_here`.
    """
    device = measured(config, counts)
    words = in_words(_seconds_on(device, config, counts, left))
    if device.busy <= BUSY:
        return words
    return f"{words} (other work on this machine makes it {device.busy:.1f} times as long)"


def in_words(seconds: dict[str, float]) -> str:
    """{stage: seconds} in the largest unit of which there are two, with the stages that take a twentieth of it all."""
    total = sum(seconds.values())
    unit, size = next((name, size) for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
                      if total >= 2 * size or size == 1)
    shown = {stage: value / size for stage, value in seconds.items() if value >= 0.05 * total}
    digits = 0 if unit == "seconds" or total >= 10 * size else 1
    parts = ", ".join(f"{stage} {value:.{digits}f}" for stage, value in shown.items())
    return f"about {total / size:.{0 if total >= 3 * size else 1}f} {unit}: {parts}"
