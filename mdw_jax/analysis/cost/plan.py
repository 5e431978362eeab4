"""`mdw plan`: what a run would cost, without running it: sizes, operations, memory, time. No data are opened."""

import math
import sys
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from mdw_jax.analysis.cost.flops import count_flops
from mdw_jax.analysis.cost.programs import Programs
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.presets import preset_spec
from mdw_jax.data.registry import image_shape
from mdw_jax.errors import UserError
from mdw_jax.models.image.conv import as_on_accelerator
from mdw_jax.pipeline.preset_run import last_snapshot
from mdw_jax.reporting.text import markdown_table


class Device(NamedTuple):
    """One device, by the data sheets of its maker.

    Attributes:
        peak: FLOP/s of dense matrix products in JAX's default precision for float32 there (TF32; bfloat16 passes on a
            TPU).
        memory: bytes.
    """

    peak: float
    memory: float


DEVICES = {
    "a100": Device(156e12, 80e9), "h100": Device(494e12, 80e9), "h200": Device(494e12, 141e9),
    "tpu_v4": Device(275e12, 32e9), "tpu_v5e": Device(197e12, 16e9), "tpu_v5p": Device(459e12, 95e9),
    "tpu_v6e": Device(918e12, 32e9),
    "cpu": Device(0.1e12, 24e9),  # two cores of a server, measured for this work
}
_BYTES = {"float32": 4, "bfloat16": 2}


class Cost(NamedTuple):
    """The cost of one call of a program.

    Attributes:
        flops: of `count_flops`.
        memory: peak bytes of the compiled program, None if it was not compiled.
    """

    flops: int
    memory: int | None

    def __str__(self):
        memory = f", {_bytes(self.memory)} of memory at most" if self.memory else ""
        return f"{_scaled(self.flops, 1000, ' KMGTPEZ')}FLOP{memory}"


def cost_of(function, arguments: tuple, compiled: bool) -> Cost:
    """The cost of `function(*arguments)`, whose arguments are `jax.ShapeDtypeStruct`s.

    Args:
        function: any function of arrays.
        arguments: its arguments.
        compiled: whether to compile it for its peak memory, which takes minutes for large towers.
    """
    flops = count_flops(function, *arguments)
    if not compiled:
        return Cost(flops, None)
    sizes = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return Cost(flops, sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
                - sizes.alias_size_in_bytes)


def plan_command(config: ConfigDict) -> None:
    """Print the plan of every preset of the run that trains experts.

    Args:
        config: the run's config, not resolved.

    Raises:
        UserError: as `plan`.
    """
    for name in config.run.presets:
        if not preset_spec(name).needs_experts:
            continue
        c = preset_config(config, name)
        sides = "x".join(map(str, image_shape(c.data)[:2]))
        print(f"{name}: {c.model.tower}, {c.model.mode} mode, {sides} px, M = {c.distill.pairs}, "
              f"{c.plan.images:,} images with {c.plan.captions:,} captions\n", flush=True)
        if c.plan.compile:
            print("mdw: compiling, which takes minutes for large towers; --config.plan.compile=false skips it, and "
                  "with it the peak memory.", file=sys.stderr)
        rows = [{"quantity": quantity, "value": value} for quantity, value in plan(c, name).items()]
        print(markdown_table(rows), flush=True)


def plan(config: ConfigDict, preset: str = "mdw") -> dict[str, str]:
    """The plan of one preset.

    Args:
        config: the resolved config of the preset. `config.plan` states what is not opened: numbers of images and
            captions, width of the text features; and the device, and the share of its peak to count on.
        preset: its name, which says whether it distills.

    Returns:
        {quantity: value with its unit}, in order.

    Raises:
        UserError: the device is unknown, or the numbers are not set.
    """
    settings = config.plan
    if settings.device not in DEVICES:
        raise UserError(f"plan.device must be one of {', '.join(DEVICES)}, not '{settings.device}'.")
    if min(settings.images, settings.captions, settings.text_dim) < 1:
        raise UserError(f"plan.images ({settings.images}), plan.captions ({settings.captions}) and plan.text_dim "
                        f"({settings.text_dim}) must be set: mdw plan opens no data; see configs/flickr30k.py.")
    distills = preset_spec(preset).kind == "distilled"
    with as_on_accelerator(settings.device != "cpu"):
        programs = Programs(config)
        sizes = programs.sizes()
        expert = cost_of(programs.expert_step, programs.expert_arguments(), settings.compile)
        outer = cost_of(programs.outer_step, programs.outer_arguments(), settings.compile) if distills else None
        weights = count_flops(*programs.pixel_weights()) if distills and config.distill.ceo else 0
    quantities = {f"parameters, {part}": f"{size:,}" for part, size in sizes.items()}
    if config.model.mode == "projection":
        quantities["parameters, frozen backbone"] = f"{programs.backbone_size:,}"
    quantities |= _expert_quantities(config, sum(sizes.values()), expert)
    if outer:
        quantities |= _distillation_quantities(config, outer, weights)
    largest = max(cost.memory or 0 for cost in (expert, outer) if cost)
    memory = DEVICES[settings.device].memory
    if largest > memory:
        quantities["does not fit"] = f"{_bytes(largest)} exceed the {_bytes(memory)} of one {settings.device}"
    return quantities


def _expert_quantities(config: ConfigDict, parameters: int, step: Cost) -> dict[str, str]:
    e = config.experts
    networks = 2 * e.count
    steps = config.plan.captions // e.batch
    epochs = networks * e.epochs + (2 * e.teacher_count * e.teacher_epochs if e.teacher_count else 0)
    snapshots = last_snapshot(config) + 1
    pixels = config.plan.images * math.prod(image_shape(config.data))
    return {
        "training images in memory, uint8": _bytes(pixels) + (" (streamed)" if config.data.stream else ""),
        "trajectories on disk": f"{_bytes(networks * snapshots * parameters * _BYTES[e.store_dtype])} ({networks} "
                                f"networks x {snapshots} snapshots, {e.store_dtype})",
        f"expert step of {e.batch} pairs": str(step),
        f"experts, {epochs} network epochs of {steps:,} steps": _time(epochs * steps * step.flops, config.plan)}


def _distillation_quantities(config: ConfigDict, step: Cost, weights: int) -> dict[str, str]:
    """weights: FLOP of one computation of pixel weights."""
    d = config.distill
    flops = d.sets * d.steps * (step.flops + weights / d.ceo_every)
    return {
        f"outer step ({d.inner_steps} inner of {min(d.batch, d.pairs)}, {d.trajectories} trajectories, {d.gradient})":
            str(step),
        f"distilling {d.sets} set(s), {d.steps} outer steps": _time(flops, config.plan)}


def _bytes(number: float) -> str:
    return f"{_scaled(number, 1024, ' KMGTP')}{'B' if number < 1024 else 'iB'}"


def _scaled(number: float, step: int, prefixes: str) -> str:
    """Three digits and a prefix: 3.21e12 -> "3.21 T"."""
    power = min(int(math.log(max(number, 1), step)), len(prefixes) - 1)
    return f"{number / step ** power:.3g} {prefixes[power].strip()}"


def _time(flops: float, settings: ConfigDict) -> str:
    seconds = flops / (DEVICES[settings.device].peak * settings.utilization)
    unit, size = next((u, s) for u, s in (("days", 86400), ("h", 3600), ("min", 60), ("s", 0.0)) if seconds >= s)
    return (f"{_scaled(flops, 1000, ' KMGTPEZ')}FLOP, {seconds / (size or 1):.3g} {unit} on one {settings.device} at "
            f"{settings.utilization:.0%} of its peak")
