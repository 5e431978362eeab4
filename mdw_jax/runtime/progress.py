"""Progress of a long stage: a bar on a terminal, one line per minute in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mdw_jax.runtime.processes import is_main

LOG_EVERY = 60.0  # seconds between lines where there is no terminal
REDRAW_EVERY = 0.5  # seconds between looks at the metrics on a terminal: each look waits for the device


@contextlib.contextmanager
def progress(stage: str, total: int, unit: str = "steps", *, stream: TextIO | None = None,
             clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[..., None]]:
    """Show the progress of a stage; yields `advance(n=1, **metrics)`.

    Metrics are scalars (floats or 0-d arrays); the latest ones are shown. They are read only when they are shown, so
    that a loop that passes device arrays does not wait for the device at each step. After an exception, the last line
    says how far the stage got. With several processes, only process 0 shows anything.

    Args:
        stage: the name of the stage.
        total: units still to do.
        unit: the name of what is counted.
        stream: where to write; None: stderr.
        clock: returns seconds, for tests.
    """
    if not is_main():
        yield lambda n=1, **metrics: None
        return
    stream = sys.stderr if stream is None else stream
    with _Bar(stage, total, unit, stream) if stream.isatty() else _Lines(stage, total, unit, stream) as display:
        counter = _Counter(display, clock)
        try:
            yield counter.advance
        except BaseException:
            display.update(counter.done, counter.seconds(), {}, "stopped at ")
            raise
        display.update(counter.done, counter.seconds(), counter.metrics, "done, ")


class _Counter:
    """Counts what is done, and updates a display from time to time."""

    def __init__(self, display: "_Lines | _Bar", clock: Callable[[], float]):
        self.display, self.clock = display, clock
        self.start = self.updated = clock()
        self.done = 0
        self.metrics: dict[str, Any] = {}

    def seconds(self) -> float:
        return self.clock() - self.start

    def advance(self, n: int = 1, **metrics) -> None:
        self.done += n
        self.metrics = metrics or self.metrics
        now = self.clock()
        if now - self.updated >= self.display.every:
            self.updated = now
            self.display.update(self.done, now - self.start, self.metrics)


class _Lines(contextlib.AbstractContextManager):
    """Plain lines in a log."""

    every = LOG_EVERY

    def __init__(self, stage: str, total: int, unit: str, stream: TextIO):
        self.stage, self.total, self.unit, self.stream = stage, total, unit, stream

    def __enter__(self) -> "_Lines":
        self._print(f"{self.total} {self.unit}")
        return self

    def __exit__(self, *error) -> None:
        pass

    def update(self, done: int, seconds: float, metrics: dict[str, Any], ending: str = "") -> None:
        rate = _rate(done, seconds)
        if ending:
            parts = [f"{ending}{_count(done, self.total)} {self.unit} in {_duration(seconds)}",
                     f"{rate:.3g} {self.unit}/s"]
        else:
            left = _duration((self.total - done) / rate) if rate else "unknown time"
            parts = [f"{_count(done, self.total)} {self.unit}", f"{rate:.3g} {self.unit}/s", f"{left} left"]
        self._print(", ".join(parts + _texts(metrics)))

    def _print(self, line: str) -> None:
        print(f"{self.stage}: {line}", file=self.stream, flush=True)


class _Bar(contextlib.AbstractContextManager):
    """A rich bar on a terminal."""

    every = REDRAW_EVERY

    def __init__(self, stage: str, total: int, unit: str, stream: TextIO):
        self.unit = unit
        console = Console(file=getattr(stream, "unfiltered", stream))  # the bar moves the cursor: `cli.terminal`
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
                            TextColumn("{task.fields[metrics]}"), console=console)
        self.task = self.bar.add_task(stage, total=total, rate="", metrics="")

    def __enter__(self) -> "_Bar":
        self.bar.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.bar.__exit__(*error)

    def update(self, done: int, seconds: float, metrics: dict[str, Any], ending: str = "") -> None:
        words = [f"in {_duration(seconds)}"] * bool(ending) + _texts(metrics)
        self.bar.update(self.task, completed=done, rate=f"{_rate(done, seconds):.3g} {self.unit}/s",
                        metrics=", ".join(words))


def _rate(done: int, seconds: float) -> float:
    return done / seconds if seconds > 0 else 0.0


def _count(done: int, total: int) -> str:
    return str(done) if done == total else f"{done}/{total}"


def _texts(metrics: dict[str, Any]) -> list[str]:
    return [f"{name} {float(value):.4g}" for name, value in metrics.items()]


def _duration(seconds: float) -> str:
    """75.2 -> 1m15s."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
