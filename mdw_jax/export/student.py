"""A trained student as two files, and their checksums: all that is needed to embed images and captions later.

    student.safetensors   weights, float32, in PyTorch's layout: "backbone.*", "image_head.*", "text_head.*"
    student.json          how to compute with them (below), the sha256 of the weights, and a description for people
    SHA256SUMS            the sha256 of both

student.json, written last:

    format        "mdw_jax.student.1"
    file, sha256  of the weights
    image         shape [H, W, C]; fit (how a photo becomes that square: squash or crop); mode; dtype; head; tower (its
                  layout: `mdw_jax.export.backbone`)
    text          the text encoder: `mdw_jax.export.captions`
    dim, tau      width of the shared space; temperature of the logits
    about         what the student is, for people: set, data, scores

`mdw train` writes it, and so does the train.py of an export, in PyTorch. Nothing in it can run code.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mdw_jax.config.options import DTYPES, FITS, MODES
from mdw_jax.data.decoding import decode, reason, threads
from mdw_jax.errors import UserError
from mdw_jax.export.backbone import SELF_CONTAINED, layout_of, named_tensors, params_from, tower_from
from mdw_jax.export.captions import caption_encoder
from mdw_jax.io.checksums import read_verified_json, write_all_listed
from mdw_jax.io.files import json_bytes
from mdw_jax.models.dual_encoder import DualEncoder, dual_encoder
from mdw_jax.models.embedding import compiled_inputs
from mdw_jax.runtime.mesh import jitted
from mdw_jax.runtime.processes import is_main

WEIGHTS, RECORD = "student.safetensors", "student.json"
FORMAT = "mdw_jax.student.1"
_BATCH = 64  # images, or captions, embedded at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Student:
    """A trained dual encoder with all that turns photos and sentences into its embeddings.

    Attributes:
        model: the dual encoder.
        params: its parameters.
        shape: (H, W, C) of one image.
        fit: how a photo becomes that square: "squash" or "crop".
        encode_captions: K captions -> the features (K, d) that the text head takes.
        sha256: of its weights; two students with the same one embed alike.
        description: what it is, for people.
    """

    model: DualEncoder
    params: Any
    shape: tuple[int, ...]
    fit: str
    encode_captions: Callable[[Sequence[str]], np.ndarray]
    sha256: str
    description: Mapping[str, Any]

    def embed_images(self, images) -> np.ndarray:
        """Embeddings of photos.

        Args:
            images: (N, H, W, C) uint8 pixels of the student's own shape, or a list of paths of image files, which are
                turned upright and brought to that shape.

        Returns:
            (N, D) float32, of unit length: their dot products with those of captions are cosines.

        Raises:
            UserError: pixels of another shape or type, or files that cannot be read (counts them and names the first).
        """
        if not isinstance(images, np.ndarray):
            return _in_batches(lambda paths: self.embed_images(self.pixels(paths)), list(images), self.model.dim)
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise UserError(f"the student takes uint8 images (N, {', '.join(map(str, self.shape))}), not {images.dtype} of "
                            f"shape {images.shape}.")
        return _in_batches(lambda rows: _unit_images(self.model, self.params["image"], rows), images, self.model.dim)

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Embeddings of captions.

        Args:
            captions: K strings.

        Returns:
            (K, D) float32, of unit length.

        Raises:
            UserError: it is not known how a sentence becomes a feature, or the text encoder cannot be had.
        """
        captions = list(captions)
        if not captions:
            return np.zeros((0, self.model.dim), np.float32)
        return self.embed_texts(self.encode_captions(captions))

    def embed_texts(self, features) -> np.ndarray:
        """Embeddings (K, D) of captions whose features (K, d) are at hand."""
        return _in_batches(lambda rows: np.asarray(jitted(self.model.embed_text)(self.params["text"], rows)),
                           np.asarray(features, np.float32), self.model.dim)

    def pixels(self, paths: Sequence) -> np.ndarray:
        """(N, H, W, 3) uint8 pixels of image files as the student sees them.

        Raises:
            UserError: some cannot be read (counts them and names the first), or the student does not take photos.
        """
        pixels, failures = self.read(paths)
        bad = [(path, failure) for path, failure in zip(paths, failures, strict=True) if failure]
        if bad:
            raise UserError(f"{len(bad)} of {len(failures)} images cannot be read, the first is '{bad[0][0]}' "
                            f"({bad[0][1]}); replace them or leave them out.")
        return pixels

    def read(self, paths: Sequence) -> tuple[np.ndarray, list[str | None]]:
        """As `pixels`, with zeros for files that cannot be read; and for each None, or why it could not be."""
        height, width, channels = self.shape
        if height != width or channels != 3:
            raise UserError(f"the student takes arrays of shape {self.shape} (H, W, C), and not photos.")
        out = np.zeros((len(paths), *self.shape), np.uint8)

        def fill(path, row) -> str | None:
            try:
                row[...] = decode(Path(path).read_bytes(), height, self.fit)
            except MemoryError:
                raise
            except Exception as error:  # damaged files make Pillow raise a dozen kinds
                return reason(error)
            return None

        with ThreadPoolExecutor(threads()) as pool:
            return out, list(pool.map(fill, paths, out))

    def __repr__(self) -> str:
        return (f"Student(images {'x'.join(map(str, self.shape))}, {self.model.tower.name}, {self.model.dim} dimensions, "
                f"sha256 {self.sha256[:12]})")


def _in_batches(embed: Callable, rows, dim: int) -> np.ndarray:
    parts = [embed(rows[start:start + _BATCH]) for start in range(0, len(rows), _BATCH)]
    return np.concatenate(parts) if parts else np.zeros((0, dim), np.float32)


def _unit_images(model: DualEncoder, params, images) -> np.ndarray:
    """Embeddings of at most `_BATCH` images, padded to that many so that one program serves all."""
    padded = np.concatenate([images, np.zeros((_BATCH - len(images), *images.shape[1:]), images.dtype)])
    return np.asarray(jitted(model.embed_image)(params, compiled_inputs(model)(padded)))[:len(images)]


# ---- files -----------------------------------------------------------------------------------------------------------


def save_student(path, model: DualEncoder, params, *, shape: Sequence[int], text: Mapping[str, Any],
                 about: Mapping[str, Any], fit: str = "squash") -> Path:
    """Write a student into the directory `path`, in place of one that is there; the record comes last.

    Args:
        path: the directory, made if it does not exist.
        model: the dual encoder.
        params: its parameters.
        shape: (H, W, C) of one image.
        text: what `text_layout` returned.
        about: what it is, for people; anything JSON can hold.
        fit: "squash" or "crop".

    Returns:
        The path of student.json.

    Raises:
        UserError: the image tower comes from outside the package, or the text encoder was trained too.
    """
    if model.text_tower is not None:
        raise UserError("a student whose text encoder was trained too cannot be written as a file yet; set text.train to "
                        "False.")
    layout, full = layout_of(model.tower), model.mode == "full"
    if full and layout["kind"] not in SELF_CONTAINED:
        raise UserError(f"a student that trained the published tower '{layout['name']}' cannot be written as a file yet; "
                        "use mode=projection, which keeps the tower as it was published.")
    tensors = named_tensors(params["text"], "text_head")
    if layout["kind"] in SELF_CONTAINED:
        tensors |= named_tensors(params["image"]["backbone"] if full else model.backbone, "backbone")
    if model.image_head:
        tensors |= named_tensors(params["image"]["head"], "image_head")
    image = {"shape": list(shape), "fit": fit, "mode": model.mode, "dtype": model.dtype, "head": model.image_head,
             "tower": layout}
    return write_student(path, tensors, image, dict(text), model.dim, model.tau, about)


def write_student(path, tensors: Mapping[str, np.ndarray], image: dict, text: dict, dim: int, tau: float,
                  about: Mapping[str, Any]) -> Path:
    """Write the two files of a student from their parts: see the module docstring."""
    directory, data = Path(path), save(dict(tensors))
    record = {"format": FORMAT, "file": WEIGHTS, "sha256": hashlib.sha256(data).hexdigest(), "image": image, "text": text,
              "dim": dim, "tau": tau, "about": dict(about)}
    described = json_bytes(record)  # one that JSON cannot hold must fail before an old student is touched
    if is_main():
        (directory / RECORD).unlink(missing_ok=True)
    write_all_listed(directory, {WEIGHTS: data, RECORD: described})
    return directory / RECORD


def load_student(path, *, weights: str | None = None, text_encoder: str | None = None) -> Student:
    """Read a student. Nothing in its files can run code; everything in them is checked.

    Args:
        path: the directory that `mdw train` or train.py wrote, or its student.json.
        weights: where a published image tower lies, if not where the record says; it must have the same sha256.
        text_encoder: the text encoder to use, if not the one that the record names: see `caption_encoder`.

    Raises:
        UserError: there is none, it is damaged, or its published tower cannot be had.
    """
    directory = Path(path)
    directory = directory.parent if directory.name == RECORD else directory
    record, tensors = _read(directory)
    try:
        image = _checked_image(record["image"])
        dim, tau, about = record["dim"], record["tau"], record["about"]
        if not (_is_whole(dim) and isinstance(tau, float) and math.isfinite(tau) and tau > 0 and isinstance(about, dict)):
            raise ValueError(f"dim {dim!r}, tau {tau!r}, about {type(about).__name__}")
        encoder = caption_encoder(record["text"], text_encoder)
        shape = tuple(image["shape"])
        tower = tower_from(image["tower"], shape, tensors, weights)
        backbone = tower.init(jax.random.key(0))
        model = dual_encoder(tower, backbone, record["text"]["width"], mode=image["mode"], dim=dim,
                             image_head=image["head"], tau=tau, dtype=image["dtype"])
        params = _head_params(model, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{RECORD} in '{directory}' is not a student of format {FORMAT} ({error!r}); train it again with "
                        "this version.") from None
    if model.mode == "full":
        params["image"]["backbone"] = backbone
    return Student(model, jax.tree.map(jnp.asarray, params), shape, image["fit"], encoder, record["sha256"], about)


def _head_params(model: DualEncoder, tensors) -> dict:
    """The parameters of both heads: their shapes follow from the model."""
    like = jax.eval_shape(model.init, jax.random.key(0))
    params: dict[str, Any] = {"image": {}, "text": params_from(tensors, "text_head", like["text"], "one student")}
    if model.image_head:
        params["image"]["head"] = params_from(tensors, "image_head", like["image"]["head"], "one student")
    return params


def _read(directory: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The record and the tensors of a student, whose sha256 agrees."""
    try:
        record = read_verified_json(directory / RECORD)
        data = (directory / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"'{directory}' holds no student ({Path(error.filename).name} is missing); give the directory that "
                        "mdw train or train.py wrote.") from None
    except (OSError, ValueError) as error:
        name = Path(getattr(error, "filename", None) or RECORD).name
        raise UserError(f"{name} of the student in '{directory}' cannot be read ({error}); train or copy it again."
                        ) from None
    if record.get("format") != FORMAT:
        raise UserError(f"{RECORD} in '{directory}' is of the format {record.get('format')!r}, not {FORMAT}; train it "
                        "again with this version.")
    if record.get("sha256") != hashlib.sha256(data).hexdigest():
        raise UserError(f"{WEIGHTS} in '{directory}' is not the file its {RECORD} describes (sha256 differs): it is "
                        "damaged or of another student; train or copy it again.")
    try:
        return record, load(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{WEIGHTS} in '{directory}' cannot be read ({error}); train or copy it again.") from None


def _checked_image(image) -> dict:
    """The section "image"; raises ValueError, KeyError or TypeError where it is none."""
    shape = image["shape"]
    if not isinstance(shape, list) or len(shape) != 3 or not all(_is_whole(side) for side in shape):
        raise ValueError(f"images of shape {shape!r}")
    for name, choices in (("fit", FITS), ("mode", MODES), ("dtype", DTYPES), ("head", (True, False))):
        if image[name] not in choices:
            raise ValueError(f"{name} {image[name]!r}")
    if not isinstance(image["tower"], dict):
        raise TypeError("tower")
    return image


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 16
