"""What devices send each other: bytes of the collectives in a compiled computation."""

import math
import re
from collections import Counter

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r"known_trip_count[^0-9]*(\d+)")
_SHAPE = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")


def collective_bytes(hlo: str) -> dict[str, int]:
    """{kind: bytes of results on one device} of a compiled computation's text (`compiled.as_text()`).

    What stands in a loop counts as often as the loop runs, if XLA knows how often, else once. Of a result that is
    reduced or gathered this is the size, not what a ring or a tree makes of it on the wire.
    """
    inside, name, entry = {}, None, None
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            name = header.group(2)
            inside[name] = []
            entry = name if header.group(1) else entry
        elif name:
            inside[name].append(line)

    def of(computation: str) -> Counter:
        total = Counter()
        for line in inside.get(computation, ()):
            if found := _COLLECTIVE.search(line):
                total[found.group(2)] += _bytes(found.group(1), bool(found.group(3)))
            trips = int(m.group(1)) if (m := _TRIPS.search(line)) else 1
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [("branch", who.strip().lstrip("%")) for who in branches.split(",")]
            for what, who in called:
                for kind, count in of(who).items():
                    total[kind] += count * (trips if what == "body" else 1)
        return total

    return dict(of(entry))


def _bytes(shapes: str, started: bool) -> int:
    """Bytes of a result type; of an operation that was only started, the largest part alone: the rest is its input."""
    sizes = [math.prod(map(int, filter(None, dimensions.split(",")))) * _bits(dtype) // 8
             for dtype, dimensions in _SHAPE.findall(shapes)]
    return max(sizes) if started else sum(sizes)


def _bits(dtype: str) -> int:
    """Of "f32", "bf16", "u8", "f8e4m3fn"; "pred" is a byte."""
    return 8 if dtype == "pred" else int(re.search(r"\d+", dtype).group())
