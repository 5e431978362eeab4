"""Charts as inline SVG: text and axes take the page's own colour, so they are legible on light and on dark."""

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = 8  # of lines, in the page's style sheet as .c0, .c1, ...; more lines are told apart by dashes
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 40


def lines(series: Mapping[str, tuple], xlabel: str, ylabel: str, title: str) -> str:
    """A figure with one line for each entry of `series`, {name: (x, y)}; a value that is not finite leaves a gap, and
    an entry without any is left out.

    title: said above the chart and to those who do not see it, with first and last value of each line.
    """
    finite = {name: [(float(a), float(b)) for a, b in zip(x, y, strict=True)] for name, (x, y) in series.items()
              if len(x)}
    points = [point for line in finite.values() for point in line if all(map(math.isfinite, point))]
    if not points:
        return ""
    across, up = ticks([x for x, _ in points], whole=True), ticks([y for _, y in points])
    place = _placing(across, up)
    body = _axes(across, up, place, xlabel, ylabel)
    for index, line in enumerate(finite.values()):
        runs, run = [], []
        for x, y in line:
            if math.isfinite(y):
                run.append(place(x, y))
            elif run:
                runs.append(run)
                run = []
        for part in [*runs, run] if run else runs:
            spots = " ".join(f"{x:.1f},{y:.1f}" for x, y in part)
            body.append(f'<polyline class="c{index % COLOURS}"{_dash(index)} points="{spots}"/>')
            if len(line) <= 12:
                body += [f'<circle class="c{index % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in part]
    said = "; ".join(f"{name}: {_short(line[0][1])} to {_short(line[-1][1])}" for name, line in finite.items())
    return _chart(body, title, ylabel, f"{ylabel} by {xlabel}. {said}", list(finite))


def bars(groups: Mapping[str, Sequence[float]], edges: Sequence[float], xlabel: str, ylabel: str, title: str) -> str:
    """A figure of histograms side by side: {name: heights} over the same `edges` (one more than heights)."""
    heights = [height for values in groups.values() for height in values]
    if not heights or not max(heights):
        return ""
    across, up = [float(edges[0]), float(edges[0] + edges[-1]) / 2, float(edges[-1])], ticks([0.0, *heights])
    place = _placing(across, up)
    body = _axes(across, up, place, xlabel, ylabel)
    for index, values in enumerate(groups.values()):
        for low, high, height in zip(edges, edges[1:], values, strict=False):
            width = (high - low) * 0.9 / len(groups)
            begin = low + (high - low) * 0.05 + index * width
            (left, top), (right, bottom) = place(begin, height), place(begin + width, 0.0)
            body.append(f'<rect class="c{index % COLOURS}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                        f'height="{max(bottom - top, 0):.1f}"/>')
    half = len(edges) // 2
    said = "; ".join(f"{name}: {sum(values[half:]) / max(sum(values), 1e-12):.0%} in the upper half"
                     for name, values in groups.items())
    return _chart(body, title, ylabel, f"{ylabel} by {xlabel}. {said}", list(groups))


def ticks(values: Sequence[float], whole: bool = False) -> list[float]:
    """Round numbers, four to seven, that enclose the values. whole: none between whole numbers."""
    low, high = min(values), max(values)
    spread = high - low or abs(high) or 1.0
    rough = spread / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    step = max(round(step), 1) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, max(last, first + 1) + 1)]


def _placing(across, up):
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return (_LEFT + width * (x - across[0]) / (across[-1] - across[0]),
                _TOP + height * (1 - (y - up[0]) / (up[-1] - up[0])))
    return place


def _axes(across, up, place, xlabel: str, ylabel: str) -> list[str]:
    body = []
    for y in up:
        x0, y0 = place(across[0], y)
        body.append(f'<path class="grid" d="M{x0:.1f} {y0:.1f}H{_WIDTH - _RIGHT}"/>'
                    f'<text x="{x0 - 5:.1f}" y="{y0 + 4:.1f}" text-anchor="end">{_short(y)}</text>')
    for x in across:
        x0, y0 = place(x, up[0])
        body.append(f'<text x="{x0:.1f}" y="{y0 + 15:.1f}" text-anchor="middle">{_short(x)}</text>')
    body.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(xlabel)}'
                "</text>")
    return body


def _dash(index: int) -> str:
    dash = _DASHES[index // COLOURS % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _chart(body: list[str], title: str, ylabel: str, said: str, names: list[str]) -> str:
    key = "".join(f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="c{n % COLOURS}"{_dash(n)} d="M0 4H24"/>'
                  f"</svg>{escape(name)}</li>" for n, name in enumerate(names))
    return (f'<figure class="chart">\n<figcaption><b>{escape(title)}</b>, {escape(ylabel)}</figcaption>\n'
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}. {escape(said)}">'
            f'{"".join(body)}</svg>\n<ul class="key">{key}</ul>\n</figure>')


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}" if abs(value) < 1e5 else f"{value:.2g}"
