"""`scenes`: a generated data set of captioned images, so that everything runs without a download (this work).

An image holds one to three colored, textured shapes on a 3x3 grid over a background. It is drawn with exactly rounded
arithmetic only (no sine, no matrix product), so that all machines draw the same bytes, and the data set's fingerprint,
which noise files and experts are keyed by, is the same everywhere.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.data.synthetic.scene_captions import (
    BACKGROUND_KINDS,
    BACKGROUNDS,
    COLORS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    caption,
    pick,
)
from mdw_jax.errors import UserError
from mdw_jax.runtime.rng import named_generator

HUES = {"red": 0, "orange": 28, "yellow": 55, "green": 125, "turquoise": 176, "blue": 222, "purple": 275, "pink": 328}
"""Degrees; jittered by at most `HUE_JITTER`, less than half the smallest gap, so that a color word is always true."""
HUE_JITTER = 6.0
TONES = {"black": (0.07, 0.07, 0.08), "gray": (0.48, 0.48, 0.48), "white": (0.95, 0.95, 0.95),
         "brown": (0.38, 0.25, 0.15), "navy": (0.08, 0.11, 0.36), "mint": (0.66, 0.90, 0.74),
         "sand": (0.87, 0.78, 0.57), "lilac": (0.79, 0.69, 0.91)}
"""Background colors (RGB in [0, 1]): darker or paler than any shape, so that shapes stand out."""

SKEWED = "red"
"""The color that `skew` makes more frequent."""

_CELLS = (0.22, 0.5, 0.78)  # centers of the grid's rows and columns, as shares of the image's side
_RADII = {"large": 0.19, "small": 0.12}  # half a shape's extent, likewise
_PERIODS = {"large": 0.66, "small": 0.95}  # texture repeats in radii: about 4 and 3.5 pixels at 32
_SAMPLES = 4  # per pixel and axis
_SPECKLES = 12  # per side of a speckled background
_REACH = 1.3  # no shape extends further than this many radii from its center
_DIRECTIONS = ((1.0, 0.0), (0.0, 1.0), (math.sqrt(0.5), math.sqrt(0.5)), (math.sqrt(0.5), -math.sqrt(0.5)))


@dataclasses.dataclass(frozen=True)
class Thing:
    """One shape: the facts that captions state, and jitters that they do not (lengths as shares of the image's side)."""

    shape: str
    color: str
    size: str
    texture: str
    position: str
    row: int
    column: int
    x: float
    y: float
    radius: float
    slope: float  # tangent of half the turn
    rgb: np.ndarray
    direction: tuple[float, float]  # the texture's
    phase: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image before it is drawn: its things, large ones first, its background and its light."""

    things: tuple[Thing, ...]
    background: str
    background_kind: str
    direction: tuple[float, float]
    flip: bool
    period: float
    phase: float
    speckles: np.ndarray
    brightness: float
    slant: tuple[float, float]


def scenes(train: int = 2000, val: int = 250, test: int = 500, size: int = 32, seed: int = 0,
           captions_per_image: int = 5, skew: float = 0.0) -> Pairs:
    """Draw a data set of captioned images.

    Image i of a split is a function of (seed, split, i) alone: a longer split extends a shorter one, more captions
    extend fewer, and another `size` shows the same scenes. Attributes, one value for each image: `objects` (1 to 3),
    `background`, `background_kind`, and for the first object `shape`, `color`, `size`, `texture`, `position`; the same
    for the others as `second_shape` and so on, "none" where there is no such object. Caption numbers count test, val,
    then train, so that a longer train split leaves those of the others as they were.

    Args:
        train, val, test: images in each split.
        size: pixels a side.
        seed: of the scenes.
        captions_per_image: captions of each image.
        skew: the chance, for each training image, that its first object is made red whatever was drawn: the share of
            red rises from 1/8 to 1/8 + 7/8 skew. Val, test and the other training images stay as they are.
    Raises:
        UserError: a count below 1, `size` below 16, `seed` below 0, any of them no whole number, or a skew outside
            [0, 1].
    """
    for name, value, least in (("train", train, 1), ("val", val, 1), ("test", test, 1), ("size", size, 16),
                               ("seed", seed, 0), ("captions_per_image", captions_per_image, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise UserError(f"scenes: {name} is {value!r}; give a whole number of at least {least}.")
    if not isinstance(skew, (int, float)) or not 0 <= skew <= 1:
        raise UserError(f"scenes: skew is {skew!r}; give a number from 0 to 1.")
    splits: dict[str, Any] = {}
    first = 0
    for name, count in (("test", test), ("val", val), ("train", train)):
        splits[name] = _split(name, count, size, seed, captions_per_image, first, skew if name == "train" else 0.0)
        first += count * captions_per_image
    return Pairs("scenes", **splits)


def _split(name: str, count: int, size: int, seed: int, captions_per_image: int, first: int, skew: float) -> Split:
    drawn, captions = [], []
    images = np.empty((count, size, size, 3), np.uint8)
    for index in range(count):
        scene = draw_scene(named_generator(seed, "scenes", name, index))
        chance = named_generator(seed, "scenes", name, index, "skew")
        if chance.random() < skew:
            scene = _made_red(chance, scene)
        images[index] = render(scene, size, named_generator(seed, "scenes", name, index, "pixels"))
        words = named_generator(seed, "scenes", name, index, "captions")
        captions.extend(caption(words, scene) for _ in range(captions_per_image))
        drawn.append(scene)
    return Split(
        images=images,
        captions=tuple(captions),
        image_of=np.repeat(np.arange(count, dtype=np.int64), captions_per_image),
        caption_ids=np.arange(first, first + len(captions), dtype=np.int64),
        attributes=_attributes(drawn),
    )


def _attributes(drawn: list[Scene]) -> dict[str, np.ndarray]:
    columns = {"objects": np.array([len(scene.things) for scene in drawn])}
    for fact in ("background", "background_kind"):
        columns[fact] = np.array([getattr(scene, fact) for scene in drawn])
    for place, prefix in enumerate(("", "second_", "third_")):
        for fact in ("shape", "color", "size", "texture", "position"):
            columns[prefix + fact] = np.array([getattr(scene.things[place], fact) if place < len(scene.things)
                                               else "none" for scene in drawn])
    return columns


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw one scene's facts and jitters; its colors and its grid cells differ, so relations are unambiguous."""
    share = rng.random()
    count = 1 if share < 0.25 else 2 if share < 0.7 else 3
    # Large ones first: the first thing, which captions name most, is then the most visible one.
    sizes = sorted((pick(rng, tuple(SIZES)) for _ in range(count)), key=tuple(SIZES).index)
    cells = _draw_cells(rng, sizes)
    colors = list(COLORS)
    things = []
    for size, (row, column) in zip(sizes, cells):
        color = colors.pop(int(rng.random() * len(colors)))
        hue = HUES[color] + HUE_JITTER * _spread(rng)
        things.append(Thing(
            shape=pick(rng, tuple(SHAPES)), color=color, size=size, texture=pick(rng, tuple(TEXTURES)),
            position=tuple(POSITIONS)[3 * row + column], row=row, column=column,
            x=_CELLS[column] + 0.025 * _spread(rng), y=_CELLS[row] + 0.025 * _spread(rng),
            radius=_RADII[size] * (1 + 0.08 * _spread(rng)), slope=0.08 * _spread(rng),
            rgb=_vivid(rng, color, hue),
            direction=pick(rng, _DIRECTIONS), phase=rng.random()))
    return Scene(
        things=tuple(things), background=pick(rng, tuple(BACKGROUNDS)),
        background_kind=pick(rng, tuple(BACKGROUND_KINDS)), direction=pick(rng, _DIRECTIONS), flip=rng.random() < 0.5,
        period=0.2 + 0.1 * rng.random(), phase=rng.random(), speckles=rng.random((_SPECKLES, _SPECKLES)),
        brightness=0.94 + 0.12 * _spread(rng), slant=(0.1 * _spread(rng), 0.1 * _spread(rng)))


def _made_red(rng, scene: Scene) -> Scene:
    """The scene with a red first thing; another that was red gets the color of the first, so that colors differ."""
    first = scene.things[0]
    if first.color == SKEWED:
        return scene
    colors = {first.color: (SKEWED, _vivid(rng, SKEWED, HUES[SKEWED] + HUE_JITTER * _spread(rng))),
               SKEWED: (first.color, first.rgb)}
    changed = (dataclasses.replace(thing, color=colors[thing.color][0], rgb=colors[thing.color][1])
               if thing.color in colors else thing for thing in scene.things)
    return dataclasses.replace(scene, things=tuple(changed))


def _draw_cells(rng, sizes: list[str]) -> list[tuple[int, int]]:
    """Distinct (row, column) cells, redrawn until no two large things share an edge (they would overlap)."""
    while True:
        free = [(row, column) for row in range(3) for column in range(3)]
        cells = [free.pop(int(rng.random() * len(free))) for _ in sizes]
        large = [cell for cell, size in zip(cells, sizes) if size == "large"]
        if all(abs(a[0] - b[0]) + abs(a[1] - b[1]) != 1 for a in large for b in large):
            return cells


def _vivid(rng, color: str, hue: float) -> np.ndarray:
    """A bright, saturated RGB of that hue (degrees); pink is a pale one."""
    return _rgb(hue, (0.55 if color == "pink" else 0.92) + 0.06 * _spread(rng), 0.93 + 0.06 * _spread(rng))


def _spread(rng) -> float:
    """Uniform in [-1, 1)."""
    return 2 * rng.random() - 1


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV (degrees, [0, 1], [0, 1]) to RGB, piecewise linear."""
    sector = (hue / 60 + np.array([0.0, 4.0, 2.0])) % 6
    return value * (1 - saturation * (1 - np.clip(np.abs(sector - 3) - 1, 0, 1)))


def render(scene: Scene, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `scene` as (size, size, 3) uint8; `rng` draws the pixel noise only."""
    middle = (np.arange(size) + 0.5) / size
    y, x = middle[:, None], middle[None, :]
    image = _background(scene, x, y)
    for thing in scene.things:  # large ones first, so that a small one is never hidden
        _paint(image, thing, size)
    light = scene.brightness + scene.slant[0] * (x - 0.5) + scene.slant[1] * (y - 0.5)
    noise = rng.random((size, size, 3)) + rng.random((size, size, 3)) - 1
    image = image * light[:, :, None] + 0.06 * noise
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _background(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The empty scene, (size, size, 3) in [0, 1]: a tone, and a lighter or darker one by its pattern."""
    along = x * scene.direction[0] + y * scene.direction[1]
    if scene.background_kind == "gradient":
        pattern = (along - along.min()) / (along.max() - along.min())
        pattern = 1 - pattern if scene.flip else pattern
    elif scene.background_kind == "striped":
        # A clipped triangle wave: stripes with edges soft enough not to alias at small sizes.
        wave = np.abs((along / scene.period + scene.phase) % 1 - 0.5) * 4 - 1
        pattern = np.clip(0.5 + 2 * wave, 0, 1)
    elif scene.background_kind == "speckled":
        rows, columns = (y[:, 0] * _SPECKLES).astype(int), (x[0] * _SPECKLES).astype(int)
        pattern = (scene.speckles[rows[:, None], columns[None, :]] < 0.3).astype(float)
    elif scene.background_kind == "plain":
        pattern = np.zeros((len(y), x.shape[1]))
    else:
        raise ValueError(f"there is no background of kind '{scene.background_kind}'")
    tone = np.array(TONES[scene.background])
    other = tone + 0.28 if max(TONES[scene.background]) < 0.45 else tone * 0.75
    return tone + pattern[:, :, None] * (other - tone)


def _paint(image: np.ndarray, thing: Thing, size: int) -> None:
    """Draw `thing` over `image` in place: for each pixel the share of samples in it, and in its texture's marks."""
    reach = _REACH * thing.radius
    left, right = max(0, int((thing.x - reach) * size)), min(size, int((thing.x + reach) * size) + 1)
    top, bottom = max(0, int((thing.y - reach) * size)), min(size, int((thing.y + reach) * size) + 1)
    fine = size * _SAMPLES
    x = ((np.arange(left * _SAMPLES, right * _SAMPLES) + 0.5) / fine - thing.x) / thing.radius
    y = ((np.arange(top * _SAMPLES, bottom * _SAMPLES) + 0.5) / fine - thing.y) / thing.radius
    square = thing.slope * thing.slope
    cosine, sine = (1 - square) / (1 + square), 2 * thing.slope / (1 + square)
    u = cosine * x[None, :] - sine * y[:, None]
    v = sine * x[None, :] + cosine * y[:, None]
    inside = _INSIDE[thing.shape](u, v)
    cover = _share(inside)[:, :, None]
    marks = _share(inside & _marks(thing, u, v))[:, :, None]
    # Pale marks on deep colors and dark ones on bright colors; both keep the hue visible.
    mark = thing.rgb * 0.25 if thing.color in ("yellow", "turquoise", "pink") else 0.1 * thing.rgb + 0.9
    patch = image[top:bottom, left:right]
    patch[:] = patch * (1 - cover) + thing.rgb * (cover - marks) + mark * marks


def _share(inside: np.ndarray) -> np.ndarray:
    """Box average of (h * S, w * S) booleans to (h, w)."""
    height, width = inside.shape[0] // _SAMPLES, inside.shape[1] // _SAMPLES
    return inside.reshape(height, _SAMPLES, width, _SAMPLES).sum(axis=(1, 3)) / _SAMPLES**2


# Which points (u right, v down, in radii from the center) lie in each shape.
_INSIDE = {
    "circle": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.9,
    "triangle": lambda u, v: (v <= 0.85) & (np.abs(u) <= 0.6 * (v + 1.0)),
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) <= 0.33) & (np.maximum(np.abs(u), np.abs(v)) <= 1.05),
    "ring": lambda u, v: np.abs(u * u + v * v - 0.7) <= 0.4,
    "diamond": lambda u, v: np.abs(u) + np.abs(v) <= 1.2,
}


def _marks(thing: Thing, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points are in the marks of the thing's texture."""
    if thing.texture == "plain":
        return np.zeros(u.shape, bool)
    period = _PERIODS[thing.size]
    along = ((u * thing.direction[0] + v * thing.direction[1]) / period + thing.phase) % 1
    if thing.texture == "striped":
        return along < 0.45
    if thing.texture == "dotted":
        across = ((u * thing.direction[1] - v * thing.direction[0]) / period + thing.phase) % 1
        return np.square(along - 0.5) + np.square(across - 0.5) < 0.09
    raise ValueError(f"there is no texture '{thing.texture}'")
