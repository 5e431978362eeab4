"""`mdw plan`: what a run will cost on N devices, without running it: operations, time, memory, disk, price."""

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from mdw_jax.analysis.cost.counts import Counts, counts_of
from mdw_jax.analysis.cost.devices import DEVICES, Device, host_memory, this_machine
from mdw_jax.analysis.cost.model_cost import ModelCost, model_cost
from mdw_jax.analysis.cost.programs import Programs
from mdw_jax.analysis.cost.times import BUSY, seconds_of, waits_for_images
from mdw_jax.analysis.cost.unit import HOST_BASE, Work
from mdw_jax.analysis.cost.work import run_work
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.presets import preset_spec
from mdw_jax.errors import UserError
from mdw_jax.models.image.conv import as_on_accelerator
from mdw_jax.reporting.text import markdown_table, scaled, scaled_bytes, time_in_words

HERE = "here"
_WAITS = " (decoding)"
MOST_DEVICES = 64  # that are tried for the fewest that fit
_ADDED = ("flops", "search", "tower_forward", "tower_gradient", "moved", "host", "host_flops", "decoding", "programs",
          "tower_programs", "disk", "scratch")
# What makes a stage smaller.
_ADVICE = {
    "experts": "lower experts.batch, experts.count or data.size, or set model.mode=projection",
    "distillation": "lower distill.chunk, distill.pairs, distill.batch, distill.trajectories or data.size",
    "students": "lower evaluate.batch or data.size",
}


class PlannedWork(NamedTuple):
    """One row of a plan: a piece of work, its seconds on all the devices together, and whether most are decoding's."""

    work: Work
    seconds: float
    waits_for_images: bool = False


class Plan(NamedTuple):
    """What a run will cost.

    Attributes:
        rows: the work, stage by stage.
        counts: sizes of the data.
        counted: a sentence that says where they are from.
        device: what is planned for.
        name: its name.
        devices: how many.
        price: of one of them for an hour; 0: none is given.
        model: costs of the model.
        sizes: {part of the model: trained parameters}.
        misfits: what does not fit, in sentences.
    """

    rows: list[PlannedWork]
    counts: Counts
    counted: str
    device: Device
    name: str
    devices: int
    price: float
    model: ModelCost
    sizes: dict[str, int]
    misfits: list[str]

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(row.seconds for row in self.rows)

    @property
    def total_price(self) -> float:
        """Of all devices for the whole run."""
        return self.price * self.devices * self.seconds / 3600


def plan_command(config: ConfigDict) -> None:
    """Print the plan of a run: one table, and what it rests on.

    Args:
        config: the run's config, not resolved.

    Raises:
        UserError: as `plan`.
    """
    if config.plan.compile:
        print("mdw: compiling, which takes minutes for large towers; --config.plan.compile=false estimates the memory by a "
              "formula.", file=sys.stderr)
    found = plan(config)
    print("\n".join(head_lines(config, found)) + "\n")
    print(markdown_table(table_rows(found)))
    print("\n".join(note_lines(config, found)), flush=True)


def plan(config: ConfigDict) -> Plan:
    """The plan of a run.

    Args:
        config: the run's config, not resolved. `config.plan` may state the sizes of data that are not here.

    Returns:
        The plan; experts, closed forms and filters that presets share are in it once.

    Raises:
        UserError: the device is unknown, the config is not valid, or the data cannot be read.
    """
    settings = config.plan
    if settings.device not in DEVICES:
        raise UserError(f"plan.device must be one of {', '.join(DEVICES)}, not '{settings.device}'.")
    first = preset_config(config, config.run.presets[0])
    counts, counted = counts_of(first)
    model, tower = model_cost(first, counts.text_dim)
    known = DEVICES[settings.device]
    device = known or this_machine(tower, model.tower)
    devices = settings.devices
    if settings.device == HERE and devices > 1:
        raise UserError("plan.devices counts devices of plan.device, and 'here' is this machine as it is; set plan.device "
                        f"to one of {', '.join(name for name in DEVICES if name != HERE)}.")
    work = run_work(config, counts)
    if settings.compile:
        work = with_compiled_memory(config, work, counts)
    on = (device, model, devices, settings.utilization)
    rows = [PlannedWork(piece, seconds_of(piece, *on), waits_for_images(piece, *on)) for piece in merged(work)]
    return Plan(rows, counts, counted, device, settings.device, devices, settings.price, model, tower.sizes,
                misfits(config, work, device, counts))


def merged(work: Iterable[Work]) -> list[Work]:
    """The work with pieces of one stage that read the same as one: "4 x 5 students"."""
    groups: dict[tuple[str, str], list[Work]] = {}
    for piece in work:
        groups.setdefault((piece.stage, piece.what), []).append(piece)
    return [_sum(pieces) for pieces in groups.values()]


def _sum(pieces: Sequence[Work]) -> Work:
    first, presets = pieces[0], tuple(dict.fromkeys(name for piece in pieces for name in piece.presets))
    if len(pieces) == 1:
        return first
    added = {name: sum(getattr(piece, name) for piece in pieces)
             for name in _ADDED}
    largest = {name: max(getattr(piece, name) for piece in pieces) for name in ("device_memory", "host_memory")}
    return first._replace(what=f"{len(pieces)} x {first.what}", presets=presets, **added, **largest)


def with_compiled_memory(config: ConfigDict, work: Sequence[Work], counts: Counts) -> list[Work]:
    """The work with the memory of the compiled experts' step and outer step in place of the formulas'.

    Of the experts one network's step is compiled, and counted as often as the formula counts networks; nothing is run.

    Args:
        config: the run's config, not resolved.
        work: all work of the run.
        counts: sizes of the data.
    """
    compiled: dict[tuple[str, str], float] = {}
    for name in config.run.presets:
        if not preset_spec(name).needs_experts:
            continue
        c = ConfigDict(preset_config(config, name).to_dict())
        c.plan.images, c.plan.captions, c.plan.text_dim = counts.images, counts.captions, counts.text_dim
        with as_on_accelerator(c.plan.device not in (HERE, "cpu")):
            programs = Programs(c.lock())
            compiled["experts", name] = peak_memory(programs.expert_step, programs.expert_arguments())
            if preset_spec(name).kind == "distilled" and c.distill.steps:
                compiled["distillation", name] = peak_memory(
                    programs.outer_step, programs.outer_arguments(), donated=1)
    return [piece._replace(device_memory=max((compiled.get((piece.stage, name), 0) for name in piece.presets), default=0)
                           or piece.device_memory) if piece.device_memory else piece for piece in work]


def peak_memory(function, arguments: tuple, donated: int | tuple = ()) -> float:
    """Bytes of the compiled `function(*arguments)` on its device, whose arguments are `jax.ShapeDtypeStruct`s.

    Args:
        function: any function of arrays.
        arguments: their shapes.
        donated: positions of arguments whose memory the results take over.
    """
    sizes = jax.jit(function, donate_argnums=donated).lower(*arguments).compile().memory_analysis()
    return (sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
            - sizes.alias_size_in_bytes)


def misfits(config: ConfigDict, work: Sequence[Work], device: Device, counts: Counts) -> list[str]:
    """What does not fit, in sentences: into the device's memory, and, of this machine, into its memory and its disk."""
    settings, found = config.plan, []
    largest = max(work, key=lambda piece: piece.device_memory)
    here, on_cpu = settings.device == HERE, jax.default_backend() == "cpu"
    host = max(piece.process_memory for piece in work)
    needed = largest.device_memory + (host if here and on_cpu else 0)
    if needed > device.memory:
        found.append(f"{largest.stage}: about {scaled_bytes(needed)} of memory are needed, more than the "
                     f"{scaled_bytes(device.memory)} {'free here' if here else f'of one {settings.device}'}; "
                     f"{_ADVICE.get(largest.stage, 'lower data.size')}{'' if here else _fewest(config, device, counts)}.")
    if here and not on_cpu and host > host_memory():
        found.append(f"the data need about {scaled_bytes(host)} of the host's memory, more than the "
                     f"{scaled_bytes(host_memory())} free here; set data.stream=true.")
    if here and (disk := sum(piece.disk for piece in work)) > (free := free_disk(config.run.dir)):
        found.append(f"the run writes about {scaled_bytes(disk)}, more than the {scaled_bytes(free)} free where run.dir "
                     f"('{config.run.dir}') is; choose another, or set experts.store_dtype=bfloat16.")
    return found


def _fewest(config: ConfigDict, device: Device, counts: Counts) -> str:
    """How many devices are enough, by the formulas, in words that go on after what else helps."""
    several = config.copy_and_resolve_references().unlock()
    for devices in range(config.plan.devices + 1, MOST_DEVICES + 1):
        several.plan.devices = devices
        if all(piece.device_memory <= device.memory for piece in run_work(several, counts)):
            return f"; the fewest that fit are {devices} devices (plan.devices={devices})"
    return f"; more devices alone do not help (up to {MOST_DEVICES} were tried)"


def free_disk(directory: str) -> int:
    """Bytes free where a directory is, or will be."""
    place = Path(directory).absolute()
    return shutil.disk_usage(next(parent for parent in (place, *place.parents) if parent.exists())).free


def head_lines(config: ConfigDict, found: Plan) -> list[str]:
    """What is planned: data, model, devices."""
    m, name = config.model, found.name
    sides = scaled(found.model.pixels, 1000, " KMG")
    parts = ", ".join(f"{part} {size:,}" for part, size in found.sizes.items())
    frozen = f", frozen backbone {found.model.backbone:,}" if found.model.projection else ""
    busy = f"; other work on it makes all {found.device.busy:.1f} times as long" if found.device.busy > BUSY else ""
    devices = f"this machine, measured just now{busy}" if name == HERE else (
        f"{found.devices} x {name}, as plan.devices and plan.device of this config say (nothing here was looked at; "
        f"plan.device=here plans for this machine), at {config.plan.utilization:.0%} of the peak that its maker states")
    return [f"data:   {found.counted}",
            f"model:  {m.tower}, {m.mode} mode, {sides} numbers an image, M = {config.distill.pairs}; parameters: "
            f"{parts}{frozen}",
            f"device: {devices}"]


def table_rows(found: Plan) -> list[dict[str, str]]:
    """The table: a row for each piece of work, and their sums (of memory the largest)."""
    rows = [_row(row.work.stage, row.work.what, ", ".join(row.work.presets), row.work, row.seconds, row.waits_for_images)
            for row in found.rows]
    # The largest with the programs that its stage compiles: a total has none of its own.
    total = _sum([Work("total", ""), *(row.work for row in found.rows)])._replace(
        host_memory=max(row.work.process_memory for row in found.rows) - HOST_BASE)
    return [*rows, _row("total", "", "", total, found.seconds)]


def _row(stage: str, what: str, presets: str, work: Work, seconds: float, waits: bool = False) -> dict[str, str]:
    return {"stage": stage, "what": what, "presets": presets,
            "operations": f"{scaled(work.operations, 1000, ' KMGTPEZ')}FLOP",
            "time": time_in_words(seconds) + _WAITS * waits,
            "device memory": f"about {scaled_bytes(work.device_memory)}" if work.device_memory else "",
            "host memory": f"about {scaled_bytes(work.process_memory)}" if work.host_memory else "",
            "disk": scaled_bytes(work.disk) if work.disk else ""}


def _disk_line(found: Plan) -> list[str]:
    """What takes the bytes on disk, the most first."""
    work = [row.work for row in found.rows]
    parts = {"embeddings of teachers, removed when their networks are trained": sum(piece.scratch for piece in work),
             "snapshots and records of experts": sum(piece.disk - piece.scratch for piece in work
                                                     if piece.stage == "experts"),
             "features": sum(piece.disk for piece in work if piece.stage == "features")}
    total = sum(piece.disk for piece in work)
    parts["all else"] = total - sum(parts.values())
    listed = ", ".join(f"{scaled_bytes(size)} {what}" for what, size in sorted(parts.items(), key=lambda part: -part[1])
                       if size >= 0.01 * total)
    return [f"Disk: {listed}."] if total else []


def note_lines(config: ConfigDict, found: Plan) -> list[str]:
    """Whether it fits, its price, and what the numbers rest on."""
    lines = [f"Does not fit: {misfit}" for misfit in found.misfits] or ["Fits: " + (
        "the memory and the disk of this machine." if found.name == HERE else
        f"the memory of one {found.name}. The machine needs the host memory and the disk of the last row.")]
    if any(row.waits_for_images for row in found.rows):
        cores = f"the {found.device.cores:g} cores of this machine" if found.name == HERE else (
            f"{found.device.cores:g} cores of the host for each device")
        lines.append(f"Decoding: where the time says so, it is that of decoding images by {cores}; more cores shorten it, "
                     "faster devices do not.")
    lines += _disk_line(found)
    if found.price:
        hours = found.devices * found.seconds / 3600
        lines.append(f"Price: {found.total_price:,.2f} ({hours:,.2f} device hours at {found.price:g}).")
    lines.append("Students train until val is flat: how long that takes is a median of earlier runs, and most of the "
                 "uncertainty." + (" Compiling is included, as in a first run." if found.name == HERE else
                                   " No accelerator has been measured: see docs/launch.md."))
    return lines
