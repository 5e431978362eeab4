"""`Pairs`: a data set of images and captions, as every later stage sees it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.log_mel import LogMel
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest

LONGEST_CAPTION = 100_000
"""Characters; more is a broken file or an attack, and would hold up every tokenizer."""


def caption_error(caption) -> str | None:
    """Why something cannot be a caption, in words; None for one that can."""
    if not isinstance(caption, str) or not caption.strip():
        return "empty or not text"
    if len(caption) > LONGEST_CAPTION:
        return f"longer than {LONGEST_CAPTION:,} characters"
    try:
        caption.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can spell
        return "no valid Unicode"
    return None


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a data set.

    images: (N, H, W, C) uint8: an array in host memory, or `LazyImages`, which decode rows when asked for them. Clips
      are (N, T, H, W, C), log-mels of sounds (N, mels, frames, 1).
    captions: K strings, K >= N.
    image_of: (K,) int64, the image that caption k truly describes.
    caption_ids: (K,) int64, the data set's own caption numbers (rows of a precomputed feature file).
    attributes: columns of (N,) arrays, one value an image (may be empty).
    """

    images: np.ndarray | LazyImages
    captions: tuple[str, ...]
    image_of: np.ndarray
    caption_ids: np.ndarray
    attributes: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        n, k = len(self.images), len(self.captions)
        if n == 0 or k == 0:
            raise UserError(f"a split has {n} images and {k} captions; every split needs at least one of each.")
        if wrong := [(row, why) for row, caption in enumerate(self.captions) if (why := caption_error(caption))]:
            raise UserError(f"{len(wrong)} captions of a split are {wrong[0][1]}, the first is number {wrong[0][0]}; "
                            "mend or remove them.")
        if self.images.dtype != np.uint8 or self.images.ndim not in (4, 5):
            raise UserError(f"images must be (N, H, W, C) or clips (N, T, H, W, C), uint8, not {self.images.dtype} of "
                            f"shape {self.images.shape}.")
        if self.image_of.shape != (k,) or self.caption_ids.shape != (k,):
            raise UserError(f"{k} captions need image_of and caption_ids of shape ({k},), not "
                            f"{self.image_of.shape} and {self.caption_ids.shape}.")
        if self.image_of.min() < 0 or self.image_of.max() >= n:
            raise UserError(f"image_of must point at one of {n} images, but it reaches from "
                            f"{self.image_of.min()} to {self.image_of.max()}.")
        for name, column in self.attributes.items():
            if len(column) != n:
                raise UserError(f"attribute '{name}' has {len(column)} values for {n} images; give one an image.")

    @property
    def fingerprint(self) -> str:
        """sha256 over images, captions and their pairing. Of lazy images, their encoded bytes count: see there."""
        images = self.images.fingerprint if isinstance(self.images, LazyImages) else self.images
        return digest(images, list(self.captions), self.image_of, self.caption_ids)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A data set: three splits of image-caption pairs. Never noisy itself: noise is a separate file (`noise.py`).

    Pairs collected from the web may come mismatched: which of them are is not known, and nothing here says it.
    skipped: how many samples of the source a reader left out, by reason (may be empty).
    log_mel: what the images are pictures of, where they are log-mels of sounds (None: they are just images).
    """

    name: str
    train: Split
    val: Split
    test: Split
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    log_mel: LogMel | None = None

    def __post_init__(self):
        shapes = {split.images.shape[1:] for split in (self.train, self.val, self.test)}
        if len(shapes) != 1:
            raise UserError(f"train, val and test images of '{self.name}' differ in shape: {sorted(shapes)}.")

    @property
    def fingerprint(self) -> str:
        """sha256 over the three splits: what noise files, caches and experts are keyed by."""
        return digest(self.train.fingerprint, self.val.fingerprint, self.test.fingerprint)
