"""A log gets few plain lines with the right numbers; a terminal gets a bar; metrics are read only when shown."""

import io

import pytest

from mdw_jax.runtime.progress import progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def _log(steps, seconds_per_step, total=None):
    stream, clock = io.StringIO(), Clock()
    with progress("distill", total or steps, stream=stream, clock=clock) as advance:
        for step in range(steps):
            clock.now += seconds_per_step
            advance(loss=step / 8)
    return stream.getvalue().splitlines()


def test_a_short_stage_is_two_lines():
    assert _log(10, 0.5) == ["distill: 10 steps", "distill: done, 10 steps in 5.0s, 2 steps/s, loss 1.125"]


def test_a_long_stage_says_one_line_a_minute():
    lines = _log(400, 0.5)  # 200 seconds
    assert lines[1:4] == [
        "distill: 120/400 steps, 2 steps/s, 2m20s left, loss 14.88",
        "distill: 240/400 steps, 2 steps/s, 1m20s left, loss 29.88",
        "distill: 360/400 steps, 2 steps/s, 20s left, loss 44.88",
    ]
    assert lines[4] == "distill: done, 400 steps in 3m20s, 2 steps/s, loss 49.88" and len(lines) == 5


def test_slow_steps_and_hours():
    lines = _log(3, 3600.0)
    assert len(lines) == 5 and lines[1].startswith("distill: 1/3 steps, 0.000278 steps/s, 2h00m left")


def test_a_stage_that_ends_early_says_how_far_it_got():
    assert _log(2, 1.0, total=5)[-1].startswith("distill: done, 2/5 steps in 2.0s")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_passes_and_is_reported(error):
    stream, clock = io.StringIO(), Clock()
    with pytest.raises(error), progress("experts", 4, "epochs", stream=stream, clock=clock) as advance:
        clock.now += 20
        advance(2)
        raise error
    assert stream.getvalue().splitlines()[-1] == "experts: stopped at 2/4 epochs in 20s, 0.1 epochs/s"


def test_nothing_to_do():
    assert _log(0, 1.0)[-1] == "distill: done, 0 steps in 0.0s, 0 steps/s"


def test_metrics_are_read_only_when_shown():
    reads = []

    class Scalar:
        def __float__(self):
            reads.append(1)
            return 0.5

    stream, clock = io.StringIO(), Clock()
    with progress("distill", 120, stream=stream, clock=clock) as advance:
        for _ in range(120):
            clock.now += 1
            advance(loss=Scalar())
    assert len(reads) == 3  # two minutes and the end


@pytest.mark.parametrize("color", [True, False])
def test_a_terminal_gets_a_bar(monkeypatch, color):
    monkeypatch.setenv("TERM", "xterm" if color else "dumb")
    monkeypatch.setenv("COLUMNS", "120")
    stream, clock = Terminal(), Clock()
    with progress("distill", 8, stream=stream, clock=clock) as advance:
        for _ in range(8):
            clock.now += 1
            advance(loss=0.25)
    text = stream.getvalue()
    assert "distill" in text and "8/8" in text and "1 steps/s" in text and "in 8.0s, loss 0.25" in text


def test_stderr_by_default(capsys):
    with progress("evaluate", 1, "students") as advance:
        advance()
    out, err = capsys.readouterr()
    assert not out and err.startswith("evaluate: 1 students\nevaluate: done, 1 students in ")
