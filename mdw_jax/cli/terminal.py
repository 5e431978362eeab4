"""What is printed, without what a terminal takes for a command.

Names of files and columns, captions and messages of libraries come from strangers: an escape sequence in them could
clear the screen, set its title, or hide a line.
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import TextIO

# Control characters but tab and line feed, marks that change the direction of writing, and halves of surrogate pairs, which
# stand for bytes of file names that are no text.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@contextlib.contextmanager
def terminal_safe_output() -> Iterator[None]:
    """A context in which what is written to stdout and stderr has no control characters: escapes such as "\\x1b" stand
    for them. Progress bars, which need them, write to `SafeStream.unfiltered`."""
    with contextlib.redirect_stdout(SafeStream(sys.stdout)), contextlib.redirect_stderr(SafeStream(sys.stderr)):
        yield


class SafeStream:
    """A text stream that writes to another one, control characters escaped; all else is the other one's.

    Attributes:
        unfiltered: the other one.
    """

    def __init__(self, stream: TextIO):
        self.unfiltered = stream

    def write(self, text: str) -> int:
        """Write, and return the number of characters of `text`; what the stream's encoding lacks is escaped as well."""
        bar = "\r" if text.startswith("\r") else ""  # as progress bars of libraries begin
        safe = bar + escaped(text[len(bar):].replace("\r\n", "\n"))
        try:
            self.unfiltered.write(safe)
        except UnicodeEncodeError as error:
            self.unfiltered.write(safe.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def writelines(self, lines) -> None:
        """Write all of them."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str):
        return getattr(self.unfiltered, name)


def escaped(text: str) -> str:
    """A text with escapes in place of what a terminal would obey."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)
