"""What devices send each other: bytes of the collectives in a compiled computation."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r"known_trip_count[^0-9]*(\d+)")
_SHAPE = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")


def collective_bytes(hlo: str) -> dict[str, int]:
    """Bytes of the results of all collectives on one device.

    A collective in a loop counts as often as the loop runs, if XLA knows how often, else once. The size is that of the
    reduced or gathered result, not what a ring or a tree makes of it on the wire.

    Args:
        hlo: the text of a compiled computation (`compiled.as_text()`).

    Returns:
        {kind: bytes}.
    """
    lines_of: dict[str, list[str]] = {}
    name, entry = "", ""
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            name = header.group(2)
            lines_of[name] = []
            entry = name if header.group(1) else entry
        elif name:
            lines_of[name].append(line)
    return dict(_bytes_in(lines_of, entry))


def _bytes_in(lines_of: Mapping[str, Sequence[str]], computation: str) -> Counter:
    """{kind: bytes} of one computation and of all that it calls."""
    total: Counter = Counter()
    for line in lines_of.get(computation, ()):
        if collective := _COLLECTIVE.search(line):
            total[collective.group(2)] += _result_bytes(collective.group(1), bool(collective.group(3)))
        trips = int(match.group(1)) if (match := _TRIPS.search(line)) else 1
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [("branch", branch.strip().lstrip("%")) for branch in branches.split(",")]
        for role, callee in called:
            for kind, count in _bytes_in(lines_of, callee).items():
                total[kind] += count * (trips if role == "body" else 1)
    return total


def _result_bytes(shapes: str, started: bool) -> int:
    """Bytes of a result type; of an operation that was only started, the largest part alone: the rest is its input."""
    sizes = [math.prod(map(int, filter(None, dimensions.split(",")))) * _bits(dtype) // 8
             for dtype, dimensions in _SHAPE.findall(shapes)]
    return max(sizes) if started else sum(sizes)


def _bits(dtype: str) -> int:
    """Of "f32", "bf16", "u8", "f8e4m3fn"; "pred" is a byte."""
    if dtype == "pred":
        return 8
    digits = re.search(r"\d+", dtype)
    if digits is None:
        raise ValueError(f"no size in the dtype '{dtype}'")
    return int(digits.group())
