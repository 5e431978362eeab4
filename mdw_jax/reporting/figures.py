"""Pictures of a run: grids of pairs and curves as PNG files, small ones as text inside a page, captions for them.

Figures are built as objects, never through pyplot, so nothing is shared between calls, threads or with the caller.
"""

import base64
import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox, TransformedBbox
from PIL import Image

from mdw_jax.errors import UserError
from mdw_jax.io.files import write_atomically

_CELL = 1.5  # width of one image of the grid, inches
_EXACT = 8192  # pixels of a photo up to which it costs little to keep every one as it is
_LINES, _LETTERS = 5, 26  # caption lines below an image, and letters a line, that fit the cell at 7 pt


def image_grid(images, captions: Sequence[str], path, columns: int = 6, spectrogram: bool = False) -> None:
    """A PNG of images, each above its caption; made for up to some 30 pairs.

    images: (M, H, W, C) in [0, 1], clipped for show, or clips (M, T, H, W, C), of which the frame in the middle is
    shown. One channel is grey, three are RGB, any other number is averaged to grey. captions: M strings, cut after five
    short lines. columns: images a row. spectrogram: low frequencies below, loud ones bright (magma).
    """
    images = np.clip(np.asarray(images, np.float32), 0, 1)
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    if spectrogram:
        images = images[:, ::-1]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    gap, text = 0.15, 0.125 * _LINES  # inches
    picture = _CELL * np.clip(images.shape[1] / images.shape[2], 0.3, 3)
    width, height = columns * (_CELL + gap) + gap, rows * (picture + text + gap) + gap
    figure = Figure(figsize=(width, height))
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = gap + column * (_CELL + gap), height - gap - row * (picture + text + gap)
        axes = figure.add_axes((left / width, (top - picture) / height, _CELL / width, picture / height))
        colour = image if image.shape[2] == 3 else image.mean(2)
        axes.imshow(colour, cmap="magma" if spectrogram else "gray", vmin=0, vmax=1, interpolation="nearest",
                    aspect="auto")
        axes.set_axis_off()
        lines = textwrap.wrap(caption, _LETTERS, max_lines=_LINES, placeholder=" …")
        cell = Bbox.from_bounds(left / width, 0, _CELL / width, 1)  # very wide letters are cut, not drawn next door
        figure.text(left / width, (top - picture - 0.05) / height, "\n".join(lines), fontsize=7, va="top",
                    linespacing=1.15, clip_on=True, clip_box=TransformedBbox(cell, figure.transFigure),
                    parse_math=False)  # a dollar sign in a caption is money
    _save(figure, path, dpi=150)


def curves(series: Mapping[str, tuple], path, xlabel: str, ylabel: str, title: str) -> None:
    """A PNG of one line for each entry of `series`, {name: (x, y)} or {name: (x, y, half)} with bars of y +- half.

    NaN leaves a gap, or out a bar. Up to 40 lines look different.
    """
    figure = Figure(figsize=(7, 4.3), layout="constrained")
    axes = figure.subplots()
    looks = itertools.cycle([(style, f"C{colour}") for style in ("-", "--", ":", "-.") for colour in range(10)])
    for (name, (x, y, *half)), (style, colour) in zip(series.items(), looks):
        axes.errorbar(x, y, half[0] if half else None, linestyle=style, color=colour, marker="o", markersize=3,
                      capsize=2, elinewidth=1, label=name)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if series:
        legend = figure.legend(loc="outside right upper", fontsize=8, ncols=-(-len(series) // 20), frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    _finish(axes, title)
    _save(figure, path)


def coloured(images, spectrogram: bool = False) -> np.ndarray:
    """(M, H, W, C) in [0, 1], uint8, or clips, of which the frame in the middle is taken -> (M, H, W, 3) uint8.

    Channels and spectrograms as in `image_grid`.
    """
    images = np.asarray(images)
    images = images / 255 if images.dtype == np.uint8 else np.clip(images.astype(np.float32), 0, 1)
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    if spectrogram:
        images = matplotlib.colormaps["magma"](images[:, ::-1].mean(-1))[..., :3]
    elif images.shape[-1] != 3:
        images = np.repeat(images.mean(-1, keepdims=True), 3, -1)
    return np.round(255 * images).astype(np.uint8)


def heated(images, weights) -> np.ndarray:
    """Weights over pictures: (M, H, W, 3) uint8, greyed, with (M, H, W) weights in colour, each on its own scale."""
    weights = np.asarray(weights, np.float32)
    low, high = weights.min((1, 2), keepdims=True), weights.max((1, 2), keepdims=True)
    share = np.where(high > low, (weights - low) / np.maximum(high - low, 1e-9), 0)
    colour = 255 * matplotlib.colormaps["inferno"](share)[..., :3]
    grey = np.asarray(images, np.float32).mean(-1, keepdims=True)
    return np.round(0.4 * grey + 0.6 * colour).astype(np.uint8)


def difference(matrix) -> np.ndarray:
    """P - I as a picture (M, M, 3) uint8 on a scale centred on 0: red is more than the identity, blue less."""
    change = np.asarray(matrix, np.float64) - np.eye(len(matrix))
    limit = np.abs(change).max() or 1.0
    return np.round(255 * matplotlib.colormaps["RdBu_r"](change / limit / 2 + 0.5)[..., :3]).astype(np.uint8)


def data_uri(picture, side: int = 112, photo: bool = True) -> str:
    """A picture (H, W, 3) uint8 as a data URI, at most `side` pixels a side; a large photo as JPEG, all else as PNG."""
    drawn = Image.fromarray(np.ascontiguousarray(picture))
    if max(drawn.size) > side:
        drawn.thumbnail((side, side), Image.Resampling.BOX)
    buffer = io.BytesIO()
    kind = "JPEG" if photo and drawn.size[0] * drawn.size[1] > _EXACT else "PNG"
    drawn.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def file_uri(path) -> str:
    """A PNG file as a data URI. Raises UserError if it cannot be read."""
    try:
        return f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
    except OSError as error:
        raise UserError(f"the picture '{path}' cannot be read ({error.strerror}); draw it again.") from None


def _finish(axes, title: str) -> None:
    """Set the title, and read no text of these axes as mathematics."""
    axes.set_title(title, fontsize=11, wrap=True)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_parse_math(False)


def _save(figure: Figure, path, dpi: int = 110) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    write_atomically(path, buffer.getvalue())
