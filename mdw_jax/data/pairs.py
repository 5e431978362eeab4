"""`Pairs`: a data set of images and captions, as all later stages see it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.log_mel import LogMel
from mdw_jax.data.problems import caption_problem
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest
from mdw_jax.io.packed_strings import PackedStrings


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        images: (N, H, W, C) uint8, an array in host memory, or `LazyImages`, which decode the rows they are indexed
            with. Video clips are (N, T, H, W, C), log-mels of audio (N, mels, frames, 1).
        captions: K strings, K >= N; millions are best `PackedStrings`.
        image_of: (K,) int64, the image that caption k truly describes.
        caption_ids: (K,) int64, the data set's own caption numbers (rows of a precomputed feature file).
        attributes: {column: (N,) array or `PackedStrings`}, one value for each image (may be empty).
    """

    images: np.ndarray | LazyImages
    captions: tuple[str, ...] | PackedStrings
    image_of: np.ndarray
    caption_ids: np.ndarray
    attributes: Mapping[str, np.ndarray | PackedStrings] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        n, k = len(self.images), len(self.captions)
        if n == 0 or k == 0:
            raise UserError(f"a split has {n} images and {k} captions; every split needs at least one of each.")
        if errors := [(row, error) for row, caption in enumerate(self.captions) if (error := caption_problem(caption))]:
            raise UserError(f"{len(errors)} captions of a split cannot be used, the first is number {errors[0][0]} "
                            f"({errors[0][1]}); fix or remove them.")
        if self.images.dtype != np.uint8 or self.images.ndim not in (4, 5):
            raise UserError(f"images must be (N, H, W, C) or video clips (N, T, H, W, C), uint8, not "
                            f"{self.images.dtype} of shape {self.images.shape}.")
        if self.image_of.shape != (k,) or self.caption_ids.shape != (k,):
            raise UserError(f"{k} captions need image_of and caption_ids of shape ({k},), not "
                            f"{self.image_of.shape} and {self.caption_ids.shape}.")
        if self.image_of.min() < 0 or self.image_of.max() >= n:
            raise UserError(f"image_of must point at one of {n} images, but it reaches from "
                            f"{self.image_of.min()} to {self.image_of.max()}.")
        for name, column in self.attributes.items():
            if len(column) != n:
                raise UserError(f"attribute '{name}' has {len(column)} values for {n} images; give one for each image.")

    @property
    def fingerprint(self) -> str:
        """sha256 over images, captions and their pairing. Of `LazyImages` their own fingerprint counts."""
        images = self.images.fingerprint if isinstance(self.images, LazyImages) else self.images
        captions = self.captions if isinstance(self.captions, PackedStrings) else list(self.captions)
        return digest(images, captions, self.image_of, self.caption_ids)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"Split({len(self.images)} images of {shape}, {len(self.captions)} captions)"


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A data set: three splits of image-caption pairs. Never noisy itself: noise is a separate file (`noise.py`).

    Pairs collected from the web may come mismatched; nobody knows which, and nothing here tells.

    Attributes:
        name: what the data set is called.
        train, val, test: its splits; their images have one shape.
        skipped: how many samples of the source the reader left out, by reason (`problems.REASONS`; may be empty).
        notes: what the reader has to say of how it read the source, in sentences.
        log_mel: the settings of the log-mels, where the images are log-mels of audio; None otherwise.
    """

    name: str
    train: Split
    val: Split
    test: Split
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    log_mel: LogMel | None = None

    def __post_init__(self):
        shapes = {split.images.shape[1:] for split in (self.train, self.val, self.test)}
        if len(shapes) != 1:
            raise UserError(f"train, val and test images of '{self.name}' differ in shape: {sorted(shapes)}.")

    @property
    def fingerprint(self) -> str:
        """sha256 over the three splits. Noise files, caches and experts are keyed by it."""
        return digest(self.train.fingerprint, self.val.fingerprint, self.test.fingerprint)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.train.images.shape[1:]))
        return (f"Pairs('{self.name}': train {len(self.train.images)} images of {shape} with "
                f"{len(self.train.captions)} captions, val {len(self.val.images)} with {len(self.val.captions)}, "
                f"test {len(self.test.images)} with {len(self.test.captions)})")
