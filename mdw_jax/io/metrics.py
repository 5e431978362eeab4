"""Metrics of a run: metrics.csv always, and other writers (TensorBoard, Weights & Biases, your own) beside it.

`<run.dir>/metrics.csv` holds one number per row: stage, name, step, metric, value.

* name: the directory the number belongs to, relative to run.dir.
* stage and step: `experts/0A` or `teachers/0A` (expert and network) with the epoch, from 1; `distill` with the outer
  step, from 0; `scores` (experts) or `scores-<select_on>-<key>` (sets) with the network or student, from 0.

Rows are appended as they come, and no row comes twice: a run that was killed and repeats some steps recognizes the rows
it already has. The other writers get the rows that are new in the CSV or, if they are used for the first time, all rows
that the stage still knows.

`.metrics.csv.sha256` is there while nobody appends. It is not in SHA256SUMS, whose writers hold another lock.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mdw_jax.errors import UserError
from mdw_jax.io.checksums import DamagedError
from mdw_jax.io.files import digest, write_atomically
from mdw_jax.io.locks import locked
from mdw_jax.runtime.processes import is_main

FILE, COLUMNS = "metrics.csv", ("stage", "name", "step", "metric", "value")
_DAMAGED = "surrogateescape"  # bytes that are no text are kept as they are
_TRIES, _PAUSE = 4, 0.05  # a reader may meet the file and its sha256 of two moments
_LOG = logging.getLogger(__name__)


class MetricsWriter:
    """Where the metrics of one directory of a run go; subclass it for a writer of your own.

    Attributes:
        resumed: whether it already has rows of this directory from an earlier process. If not, it is given all rows
            that the stage still knows, not only new ones.
    """

    resumed = False

    def write(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Write the numbers of one step."""

    def close(self) -> None:
        """Finish; called once, also after an error."""


# A function (config, run directory, name) -> writer. name: the directory of the metrics, relative to run.dir.
WriterFactory = Callable[[ConfigDict, Path, str], MetricsWriter]


def open_metrics(config: ConfigDict, directory: Path, factories: Sequence[WriterFactory] = ()) -> MetricsWriter:
    """Open everything that the metrics of a directory are written to; close it with `contextlib.closing`.

    With several processes, only process 0 writes.

    Args:
        config: the run's config.
        directory: a directory below run.dir.
        factories: make the writers beside metrics.csv, such as the entries of `WRITERS`.

    Raises:
        UserError: the package of a writer is missing, or its service cannot be reached.
    """
    if not is_main():
        return MetricsWriter()
    run_directory = Path(config.run.dir)
    name = Path(directory).relative_to(run_directory).as_posix()
    with contextlib.ExitStack() as stack:
        writers = []
        for factory in factories:
            writers.append(factory(config, run_directory, name))
            stack.callback(writers[-1].close)
        metrics = _CsvAndOthers(run_directory / FILE, name, writers)
        stack.callback(_seal, run_directory / FILE)
        stack.callback(metrics.replace_changed_rows)
        metrics.close = stack.pop_all().close  # type: ignore[method-assign]
    return metrics


class _CsvAndOthers(MetricsWriter):
    """metrics.csv, which knows the rows of earlier processes, and writers that get what is new in it."""

    def __init__(self, path: Path, name: str, writers: Sequence[MetricsWriter]):
        self.path, self.name, self.writers = path, name, writers
        self.known = _rows_of(path, name)
        self.changed: dict[tuple, str] = {}

    def write(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        rows = {(stage, self.name, str(step), metric): repr(float(value)) for metric, value in metrics.items()}
        new = {row: value for row, value in rows.items() if self.known.get(row) != value}
        self.changed.update((row, value) for row, value in new.items() if row in self.known)
        _append(self.path, {row: value for row, value in new.items() if row not in self.known})
        self.known.update(new)
        for writer in self.writers:
            numbers = {row[-1]: float(value) for row, value in (new if writer.resumed else rows).items()}
            if numbers:
                writer.write(stage, step, numbers)

    def replace_changed_rows(self) -> None:
        """Give rows new values: on accelerators, a step done again need not be equal to the last bit."""
        if not self.changed:
            return
        with _open_csv(self.path) as file:
            file.seek(0)
            rows = [tuple(line.decode(errors=_DAMAGED).rstrip("\n").split(",")) for line in file]
            _digest_file(self.path).unlink(missing_ok=True)
            write_atomically(self.path, b"".join(_line((*row[:-1], self.changed.get(row[:-1], row[-1])))
                                                 for row in rows))


@contextlib.contextmanager
def _open_csv(path: Path) -> Iterator:
    """The CSV, locked and positioned at its end, with a header; half a line that a killed process left is removed."""
    with locked(path.with_name(f".{path.name}.lock")), open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        if not file.seek(0, os.SEEK_END):
            _digest_file(path).unlink(missing_ok=True)  # of a file that somebody deleted
            file.write(_line(COLUMNS))
        yield file


def _line(cells: Sequence[str]) -> bytes:
    return (",".join(cells) + "\n").encode(errors=_DAMAGED)


def read_metrics(path: Path) -> bytes:
    """What metrics.csv holds.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is not as it was when the last writer closed it, and nobody has appended since.
    """
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        data = path.read_bytes()
        try:
            if _digest_file(path).read_bytes() == _digest_line(path, data):
                return data
        except OSError:  # somebody appends, or was killed while it did, or an earlier version wrote it
            return data
    raise DamagedError(f"it does not fit {_digest_file(path).name} beside it: it was edited, or one of the two is damaged")


def _digest_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _digest_line(path: Path, data: bytes) -> bytes:
    """As `sha256sum` writes it, and `sha256sum -c` takes it."""
    return f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode()


def _seal(path: Path) -> None:
    """Keep the sha256 of the CSV until somebody appends to it."""
    with _open_csv(path) as file:
        file.seek(0)
        write_atomically(_digest_file(path), _digest_line(path, file.read()))


def _rows_of(path: Path, name: str) -> dict[tuple, str]:
    """{(stage, name, step, metric): value} of one name."""
    with _open_csv(path) as file:
        try:
            read_metrics(path)
        except DamagedError as error:
            _LOG.warning("'%s' is damaged (%s): its curves may be wrong, no score is; delete it to have those alone that "
                         "are still to come.", path, error)
            _digest_file(path).unlink(missing_ok=True)  # it is said once
        file.seek(0)
        rows = (line.decode(errors=_DAMAGED).rstrip("\n").split(",") for line in file)
        return {tuple(row[:-1]): row[-1] for row in rows if len(row) == len(COLUMNS) and row[1] == name}


def _append(path: Path, rows: dict[tuple, str]) -> None:
    if rows:
        with _open_csv(path) as file:
            _digest_file(path).unlink(missing_ok=True)
            file.write(b"".join(_line((*row, value)) for row, value in rows.items()))


class TensorBoardWriter(MetricsWriter):
    """Event files in `<run.dir>/tensorboard/<name>`."""

    def __init__(self, config: ConfigDict, run_directory: Path, name: str):
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError:
            raise UserError("watch.writers=tensorboard needs tensorboardX: pip install 'mdw-jax[tensorboard]', or "
                            "leave it out.") from None
        self.event, self.summary = event_pb2.Event, summary_pb2.Summary
        directory = run_directory / "tensorboard" / name
        self.resumed = directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        # The file itself, not SummaryWriter, whose thread writes later: after a kill, TensorBoard must have what the
        # CSV has. The suffix keeps two files of the same second apart.
        self.file = EventsWriter(str(directory / "events"), f".{time.time_ns()}")

    def write(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        values = [self.summary.Value(tag=f"{stage}/{metric}", simple_value=value) for metric, value in metrics.items()]
        self.file.write_event(self.event(wall_time=time.time(), step=step, summary=self.summary(value=values)))
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class WandbWriter(MetricsWriter):
    """One run of Weights & Biases per directory, grouped by run.dir; it is resumed after a restart."""

    def __init__(self, config: ConfigDict, run_directory: Path, name: str):
        try:
            import wandb
        except ImportError:
            raise UserError("watch.writers=wandb needs wandb: pip install 'mdw-jax[wandb]', or leave it out.") from None
        key = digest(_random_identity(run_directory), name)[:16]  # the same after a restart
        self.resumed = any((run_directory / "wandb").glob(f"*-{key}"))
        try:
            self.run = wandb.init(project=config.watch.project, id=key, resume="allow", name=name,
                                  group=config.run.dir, dir=str(run_directory), config=config.to_dict(),
                                  reinit="create_new",
                                  settings=wandb.Settings(console="off", quiet=True))  # the terminal has progress bars
        except wandb.errors.Error as error:
            raise UserError(f"W&B cannot be used ({' '.join(str(error).split()).rstrip('.')}); run `wandb login`, set "
                            "WANDB_MODE=offline, or leave wandb out of watch.writers.") from error
        self.stages: set[str] = set()

    def write(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        if stage not in self.stages:  # every stage counts its own steps
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({f"{stage}/step": step, **{f"{stage}/{metric}": value for metric, value in metrics.items()}})

    def close(self) -> None:
        self.run.finish()


def _random_identity(run_directory: Path) -> str:
    """What tells this run directory from all others, wherever they lie: drawn once, kept in `.wandb-id`."""
    path = run_directory / ".wandb-id"
    with locked(path):
        if not path.read_text(encoding="utf-8"):
            path.write_text(secrets.token_hex(16), encoding="utf-8")
        return path.read_text(encoding="utf-8")


WRITERS: dict[str, WriterFactory] = {"tensorboard": TensorBoardWriter, "wandb": WandbWriter}
