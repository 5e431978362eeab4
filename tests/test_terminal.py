"""Nothing that is printed can command a terminal."""

import io

import pytest

from mdw_jax.cli import main
from mdw_jax.cli.terminal import SafeStream, escaped


@pytest.mark.parametrize("text, printed", [
    ("plain\ttab\n", "plain\ttab\n"), ("\x1b[2J", "\\x1b[2J"), ("a\rb", "a\\rb"), ("\u202egnp.exe", "\\u202egnp.exe"),
    ("\x9b31m", "\\x9b31m"), ("größer 山", "größer 山"), ("\x07\x00", "\\x07\\x00"),
    ("caf\udce9.jpg", "caf\\udce9.jpg"),
])
def test_control_characters_are_escaped(text, printed):
    assert escaped(text) == printed


def test_a_stream_counts_what_it_was_given_and_bars_may_return():
    inner = io.StringIO()
    stream = SafeStream(inner)
    assert stream.write("\r50 %\x1b[K") == 8
    stream.writelines(["a\r\n", "b\r"])
    assert inner.getvalue() == "\r50 %\\x1b[Ka\nb\\r"
    assert not stream.isatty() and stream.unfiltered is inner


@pytest.mark.parametrize("encoding, printed", [("utf-8", "größer 山 \\udce9"), ("latin-1", "größer \\u5c71 \\udce9"),
                                               ("ascii", "gr\\xf6\\xdfer \\u5c71 \\udce9")])
def test_what_an_encoding_lacks_is_escaped(encoding, printed):
    inner = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print("größer 山 \udce9", file=SafeStream(inner), end="", flush=True)
    assert inner.buffer.getvalue().decode(encoding) == printed


@pytest.mark.parametrize("words", [["run", "\x1b]0;owned\x07"], ["\x1b[2J"], ["report", "no\x1b[31m"],
                                   ["runs", "no\x1b[31m"], ["run", "quickstart", "--config.run.dir=\x1b[2J/\0"]])
def test_errors_of_the_command_line_are_safe(words, capsys):
    assert main(words) != 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and ("\\x1b" in out + err or "null byte" in err)
