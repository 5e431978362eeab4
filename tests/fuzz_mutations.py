"""Mutations of real files: what disks, networks and strangers do to them. Seeded, so that a finding can be made again."""

import random

TOKENS = [b"", b"\0", b"\xff\xfe", b"null", b"NaN", b"-1", b"1e999", b"10" * 40, b"[" * 2000, b"{" * 2000, b'{"a":' * 300,
          b"\"", b",", b"\t", b"\n", b"\r", b"|", b"../../../etc/passwd", b"=1+1", b"\x1b[2J", b"true", b"[]", b"{}",
          b"\xed\xa0\x80", "\u202e".encode(), b"9223372036854775808", b"-9223372036854775809", b"0", b"1.5", b'"x"',
          b"\x80" * 8, b"\x7f" * 8, b"PK\x03\x04", b"\x93NUMPY\x01\x00"]


def mutated(data: bytes, seed: str) -> bytes:
    """A file changed in one to four places.

    Args:
        data: the file.
        seed: names the draw.
    """
    draw = random.Random(seed)
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        draw.choice(_CHANGES)(changed, draw)
    return bytes(changed)


def _flip(data: bytearray, draw: random.Random) -> None:
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _set(data: bytearray, draw: random.Random) -> None:
    if data:
        start = draw.randrange(len(data))
        for place in range(start, min(len(data), start + draw.choice((1, 2, 4, 8)))):
            data[place] = draw.choice((0, 255, 127, 128, draw.randrange(256)))


def _cut(data: bytearray, draw: random.Random) -> None:
    if data:
        del data[draw.randrange(len(data)):]


def _remove(data: bytearray, draw: random.Random) -> None:
    if data:
        start = draw.randrange(len(data))
        del data[start:start + draw.choice((1, 3, 16, 200))]


def _repeat(data: bytearray, draw: random.Random) -> None:
    if data:
        start = draw.randrange(len(data))
        piece = data[start:start + draw.choice((1, 8, 64, 500))]
        data[start:start] = piece * draw.choice((1, 2, 20))


def _insert(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data) + 1)
    data[start:start] = draw.choice(TOKENS)


def _replace_value(data: bytearray, draw: random.Random) -> None:
    """What stands between two marks of a JSON or a table becomes something else."""
    marks = [place for place, sign in enumerate(data) if sign in b':,[]{}\t\n|"'][:20_000]
    if len(marks) > 1:
        n = draw.randrange(len(marks) - 1)
        data[marks[n] + 1:marks[n + 1]] = draw.choice(TOKENS)


_CHANGES = (_flip, _flip, _set, _cut, _remove, _repeat, _insert, _replace_value, _replace_value)
