"""Progress of a long stage: a bar on a terminal, a line a minute in a log."""

import contextlib
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mdw_jax.runtime.processes import is_main

LOG_EVERY = 60.0  # seconds between lines where there is no terminal
REDRAW_EVERY = 0.5  # seconds between looks at the metrics on a terminal: each look waits for the device


@contextlib.contextmanager
def progress(stage: str, total: int, unit: str = "steps", *, stream=None, clock=time.monotonic):
    """Shows how `stage` gets on; yields `advance(n=1, **metrics)`.

    total: units still to do. stream: where to write, stderr by default. clock: seconds, for tests.
    Of the processes of a run the first one shows it.
    Metrics are scalars (floats or 0-d arrays); the last ones given are shown. They are read only when shown, so that
    a loop that passes device arrays is not held up at each step. After an exception the last line says how far it got.
    """
    if not is_main():
        yield lambda n=1, **latest: None
        return
    stream = sys.stderr if stream is None else stream
    show = _bar if stream.isatty() else _lines
    done, metrics, start = 0, {}, clock()
    with show(stage, total, unit, stream) as update:
        shown = start

        def advance(n: int = 1, **latest):
            nonlocal done, metrics, shown
            done += n
            metrics = latest or metrics
            now = clock()
            if now - shown >= (REDRAW_EVERY if show is _bar else LOG_EVERY):
                shown = now
                update(done, now - start, metrics)

        try:
            yield advance
        except BaseException:
            update(done, clock() - start, {}, "stopped at ")
            raise
        update(done, clock() - start, metrics, "done, ")


@contextlib.contextmanager
def _lines(stage: str, total: int, unit: str, stream):
    """Plain lines: yields `update(done, seconds, metrics, ending="")`."""
    print(f"{stage}: {total} {unit}", file=stream, flush=True)

    def update(done: int, seconds: float, metrics: dict, ending: str = ""):
        rate = _rate(done, seconds)
        if ending:
            parts = [f"{ending}{_count(done, total)} {unit} in {_duration(seconds)}", f"{rate:.3g} {unit}/s"]
        else:
            left = _duration((total - done) / rate) if rate else "unknown time"
            parts = [f"{_count(done, total)} {unit}", f"{rate:.3g} {unit}/s", f"{left} left"]
        print(f"{stage}: {', '.join(parts + _words(metrics))}", file=stream, flush=True)

    yield update


@contextlib.contextmanager
def _bar(stage: str, total: int, unit: str, stream):
    """A rich bar: yields `update(done, seconds, metrics, ending="")`."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
               TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[metrics]}"))
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task(stage, total=total, rate="", metrics="")

        def update(done: int, seconds: float, metrics: dict, ending: str = ""):
            words = [f"in {_duration(seconds)}"] * bool(ending) + _words(metrics)
            bar.update(task, completed=done, rate=f"{_rate(done, seconds):.3g} {unit}/s", metrics=", ".join(words))

        yield update


def _rate(done: int, seconds: float) -> float:
    return done / seconds if seconds > 0 else 0.0


def _count(done: int, total: int) -> str:
    return str(done) if done == total else f"{done}/{total}"


def _words(metrics: dict) -> list[str]:
    return [f"{name} {float(value):.4g}" for name, value in metrics.items()]


def _duration(seconds: float) -> str:
    """75.2 -> 1m15s."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
