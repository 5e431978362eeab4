"""How many images and captions a run has, without decoding any of them."""

import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mdw_jax.data.pairs import Pairs
from mdw_jax.data.registry import settings_of
from mdw_jax.errors import UserError
from mdw_jax.io.numpy_files import numpy_file
from mdw_jax.models.weights.hub import PACKAGED, fetch, is_installed, read_json
from mdw_jax.pipeline.inputs import load_pairs

# Val and test of a data set of which only the training split is stated: those of Karpathy's splits of Flickr.
_HELD_OUT = 1000
_BERT_WIDTH = 768


class Counts(NamedTuple):
    """Sizes of a data set.

    Attributes:
        images, captions: of the training split.
        val_images, val_captions, test_images, test_captions: of the other splits.
        text_dim: width of the text features.
        stored_pixels: of an image as its file has it; by default those of a photo of Flickr.
    """

    images: int
    captions: int
    val_images: int
    val_captions: int
    test_images: int
    test_captions: int
    text_dim: int
    stored_pixels: int = 500 * 400

    @property
    def all_images(self) -> int:
        """Images of all splits."""
        return self.images + self.val_images + self.test_images

    @property
    def all_captions(self) -> int:
        """Captions of all splits."""
        return self.captions + self.val_captions + self.test_captions


def counts_of(config: ConfigDict) -> tuple[Counts, str]:
    """The sizes that a config states in `plan`, or that its data have.

    Args:
        config: a resolved config.

    Returns:
        The sizes, and a sentence that says where they are from.

    Raises:
        UserError: the data cannot be read, or only one of `plan.images` and `plan.captions` is set.
    """
    plan = config.plan
    if bool(plan.images) != bool(plan.captions):
        raise UserError(f"plan.images is {plan.images} and plan.captions is {plan.captions}; set both, or neither to have "
                        "the data counted.")
    if not plan.images:
        return counts_of_data(config)
    data, per_image = config.data, plan.captions / plan.images
    val, test = (held or _HELD_OUT for held in (data.holdout_val, data.holdout_test))
    counts = Counts(plan.images, plan.captions, val, round(val * per_image), test, round(test * per_image),
                    text_width(config))
    return counts, (f"{_in_words(counts)}, as plan.images and plan.captions say (val and test: "
                    f"{'held out' if data.holdout_val or data.holdout_test else 'assumed'}); no data are opened.")


def counts_of_data(config: ConfigDict) -> tuple[Counts, str]:
    """The sizes of the data of a config. Generated data are not drawn; of others the index is read.

    Images are looked at only where a split is held out of train: those that show the same stay on one side.

    Args:
        config: a resolved config.

    Returns:
        As `counts_of`.

    Raises:
        UserError: the data cannot be read.
    """
    data = config.data
    taken = settings_of(data.name)
    if "captions_per_image" in taken:
        sizes = [data[split] or taken[split] for split in ("train", "val", "test")]
        per_image = taken["captions_per_image"]
        counts = _counts([(size, size * per_image) for size in sizes], text_width(config))
        return counts, f"{_in_words(counts)}, as {data.name} generates them."
    unseen = ConfigDict(data.to_dict())
    if "stream" in taken and not (data.holdout_val or data.holdout_test):
        unseen.stream, unseen.on_error = True, data.on_error
    cache = Path(config.run.dir) / "cache"
    with tempfile.TemporaryDirectory() as scratch:  # a plan leaves nothing behind
        pairs = load_pairs(unseen, cache if cache.is_dir() else Path(scratch), check=False)
        counts = counts_of_pairs(pairs, text_width(config))
    looked = "" if unseen.stream else ", whose images were read once"
    return counts, f"{_in_words(counts)}, counted in the data{looked}."


def counts_of_pairs(pairs: Pairs, text_dim: int) -> Counts:
    """The sizes of data that are there.

    Args:
        pairs: the data set.
        text_dim: width of the text features.
    """
    splits = (pairs.train, pairs.val, pairs.test)
    return _counts([(len(split.images), len(split.captions)) for split in splits], text_dim)


def _counts(sizes: Sequence[tuple[int, int]], text_dim: int) -> Counts:
    """Of (images, captions) of train, val and test."""
    (images, captions), (val_images, val_captions), (test_images, test_captions) = sizes
    return Counts(images, captions, val_images, val_captions, test_images, test_captions, text_dim)


def text_width(config: ConfigDict) -> int:
    """Width of the text features: `plan.text_dim`, or what the text encoder of a resolved config says."""
    text = config.text
    if config.plan.text_dim:
        return config.plan.text_dim
    if text.encoder == "bow":
        return text.dim
    path = fetch(text.path) if text.path in PACKAGED and is_installed(text.path) else Path(text.path)
    if text.encoder == "precomputed" and path.is_file():
        return _stored_shape(path)[-1]
    if (path / "config.json").is_file():
        settings = read_json(path / "config.json")
        return int(settings.get("hidden_size") or settings.get("dim") or _BERT_WIDTH)
    return _BERT_WIDTH


def _stored_shape(path: Path) -> Sequence[int]:
    """The shape of the features in a .npy or .npz file, from its header alone."""
    try:
        if path.suffix != ".npz":
            with numpy_file(path, mmap_mode="r") as array:
                return array.shape
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in ("features_q.npy", "features.npy") if name in archive.namelist())
            with archive.open(name) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                return read(file)[0]
    except (OSError, ValueError, StopIteration, SyntaxError, TokenError, zipfile.BadZipFile):
        raise UserError(f"'{path}' cannot be read as text features; mdw prepare says more, or set plan.text_dim.") from None


def _in_words(counts: Counts) -> str:
    return (f"{counts.images:,} training images with {counts.captions:,} captions, {counts.val_images:,} images in val, "
            f"{counts.test_images:,} in test")
