"""Noisy correspondence: which image each *training* caption is paired with (docs/method.md, section 1).

Only the train split can be corrupted: a `Noise` holds no other. Protocols (rates of different ones do not compare):
  image           a random share of the images is permuted, all captions of an image move together (RCL, DECL);
  caption         a random share of the caption rows permute their images among themselves (NCR);
  near_duplicate  as image, but images with similar captions swap theirs (this work, `swap_similar`);
  natural         nothing is moved, and nobody knows which pairs are mismatched; what data that are not generated have
                  unless another protocol is named (`config/noise.py`).
The first two are plain random permutations: a chosen item may stay where it was, so the true rate is slightly under
the requested one (by 1/N at most, on average).
"""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.data.structured_noise import swap_similar
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest, parse_json, write_array, write_arrays
from mdw_jax.io.numpy_files import numpy_file
from mdw_jax.runtime.rng import named_generator

FORMAT = "mdw-noise-1"
# What random streams and digests call a protocol that was renamed since: earlier draws keep their numbers.
_STREAM_NAMES = {"near_duplicate": "similar"}


@dataclasses.dataclass(frozen=True)
class Noise:
    """One noise draw for the K training captions of a data set.

    Attributes:
        protocol: one of `PROTOCOLS`, or "external" (an imported index file).
        rate: the requested rate, in [0, 1] ("external": the measured rate; "natural": the assumed rate).
        seed: of the draw ("external": -1).
        fingerprint: `Pairs.fingerprint` of the data set it was drawn for.
        image_of: (K,) int64, the image each training caption is paired with under this draw.
        true_image_of: (K,) int64, the image it truly describes ("natural": the image it came with).
    """

    protocol: str
    rate: float
    seed: int
    fingerprint: str
    image_of: np.ndarray
    true_image_of: np.ndarray

    @property
    def mismatched(self) -> np.ndarray | None:
        """(K,) bool: the caption is paired with an image it does not describe; None where nobody knows."""
        return None if self.protocol == "natural" else self.image_of != self.true_image_of

    @property
    def true_rate(self) -> float | None:
        """The fraction of captions that are mismatched; None where nobody knows."""
        return None if self.protocol == "natural" else float(self.mismatched.mean())

    @property
    def label(self) -> str:
        """The true rate for a table: "40%", or "natural"."""
        return "natural" if self.protocol == "natural" else f"{self.true_rate:.0%}"

    @property
    def sha256(self) -> str:
        """sha256 (hex) over all fields."""
        return digest(FORMAT, _STREAM_NAMES.get(self.protocol, self.protocol), self.rate, self.seed, self.fingerprint,
                      self.image_of, self.true_image_of)


def draw(pairs: Pairs, protocol: str, rate: float, seed: int) -> Noise:
    """Draw noise for `pairs.train`: round(rate * N) images or round(rate * K) captions change places at random.

    Args:
        pairs: the data set.
        protocol: one of `PROTOCOLS`; see the module docstring.
        rate: the share to mismatch, in [0, 1]. Rate 0 is the identity in every protocol, and so is "natural" at any.
        seed: of the draw, 0 or more.
    Raises:
        UserError: an unknown protocol, a rate outside [0, 1], a negative seed, or protocol "none" with a rate above 0.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"there is no noise protocol '{protocol}'; choose one of {', '.join(PROTOCOLS)}.")
    if not 0 <= rate <= 1:
        raise UserError(f"the noise rate must be between 0 and 1, not {rate}.")
    if protocol == "none" and rate > 0:
        raise UserError(f"noise protocol 'none' goes with rate 0, not {rate}; choose image, caption or near_duplicate.")
    if seed < 0:
        raise UserError(f"the noise seed must be 0 or more, not {seed}.")
    generator = named_generator(seed, "noise", _STREAM_NAMES.get(protocol, protocol))
    image_of = PROTOCOLS[protocol](pairs.train, rate, generator)
    return Noise(protocol, float(rate), int(seed), pairs.fingerprint, image_of, _true_image_of(pairs.train))


def _true_image_of(train: Split) -> np.ndarray:
    return np.asarray(train.image_of, np.int64)


def _unmoved(train: Split, rate: float, generator: np.random.Generator) -> np.ndarray:
    return _true_image_of(train)


def _shuffle_images(train: Split, rate: float, generator: np.random.Generator) -> np.ndarray:
    return _shuffled(np.arange(len(train.images), dtype=np.int64), rate, generator)[_true_image_of(train)]


def _shuffle_captions(train: Split, rate: float, generator: np.random.Generator) -> np.ndarray:
    return _shuffled(_true_image_of(train), rate, generator)


def _swap_near_duplicates(train: Split, rate: float, generator: np.random.Generator) -> np.ndarray:
    return swap_similar(train, rate, generator)[_true_image_of(train)]


# (train split, rate, generator) -> (K,) int64, the image that each caption is paired with.
PROTOCOLS: dict[str, Callable[[Split, float, np.random.Generator], np.ndarray]] = {
    "none": _unmoved, "image": _shuffle_images, "caption": _shuffle_captions, "near_duplicate": _swap_near_duplicates,
    "natural": _unmoved}


def _shuffled(values: np.ndarray, rate: float, generator: np.random.Generator) -> np.ndarray:
    """`values` with a random round(rate * len) of them permuted among themselves; the rest stay."""
    chosen = generator.permutation(len(values))[:round(rate * len(values))]
    result = values.copy()
    result[chosen] = values[generator.permutation(chosen)]
    return result


def save(noise: Noise, path) -> Path:
    """Write a draw as one .npz (no pickle), atomically, with its sha256; the same draw gives the same bytes."""
    meta = {"format": FORMAT, "protocol": noise.protocol, "rate": noise.rate, "seed": noise.seed,
            "fingerprint": noise.fingerprint, "true_rate": noise.true_rate, "sha256": noise.sha256}
    return write_arrays(path, meta=np.array(json.dumps(meta, sort_keys=True)), image_of=noise.image_of,
                        true_image_of=noise.true_image_of)


def load(path, pairs: Pairs | None = None) -> Noise:
    """Read a draw written by `save`.

    Args:
        path: the .npz file.
        pairs: the data set that it must have been drawn for; None: not checked.
    Raises:
        UserError: the file is missing, damaged or no noise file, or belongs to another data set.
    """
    try:
        with numpy_file(io.BytesIO(_bytes(path))) as file:
            meta = parse_json(str(file["meta"]))
            noise = Noise(meta["protocol"], meta["rate"], meta["seed"], meta["fingerprint"], file["image_of"],
                          file["true_image_of"])
            intact = meta["format"] == FORMAT and meta["sha256"] == noise.sha256
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is not a noise file or is damaged ({error}); draw it again.") from error
    if not intact:
        raise UserError(f"'{path}' is damaged: its contents do not match its sha256; draw it again.")
    if pairs is not None and (fingerprint := pairs.fingerprint) != noise.fingerprint:
        raise UserError(f"'{path}' was drawn for data set {noise.fingerprint[:12]}, but this one is "
                        f"{fingerprint[:12]}; draw the noise again or use the data set it was drawn for.")
    return noise


def read_index(path, pairs: Pairs) -> Noise:
    """Read an index file `v` of the noisy-correspondence literature.

    Such a file does not say what it was drawn for: that it fits `pairs` in length and range is all that is checked.

    Args:
        path: a .npy file of integers. (K,): caption i, in the order of `pairs.train.captions`, is paired with image
            v[i] (NCR, L2RM). (N,): the captions of image i are paired with image v[i] (RCL). K = N is read as (K,).
        pairs: the data set; the index is of its train split.
    Raises:
        UserError: a wrong length, indices out of range, or an image left with no caption.
    """
    try:
        with numpy_file(io.BytesIO(_bytes(path))) as index:
            pass
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is not a readable .npy index file ({error}); give the index file of this "
                        "data set.") from error
    if not isinstance(index, np.ndarray) or index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
        kind = f"{index.dtype} {index.shape}" if isinstance(index, np.ndarray) else "an .npz"
        raise UserError(f"'{path}' holds {kind}, not one row of integers; give an (N,) or (K,) .npy.")
    n, true = len(pairs.train.images), np.asarray(pairs.train.image_of, np.int64)
    if len(index) not in (n, len(true)):
        raise UserError(f"'{path}' has {len(index)} entries, but the train split has {n} images and {len(true)} "
                        "captions; use the index file of this data set.")
    if index.min() < 0 or index.max() >= n:
        raise UserError(f"'{path}' holds indices from {index.min()} to {index.max()}, but there are {n} images; "
                        "use the index file of this data set.")
    index = index.astype(np.int64)
    image_of = index if len(index) == len(true) else index[true]
    bare = np.setdiff1d(true, image_of)
    if len(bare):
        raise UserError(f"'{path}' leaves {len(bare)} images without a caption, the first is image {bare[0]}; "
                        "a noise index must re-pair images, not drop them.")
    return Noise("external", float(np.mean(image_of != true)), -1, pairs.fingerprint, image_of, true)


def write_index(noise: Noise, path, form: str) -> Path:
    """Write a draw as a .npy index file of int64.

    Args:
        noise: the draw.
        path: the file.
        form: "caption" (K,) or "image" (N,), as `read_index` reads them.
    Raises:
        UserError: another form, or form "image" where captions of one image are paired with different images.
    """
    if form not in ("caption", "image"):
        raise UserError(f"there is no index form '{form}'; choose caption or image.")
    index = noise.image_of if form == "caption" else _image_index(noise)
    return write_array(path, index)


def _image_index(noise: Noise) -> np.ndarray:
    """(N,) int64: where the captions of each image go."""
    index = np.arange(max(noise.true_image_of.max(), noise.image_of.max()) + 1, dtype=np.int64)
    index[noise.true_image_of] = noise.image_of
    if np.any(index[noise.true_image_of] != noise.image_of):
        raise UserError("this draw moves captions of one image to different images, so it has no index by image; "
                        "write the form 'caption'.")
    if len(index) == len(noise.image_of) and np.any(index != noise.image_of):
        raise UserError("there are as many captions as images, so an index by image would be read as one by caption; "
                        "write the form 'caption'.")
    return index


def _bytes(path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror}); check the path.") from error
