"""Made pairs in tar shards, as many as wanted: small enough to write, and to read, millions of them.

A pair has hidden factors; its image of 8 x 8 pixels is a fixed random mixture of them, with noise, and its caption has a
word for the value of each. A share of the captions is exchanged, so that there is something to find.
"""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from mdw_jax.runtime.rng import named_generator

SIDE = 8  # of an image, pixels
FACTORS, VALUES = 10, 8  # hidden factors of a pair, and values of each: a word for each value
SHARD = 10_000  # pairs in a shard
MISMATCHED = 0.3  # share of the captions that are exchanged inside their shard
_NOISE = 0.5  # standard deviation of a pixel around what the factors say, in units of what these make


def write_shards(directory: Path, pairs: int, seed: int) -> list[Path]:
    """Tar shards of made pairs, `KEY.png` and `KEY.txt`; shards that are there already stay.

    Args:
        directory: where they go; it is made.
        pairs: how many; the last shard may be smaller.
        seed: of what is drawn; a shard is the same however many there are.

    Returns:
        The shards, in order.
    """
    directory.mkdir(parents=True, exist_ok=True)
    mixture = named_generator(seed, "scale", "mixture").normal(size=(FACTORS, SIDE * SIDE * 3)) / np.sqrt(FACTORS)
    paths = []
    for start in range(0, pairs, SHARD):
        count = min(SHARD, pairs - start)
        path = directory / f"seed{seed}-{start // SHARD:05}-{count}.tar"
        if not path.exists():
            part = path.with_suffix(".part")
            _write_shard(part, start, *_draw(named_generator(seed, "scale", start, count), mixture, count))
            os.replace(part, path)
        paths.append(path)
    return paths


def _draw(generator: np.random.Generator, mixture: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 8, 3) uint8 and the values of the factors that the captions name (n, FACTORS)."""
    values = generator.integers(VALUES, size=(count, FACTORS))
    centred = (values - (VALUES - 1) / 2) / (VALUES / 4)
    pixels = centred @ mixture + _NOISE * generator.normal(size=(count, mixture.shape[1]))
    images = np.clip(128 + 48 * pixels, 0, 255).astype(np.uint8).reshape(count, SIDE, SIDE, 3)
    exchanged = generator.permutation(count)[: round(MISMATCHED * count)]
    named = values.copy()
    named[exchanged] = values[np.roll(exchanged, 1)]
    return images, named


def _write_shard(path: Path, start: int, images: np.ndarray, named: np.ndarray) -> None:
    with tarfile.open(path, "w") as archive:
        for row, (image, values) in enumerate(zip(images, named, strict=True)):
            picture = io.BytesIO()
            Image.fromarray(image).save(picture, "png")
            caption = " ".join(f"{chr(97 + factor)}{value}" for factor, value in enumerate(values))
            for extension, data in (("png", picture.getvalue()), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{start + row:09}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
