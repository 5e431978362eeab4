"""Charts as inline SVG: text and axes take the color of the page, so they are legible on light and on dark."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

LEAST_POINTS = 3  # of the longest line of a chart
COLORS = 8  # classes .c0, .c1, ... of the page's style sheet; further lines differ in their dashes
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 40
_PixelMap = Callable[[float, float], tuple[float, float]]


def lines(series: Mapping[str, tuple], xlabel: str, ylabel: str, title: str) -> str:
    """A line chart.

    Args:
        series: {name: (x, y)}; a value that is not finite leaves a gap, and an entry without values is left out.
        xlabel: name of the horizontal axis.
        ylabel: name of the vertical axis.
        title: text above the chart; screen readers also get the first and the last value of each line.

    Returns:
        HTML; "" if no line has three points: fewer are better read in a table.
    """
    finite = {name: [(float(a), float(b)) for a, b in zip(x, y, strict=True)] for name, (x, y) in series.items()
              if len(x)}
    points = [point for line in finite.values() for point in line if all(map(math.isfinite, point))]
    if not any(sum(math.isfinite(y) for _, y in line) >= LEAST_POINTS for line in finite.values()):
        return ""
    x_ticks, y_ticks = ticks([x for x, _ in points], integers=True), ticks([y for _, y in points])
    place = _pixel_map(x_ticks, y_ticks)
    body = _axes(x_ticks, y_ticks, place, xlabel, ylabel)
    for index, line in enumerate(finite.values()):
        for part in _unbroken(line, place):
            pixels = " ".join(f"{x:.1f},{y:.1f}" for x, y in part)
            body.append(f'<polyline class="c{index % COLORS}"{_dash(index)} points="{pixels}"/>')
            if len(line) <= 12:
                body += [f'<circle class="c{index % COLORS}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in part]
    ends = "; ".join(f"{name}: {_short(line[0][1])} to {_short(line[-1][1])}" for name, line in finite.items())
    return _chart(body, title, ylabel, f"{ylabel} by {xlabel}. {ends}", list(finite))


def _unbroken(line: Sequence[tuple[float, float]], place: _PixelMap) -> list[list[tuple[float, float]]]:
    """The stretches of a line between its gaps, in pixels."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in line:
        if math.isfinite(y):
            stretches[-1].append(place(x, y))
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]


def bars(groups: Mapping[str, Sequence[float]], edges: Sequence[float], xlabel: str, ylabel: str, title: str) -> str:
    """A chart of histograms side by side.

    Args:
        groups: {name: heights}.
        edges: of the bins of all groups, one more than heights.
        xlabel: name of the horizontal axis.
        ylabel: name of the vertical axis.
        title: text above the chart.

    Returns:
        HTML; "" if there is nothing to draw.
    """
    heights = [height for values in groups.values() for height in values]
    if not heights or not max(heights):
        return ""
    x_ticks, y_ticks = [float(edges[0]), float(edges[0] + edges[-1]) / 2, float(edges[-1])], ticks([0.0, *heights])
    place = _pixel_map(x_ticks, y_ticks)
    body = _axes(x_ticks, y_ticks, place, xlabel, ylabel)
    for index, values in enumerate(groups.values()):
        for low, high, height in zip(edges, edges[1:], values, strict=False):
            width = (high - low) * 0.9 / len(groups)
            begin = low + (high - low) * 0.05 + index * width
            (left, top), (right, bottom) = place(begin, height), place(begin + width, 0.0)
            body.append(f'<rect class="c{index % COLORS}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                        f'height="{max(bottom - top, 0):.1f}"/>')
    half = len(edges) // 2
    shares = "; ".join(f"{name}: {sum(values[half:]) / max(sum(values), 1e-12):.0%} in the upper half"
                       for name, values in groups.items())
    return _chart(body, title, ylabel, f"{ylabel} by {xlabel}. {shares}", list(groups))


def ticks(values: Sequence[float], integers: bool = False) -> list[float]:
    """Four to seven round numbers that enclose the values; with `integers`, only whole numbers."""
    low, high = min(values), max(values)
    spread = high - low or abs(high) or 1.0
    rough = spread / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    step = max(round(step), 1) if integers else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, max(last, first + 1) + 1)]


def _pixel_map(x_ticks: Sequence[float], y_ticks: Sequence[float]) -> _PixelMap:
    """The function (x, y) -> pixels of a chart with these ticks."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return (_LEFT + width * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]),
                _TOP + height * (1 - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])))
    return place


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], place: _PixelMap, xlabel: str, ylabel: str) -> list[str]:
    body = []
    for y in y_ticks:
        x0, y0 = place(x_ticks[0], y)
        body.append(f'<path class="grid" d="M{x0:.1f} {y0:.1f}H{_WIDTH - _RIGHT}"/>'
                    f'<text x="{x0 - 5:.1f}" y="{y0 + 4:.1f}" text-anchor="end">{_short(y)}</text>')
    for x in x_ticks:
        x0, y0 = place(x, y_ticks[0])
        body.append(f'<text x="{x0:.1f}" y="{y0 + 15:.1f}" text-anchor="middle">{_short(x)}</text>')
    body.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(xlabel)}'
                "</text>")
    return body


def _dash(index: int) -> str:
    dash = _DASHES[index // COLORS % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _chart(body: list[str], title: str, ylabel: str, description: str, names: list[str]) -> str:
    key = "".join(f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="c{n % COLORS}"{_dash(n)} d="M0 4H24"/>'
                  f"</svg>{escape(name)}</li>" for n, name in enumerate(names))
    return (f'<figure class="chart">\n<figcaption><b>{escape(title)}</b>, {escape(ylabel)}</figcaption>\n'
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}. {escape(description)}">'
            f'{"".join(body)}</svg>\n<ul class="key">{key}</ul>\n</figure>')


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}" if abs(value) < 1e5 else f"{value:.2g}"
