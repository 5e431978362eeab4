"""Metrics on their way out: `metrics.csv` always; TensorBoard and Weights & Biases where `watch.writers` names them.

`<run.dir>/metrics.csv` is in long form, one number a row: stage, name, step, metric, value. name: the folder the number
is of, below run.dir. stage and step: experts/0A, scouts/0A (expert and network) and the epoch, from 1; distill and the
outer step, from 0; scores (experts) or scores-<protocol>-<key> (sets) and the network or student, from 0.

Rows are appended as they come, and none comes twice: what a run that was killed does again is known by all but its
value. TensorBoard (`<run.dir>/tensorboard/<name>`) and W&B (one of its runs for each name, grouped by run.dir) get what
is new in the CSV or, where they were not asked before, all that the stage still knows. W&B's ids hang on a random one
in `<run.dir>/.wandb-id`.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mdw_jax.errors import UserError
from mdw_jax.io.files import digest, locked, write_atomically
from mdw_jax.runtime.processes import is_main

FILE, COLUMNS = "metrics.csv", ("stage", "name", "step", "metric", "value")


class Writer(NamedTuple):
    """write: (stage, step, {metric: number on the host}). close: once, whatever happened; `contextlib.closing` does."""

    write: Callable[[str, int, dict[str, float]], None]
    close: Callable[[], None]


class _Extra(NamedTuple):
    """A writer beside the CSV. begun: whether it has had rows of this name before."""

    begun: bool
    write: Callable[[str, int, dict[str, float]], None]
    close: Callable[[], None]


def writers(config: ConfigDict, folder: Path) -> Writer:
    """Everything that the metrics of `folder`, which lies below run.dir, are written to.

    Of the processes of a run the first one writes. Raises UserError for a writer whose package is missing, or that
    cannot be reached.
    """
    if not is_main():
        return Writer(lambda *_: None, lambda: None)
    run = Path(config.run.dir)
    name = Path(folder).relative_to(run).as_posix()
    extras = []
    with contextlib.ExitStack() as opened:
        for asked in dict.fromkeys(config.watch.writers):
            extras.append(EXTRAS[asked](config, run, name))
            opened.callback(extras[-1].close)
        known, replaced = _rows_of(run / FILE, name), {}
        opened.callback(lambda: _replace(run / FILE, replaced))
        leave = opened.pop_all()

    def write(stage: str, step: int, metrics: dict[str, float]) -> None:
        rows = {(stage, name, str(step), metric): repr(float(value)) for metric, value in metrics.items()}
        new = {row: value for row, value in rows.items() if known.get(row) != value}
        replaced.update((row, value) for row, value in new.items() if row in known)
        _append(run / FILE, {row: value for row, value in new.items() if row not in known})
        known.update(new)
        for extra in extras:
            told = {row[-1]: float(value) for row, value in (new if extra.begun else rows).items()}
            if told:
                extra.write(stage, step, told)

    return Writer(write, leave.close)


@contextlib.contextmanager
def _opened(path: Path):
    """The CSV at its end, with a header, locked; half a line that a killed process left is taken off."""
    with locked(path.with_name(f".{path.name}.lock")), open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        if not file.seek(0, os.SEEK_END):
            file.write(_line(COLUMNS))
        yield file


def _line(cells) -> bytes:
    return (",".join(cells) + "\n").encode()


def _rows_of(path: Path, name: str) -> dict[tuple, str]:
    """{(stage, name, step, metric): value} of one name."""
    with _opened(path) as file:
        file.seek(0)
        rows = (line.decode().rstrip("\n").split(",") for line in file)
        return {tuple(row[:-1]): row[-1] for row in rows if len(row) == len(COLUMNS) and row[1] == name}


def _append(path: Path, rows: dict[tuple, str]) -> None:
    if rows:
        with _opened(path) as file:
            file.write(b"".join(_line((*row, value)) for row, value in rows.items()))


def _replace(path: Path, rows: dict[tuple, str]) -> None:
    """Give rows other values: on accelerators what is done again need not be the same to the last bit."""
    if not rows:
        return
    with _opened(path) as file:
        file.seek(0)
        old = [tuple(line.decode().rstrip("\n").split(",")) for line in file]
        write_atomically(path, b"".join(_line((*row[:-1], rows.get(row[:-1], row[-1]))) for row in old))


def _tensorboard(config: ConfigDict, run: Path, name: str) -> _Extra:
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
    except ImportError:
        raise UserError("watch.writers=tensorboard needs tensorboardX: pip install 'mdw-jax[tensorboard]', or leave it "
                        "out.") from None
    folder = run / "tensorboard" / name
    begun = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    # The plain file, not SummaryWriter, whose thread writes some time later: a kill must not cost what the CSV says is
    # written. The suffix: or two files of one second would be one.
    events = EventsWriter(str(folder / "events"), f".{time.time_ns()}")

    def write(stage: str, step: int, metrics: dict[str, float]) -> None:
        values = [Summary.Value(tag=f"{stage}/{metric}", simple_value=value) for metric, value in metrics.items()]
        events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        events.flush()

    return _Extra(begun, write, events.close)


def _wandb(config: ConfigDict, run: Path, name: str) -> _Extra:
    try:
        import wandb
    except ImportError:
        raise UserError("watch.writers=wandb needs wandb: pip install 'mdw-jax[wandb]', or leave it out.") from None
    key = digest(_identity(run), name)[:16]  # the same after a restart; name holds the folder's own key
    begun = any((run / "wandb").glob(f"*-{key}"))
    try:
        told = wandb.init(project=config.watch.project, id=key, resume="allow", name=name, group=config.run.dir,
                          dir=str(run), config=config.to_dict(), reinit="create_new",
                          settings=wandb.Settings(console="off", quiet=True))  # the terminal has our progress bars
    except wandb.errors.Error as error:
        raise UserError(f"W&B cannot be used ({' '.join(str(error).split()).rstrip('.')}); run `wandb login`, set "
                        "WANDB_MODE=offline, or leave wandb out of watch.writers.") from error
    axes = set()

    def write(stage: str, step: int, metrics: dict[str, float]) -> None:
        if stage not in axes:  # each stage counts for itself
            axes.add(stage)
            told.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        told.log({f"{stage}/step": step, **{f"{stage}/{metric}": value for metric, value in metrics.items()}})

    return _Extra(begun, write, told.finish)


def _identity(run: Path) -> str:
    """What tells a run folder from all others, wherever they lie: made once, at random."""
    path = run / ".wandb-id"
    with locked(path):
        if not path.read_text(encoding="utf-8"):
            path.write_text(secrets.token_hex(16), encoding="utf-8")
        return path.read_text(encoding="utf-8")


EXTRAS = {"tensorboard": _tensorboard, "wandb": _wandb}
