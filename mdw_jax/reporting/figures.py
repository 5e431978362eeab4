"""Figures of a run: grids of pairs and curves as PNG files, and small images as data URIs inside a page.

Figures are built as objects, never through pyplot, so that nothing is shared between calls, threads or with the caller.
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
_GAP = 0.15  # between images, inches
_LOSSLESS_PIXELS = 8192  # photos of up to this many pixels are stored as PNG, which costs little
_LINES, _LETTERS = 5, 26  # caption lines below an image, and letters per line, that fit the cell at 7 pt


def save_png(figure: Figure, path, dpi: int = 110) -> Path:
    """Write a figure as a PNG file, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return write_atomically(path, buffer.getvalue())


def image_grid(images, captions: Sequence[str], path, columns: int = 6, spectrogram: bool = False) -> None:
    """Write a PNG of images, each above its caption; meant for up to about 30 pairs.

    Args:
        images: (M, H, W, C) in [0, 1], clipped for display, or video clips (M, T, H, W, C), whose middle frame is
            shown. One channel is gray, three are RGB, any other number is averaged to gray.
        captions: M strings, cut after five short lines.
        path: the PNG file.
        columns: images per row.
        spectrogram: draw low frequencies at the bottom and loud ones bright (magma).
    """
    images = np.clip(_middle_frames(np.asarray(images, np.float32)), 0, 1)
    if spectrogram:
        images = images[:, ::-1]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    text_height = 0.125 * _LINES  # inches
    image_height = _CELL * np.clip(images.shape[1] / images.shape[2], 0.3, 3)
    width, height = columns * (_CELL + _GAP) + _GAP, rows * (image_height + text_height + _GAP) + _GAP
    figure = Figure(figsize=(width, height))
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = _GAP + column * (_CELL + _GAP), height - _GAP - row * (image_height + text_height + _GAP)
        axes = figure.add_axes((left / width, (top - image_height) / height, _CELL / width, image_height / height))
        axes.imshow(image if image.shape[2] == 3 else image.mean(2), cmap="magma" if spectrogram else "gray", vmin=0,
                    vmax=1, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        lines = textwrap.wrap(caption, _LETTERS, max_lines=_LINES, placeholder=" …")
        cell = Bbox.from_bounds(left / width, 0, _CELL / width, 1)  # very wide letters are cut at the edge of the cell
        figure.text(left / width, (top - image_height - 0.05) / height, "\n".join(lines), fontsize=7, va="top",
                    linespacing=1.15, clip_on=True, clip_box=TransformedBbox(cell, figure.transFigure),
                    parse_math=False)  # a dollar sign in a caption is not mathematics
    save_png(figure, path, dpi=150)


def curves(series: Mapping[str, tuple], path, xlabel: str, ylabel: str, title: str) -> None:
    """Write a PNG with one line per entry; up to 40 lines look different.

    Args:
        series: {name: (x, y)}, or {name: (x, y, half)} for bars of y +- half; nan leaves a gap, or a bar out.
        path: the PNG file.
        xlabel: name of the horizontal axis.
        ylabel: name of the vertical axis.
        title: text above the axes.
    """
    figure = Figure(figsize=(7, 4.3), layout="constrained")
    axes = figure.subplots()
    looks = itertools.cycle([(style, f"C{color}") for style in ("-", "--", ":", "-.") for color in range(10)])
    for (name, (x, y, *half)), (style, color) in zip(series.items(), looks):
        axes.errorbar(x, y, half[0] if half else None, linestyle=style, color=color, marker="o", markersize=3,
                      capsize=2, elinewidth=1, label=name)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if series:
        legend = figure.legend(loc="outside right upper", fontsize=8, ncols=-(-len(series) // 20), frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    axes.set_title(title, fontsize=11, wrap=True)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_parse_math(False)
    save_png(figure, path)


def to_rgb(images, spectrogram: bool = False) -> np.ndarray:
    """Images as they are displayed.

    Args:
        images: (M, H, W, C) in [0, 1], or uint8, or video clips (M, T, H, W, C), whose middle frame is taken; channels
            as in `image_grid`.
        spectrogram: as in `image_grid`.

    Returns:
        (M, H, W, 3) uint8.
    """
    images = np.asarray(images)
    images = _middle_frames(images / 255 if images.dtype == np.uint8 else np.clip(images.astype(np.float32), 0, 1))
    if spectrogram:
        images = matplotlib.colormaps["magma"](images[:, ::-1].mean(-1))[..., :3]
    elif images.shape[-1] != 3:
        images = np.repeat(images.mean(-1, keepdims=True), 3, -1)
    return np.round(255 * images).astype(np.uint8)


def overlay_weights(images, weights) -> np.ndarray:
    """Pixel weights in color over gray images, each on its own scale.

    Args:
        images: (M, H, W, 3) uint8.
        weights: (M, H, W).

    Returns:
        (M, H, W, 3) uint8.
    """
    weights = np.asarray(weights, np.float32)
    low, high = weights.min((1, 2), keepdims=True), weights.max((1, 2), keepdims=True)
    share = np.where(high > low, (weights - low) / np.maximum(high - low, 1e-9), 0)
    color = 255 * matplotlib.colormaps["inferno"](share)[..., :3]
    gray = np.asarray(images, np.float32).mean(-1, keepdims=True)
    return np.round(0.4 * gray + 0.6 * color).astype(np.uint8)


def identity_change_rgb(matrix) -> np.ndarray:
    """P - I of a correspondence P (M, M) as (M, M, 3) uint8: red is more than the identity, blue less, white equal."""
    change = np.asarray(matrix, np.float64) - np.eye(len(matrix))
    limit = np.abs(change).max() or 1.0
    return np.round(255 * matplotlib.colormaps["RdBu_r"](change / limit / 2 + 0.5)[..., :3]).astype(np.uint8)


def data_uri(image, side: int = 112, photo: bool = True) -> str:
    """An image as a data URI: large photos as JPEG, all else as PNG.

    Args:
        image: (H, W, 3) uint8.
        side: shrink it to at most this many pixels per side.
        photo: whether JPEG may be used.
    """
    drawn = Image.fromarray(np.ascontiguousarray(image))
    if max(drawn.size) > side:
        drawn.thumbnail((side, side), Image.Resampling.BOX)
    buffer = io.BytesIO()
    kind = "JPEG" if photo and drawn.size[0] * drawn.size[1] > _LOSSLESS_PIXELS else "PNG"
    drawn.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def png_uri(path) -> str:
    """A PNG file as a data URI. Raises UserError if it cannot be read, or is none."""
    try:
        data = Path(path).read_bytes()
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"the figure '{path}' cannot be read ({getattr(error, 'strerror', None) or 'it is no PNG file'}); "
                        "draw it again.") from None
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _middle_frames(images: np.ndarray) -> np.ndarray:
    """Images as they are; of video clips (M, T, H, W, C) the middle frames (M, H, W, C)."""
    return images[:, images.shape[1] // 2] if images.ndim == 5 else images
