"""`mdw bench --scale N,...`: a whole run on N made pairs, stage by stage, each in a process of its own."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mdw_jax.analysis.cost.counts import Counts, text_width
from mdw_jax.analysis.cost.model_cost import model_cost
from mdw_jax.analysis.cost.times import measured, seconds_by_stage
from mdw_jax.analysis.cost.work import run_work
from mdw_jax.analysis.scale.growth import at_size, exponent, marginal_exponent
from mdw_jax.analysis.scale.made_shards import SIDE, write_shards
from mdw_jax.analysis.scale.stage_process import run_stage
from mdw_jax.config.defaults import base
from mdw_jax.config.overrides import preset_config
from mdw_jax.errors import UserError
from mdw_jax.io.files import write_csv, write_json
from mdw_jax.pipeline.run_folder import environment, run_folder
from mdw_jax.reporting.text import markdown_table, scaled_bytes, time_in_words
from mdw_jax.runtime.progress import progress

# The stages that are run, and what each is made of in a plan (`analysis.cost.unit.STAGES`).
STAGES = {"prepare": ("features",), "experts": ("closed form", "experts"), "distill": ("prototypes", "distillation"),
          "evaluate": ("students", "report")}
COLUMNS = ("pairs", "stage", "seconds", "processor_seconds", "memory", "planned_seconds", "planned_memory", "disk",
           "device", "commit")
FURTHER = (2_900_000, 12_000_000)  # sizes of CC3M and CC12M
_KEPT = ("size", "fit", "stream", "holdout_val", "holdout_test")  # of the config's own data section
# Processor seconds of the reference core until a process of a later stage has imported all and begun; of each pair, to
# read its features again and check them against their sha256.
_START_AGAIN, _PAIR_AGAIN = 5.0, 3.0e-5
_LEAST = 4  # times as many pairs as are held out


class Planned(NamedTuple):
    """What a plan says of a stage: seconds of the processor, and bytes of memory."""

    seconds: float
    memory: float


def scale_command(config: ConfigDict, sizes: Sequence[int]) -> None:
    """Measure whole runs on made pairs; print tables and write `<run.dir>/scale.csv` after every stage.

    Shards are kept in `<run.dir>/shards`; the run of each size is made anew in `<run.dir>/<pairs>`.

    Args:
        config: the config whose model and method are used, not resolved.
        sizes: numbers of pairs.

    Raises:
        UserError: a size is too small, the disk is too small, or a stage fails.
    """
    directory, sizes = run_folder(config), sorted(set(sizes))
    held = config.data.holdout_val + config.data.holdout_test
    if sizes[0] < max(_LEAST * held, 1):
        raise UserError(f"--scale {sizes[0]} is too few: {held} of the pairs are held out; take {_LEAST * held} or more.")
    rows: list[dict] = []
    made_with = environment()
    about = {"device": made_with["devices"][0], "commit": made_with["commit"]}
    with progress("bench --scale", len(sizes) * len(STAGES), "stages") as advance:
        for pairs in sizes:
            shards = write_shards(directory / "shards", pairs, config.run.seed)
            folder = directory / str(pairs)
            shutil.rmtree(folder, ignore_errors=True)
            sized = config_on(config, shards, folder)
            file = write_json(directory / f"{pairs}.json", sized.to_dict())
            planned = plans(sized, pairs - held, held // 2)
            for stage in STAGES:
                took = run_stage(stage, file, directory / f"{pairs}-{stage}.log")
                rows.append({"pairs": pairs, "stage": stage, "seconds": round(took.seconds, 1),
                             "processor_seconds": round(took.processor, 1), "memory": int(took.memory),
                             "planned_seconds": round(planned[stage].seconds, 1),
                             "planned_memory": int(planned[stage].memory), "disk": bytes_in(folder), **about})
                write_csv(directory / "scale.csv", list(COLUMNS), rows)
                advance(pairs=pairs)
    print(markdown_table(measured_rows(rows)) + "\n")
    print(markdown_table(growth_rows(rows, FURTHER)) + "\n")
    print("Memory is the peak of the stage's process, with what it maps of files. In brackets: what mdw plan says of this "
          "machine. Powers are fitted to processor seconds and memory; \"further\" is that of what further pairs cost, "
          "without what starting and compiling do. Further sizes lie on the line through the two largest. Of the config's "
          f"data section {', '.join(_KEPT)} count; the pairs are made.\n"
          f"{directory / 'scale.csv'}")


def config_on(config: ConfigDict, shards: Sequence[Path], folder: Path) -> ConfigDict:
    """A config on made shards, in place of its own data.

    Args:
        config: any.
        shards: all of one run.
        folder: of the run.
    """
    sized = config.copy_and_resolve_references().unlock()
    own, sized.data = sized.data, base().data.unlock()
    for name in _KEPT:
        sized.data[name] = own[name]
    sized.data.name, sized.run.dir = "webdataset", str(folder)
    sized.data.train_shards = "::".join(str(path.resolve()) for path in shards)
    return sized


def plans(config: ConfigDict, pairs: int, held: int) -> dict[str, Planned]:
    """{stage: what is planned for it here}.

    Args:
        config: of the run.
        pairs: training pairs.
        held: pairs of val, and of test.
    """
    first = preset_config(config, config.run.presets[0])
    counts = Counts(pairs, pairs, held, held, held, held, text_width(first), SIDE**2)
    model, _ = model_cost(first, counts.text_dim)
    work = run_work(config, counts)
    device = measured(config, counts)._replace(busy=1.0)
    seconds = seconds_by_stage(work, device, model)
    again = {stage: 0.0 if "features" in parts else (_START_AGAIN + _PAIR_AGAIN * pairs) / device.host
             for stage, parts in STAGES.items()}
    features = max(piece.device_memory for piece in work if piece.stage == "features")  # which all stages begin with
    return {stage: Planned(again[stage] + sum(seconds.get(part, 0.0) for part in parts),
                           max((piece.process_memory + max(piece.device_memory, features) for piece in work
                                if piece.stage in parts), default=0.0)) for stage, parts in STAGES.items()}


def measured_rows(rows: Sequence[dict]) -> list[dict[str, str]]:
    """The table of what was measured."""
    return [{"pairs": f"{row['pairs']:,}", "stage": row["stage"], "time": time_in_words(row["seconds"]),
             "processor": f"{row['processor_seconds']:,.0f} s ({row['planned_seconds']:,.0f})",
             "memory": f"{scaled_bytes(row['memory'])} ({scaled_bytes(row['planned_memory'])})",
             "disk so far": scaled_bytes(row["disk"])} for row in rows]


def growth_rows(rows: Sequence[dict], further: Sequence[int]) -> list[dict[str, str]]:
    """The table of how each stage grows, and what it would take at further sizes."""
    table = []
    for stage in STAGES:
        own = [row for row in rows if row["stage"] == stage]
        sizes = [row["pairs"] for row in own]
        seconds, memory = ([row[name] for row in own] for name in ("processor_seconds", "memory"))
        cells = {"stage": stage, "power, time": _power(exponent(sizes, seconds)),
                 "further": _power(marginal_exponent(sizes, seconds)), "power, memory": _power(exponent(sizes, memory))}
        for size in further:
            cells[f"{size:,} pairs"] = (f"{time_in_words(at_size(sizes, seconds, size))}, "
                                        f"{scaled_bytes(at_size(sizes, memory, size))}")
        table.append(cells)
    return table


def _power(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(os.path.getsize(os.path.join(path, name)) for path, _, names in os.walk(folder) for name in names)
