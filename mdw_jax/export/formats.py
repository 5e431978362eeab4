"""A distilled set as files for others: an image folder, Parquet, a WebDataset shard, and a Hugging Face dataset card.

In the folder of an export, each where its format was asked for:

    distilled.safetensors          every number, float32 (`distilled.py`)
    images/NNNNNN.png              8 bits a channel; images/metadata.jsonl beside them: what `imagefolder` reads
    data.parquet                   the picture, and its pixels and text as float32
    shard-000000.tar               NNNNNN.png, .txt, .json, .text.npy, .correspondence.npy of each pair
    README.md                      the dataset card
    card.json                      what it is and where it came from (last: without it the export is not finished)

Nothing of it can run code when it is read, all names are ours, and the same set gives the same bytes.
"""

import io
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from mdw_jax.errors import UserError
from mdw_jax.export.dataset_card import dataset_card
from mdw_jax.io.distilled_set import CARD, TENSORS, DistilledSet, save_distilled
from mdw_jax.io.files import write_atomically, write_json
from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.losses import soft_loss
from mdw_jax.runtime.processes import is_main

FORMATS = ("safetensors", "folder", "parquet", "webdataset")
README = "README.md"
_WITH_PICTURES = ("folder", "webdataset")
_MODES = {1: "L", 3: "RGB"}
_OURS = (TENSORS, CARD, README, "data.parquet", "shard-000000.tar", "images/metadata.jsonl",
         f"images/{6 * '[0-9]'}.png")
_GROUP = 64 * 2**20  # bytes of a Parquet row group, about: what a viewer fetches to show one row


class Near(NamedTuple):
    """The real training captions nearest to each distilled text, nearest first. captions: M lists of k strings;
    cosines: (M, k) of their features."""

    captions: list[list[str]]
    cosines: np.ndarray


def export_set(folder, distilled: DistilledSet, near: Near, card: dict, *, formats: Sequence[str], license: str,
               real: bool = False) -> None:
    """Write a set into `folder`, in place of an earlier export; other files that lie there stay.

    card: what the set's own card says; absolute paths in it are cut to their last part. formats: some of `FORMATS`.
    license: of the data that the set comes from. real: the pairs are chosen real ones, not made.
    Raises UserError where `check` does, for a loss that is none of ours, and for pictures asked of what is none:
    clips, or other than 1 or 3 channels.
    """
    check(formats, license)
    soft_loss(distilled.loss)
    if not has_pictures(distilled) and (asked := [name for name in formats if name in _WITH_PICTURES]):
        raise UserError(f"distilled images of shape {distilled.images.shape[1:]} are no pictures for "
                        f"{' and '.join(asked)}; set export.formats to safetensors,parquet.")
    folder = Path(folder)
    numbers = {"step_sizes": dict(distilled.step_sizes), "alpha": float(distilled.alpha), "loss": distilled.loss}
    told = {**_portable(card), **numbers, "license": license, "formats": list(formats),
            "png": png_loss(distilled.images) if has_pictures(distilled) else None}
    for name in ("file", "sha256", "shapes", "byte_budget"):  # of the tensor file, which sets them where it is written
        told.pop(name, None)
    files = {}
    for name in formats:
        if name in _FILES:
            files |= _FILES[name](distilled, near, numbers)
    files[README] = dataset_card(distilled, told, real).encode()
    if is_main():
        (folder / CARD).unlink(missing_ok=True)
        for old in [path for pattern in _OURS for path in folder.glob(pattern)]:
            old.unlink()
    for name, data in files.items():
        write_atomically(folder / name, data)
    if "safetensors" in formats:
        save_distilled(folder, distilled, told)
    else:
        write_json(folder / CARD, told)


def check(formats: Sequence[str], license: str) -> None:
    """Raises UserError for no or unknown formats, one whose package is missing, and where no license is given."""
    if not formats or (unknown := [name for name in formats if name not in FORMATS]):
        named = f"holds '{unknown[0]}'" if formats else "is empty"
        raise UserError(f"export.formats {named}; set it to some of {', '.join(FORMATS)}.")
    if not license.strip():
        raise UserError("export.license is not given; set it to the license of the data that the sets come from, such "
                        "as cc-by-4.0 (or to unknown): the dataset card tells users by it what they may do with them.")
    if "parquet" in formats:
        _pyarrow()


def has_pictures(distilled: DistilledSet) -> bool:
    """Whether the images can be PNGs: (M, H, W, C) of one channel or three."""
    return distilled.images.ndim == 4 and distilled.images.shape[-1] in _MODES


def eight_bits(images):
    """Float images in [0, 1] -> uint8, clipped and rounded."""
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def png_loss(images) -> dict:
    """What 8 bits cost: "largest_error" of a pixel, in units of [0, 1], and "clipped", the share outside [0, 1]."""
    return {"largest_error": float(np.abs(eight_bits(images) / np.float32(255) - images).max()),
            "clipped": float(((images < 0) | (images > 1)).mean())}


def dense_correspondence(distilled: DistilledSet) -> np.ndarray:
    """P in full, (M, M) float32: row i says how far image i belongs to each text."""
    params = {name: jnp.asarray(array) for name, array in distilled.correspondence.items()}
    return np.asarray(correspondence(params, jnp.arange(len(distilled.images)), distilled.alpha), np.float32)


# Formats: (set, near, numbers of the whole set) -> {name: bytes}


def folder_files(distilled: DistilledSet, near: Near, numbers: dict) -> dict[str, bytes]:
    """PNGs and a metadata.jsonl of one line each, as Hugging Face's `imagefolder` reads them."""
    names = [f"{row:06d}.png" for row in range(len(distilled.images))]
    p = dense_correspondence(distilled)
    # The shortest decimal of a float32's double comes back as the same float32.
    lines = [json.dumps({"file_name": name, **_said(near, row), "text": distilled.texts[row].tolist(),
                         "correspondence": p[row].tolist()}) + "\n" for row, name in enumerate(names)]
    return {**{f"images/{name}": _png(image) for name, image in zip(names, distilled.images, strict=True)},
            "images/metadata.jsonl": "".join(lines).encode()}


def parquet_files(distilled: DistilledSet, near: Near, numbers: dict) -> dict[str, bytes]:
    """One table, a pair a row: image (PNG, where it is a picture), pixels and text (float32), row of P, captions.

    Numbers of the whole set are in the schema's metadata, under "mdw_jax", and its columns as the library `datasets`
    wants them under "huggingface".
    """
    pa, parquet = _pyarrow()
    near_columns = [_said(near, row) for row in range(len(distilled.images))]
    columns = {"row": pa.array(range(len(distilled.images)), pa.int32())}
    features = {"row": _value("int32")}
    if has_pictures(distilled):
        pictures = [{"bytes": _png(image), "path": f"{row:06d}.png"} for row, image in enumerate(distilled.images)]
        columns["image"] = pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        features["image"] = {"_type": "Image"}
    for name, array in (("pixels", distilled.images), ("text", distilled.texts),
                        ("correspondence", dense_correspondence(distilled))):
        columns[name], features[name] = _nested(pa, array), _lists("float32", array.ndim - 1)
    for name, kind, depth in (("caption", "string", 0), ("captions", "string", 1), ("cosines", "float32", 1)):
        value = pa.string() if kind == "string" else pa.float32()
        columns[name] = pa.array([row[name] for row in near_columns], pa.list_(value) if depth else value)
        features[name] = _lists(kind, depth)
    table = pa.table(columns).replace_schema_metadata({
        "huggingface": json.dumps({"info": {"features": features}}), "mdw_jax": json.dumps(numbers)})
    out = io.BytesIO()
    parquet.write_table(table, out, row_group_size=max(1, _GROUP * table.num_rows // table.nbytes))
    return {"data.parquet": out.getvalue()}


def webdataset_files(distilled: DistilledSet, near: Near, numbers: dict) -> dict[str, bytes]:
    """One tar shard: of each pair the picture, its nearest caption as text, and as arrays its text and row of P."""
    p, out = dense_correspondence(distilled), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, image in enumerate(distilled.images):
            said = {"row": row, "pairs": len(p), **_said(near, row), **numbers}
            parts = {"png": _png(image), "txt": said["caption"].encode(), "json": json.dumps(said).encode(),
                     "text.npy": _npy(distilled.texts[row]), "correspondence.npy": _npy(p[row])}
            for kind, data in parts.items():
                member = tarfile.TarInfo(f"{row:06d}.{kind}")  # no owner and no time: the same set, the same file
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return {"shard-000000.tar": out.getvalue()}


_FILES = {"folder": folder_files, "parquet": parquet_files, "webdataset": webdataset_files}


def _said(near: Near, row: int) -> dict:
    return {"caption": near.captions[row][0], "captions": list(near.captions[row]),
            "cosines": [float(cosine) for cosine in near.cosines[row]]}


def _png(image) -> bytes:
    out, pixels = io.BytesIO(), eight_bits(image)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, _MODES[pixels.shape[-1]]).save(out, "PNG")
    return out.getvalue()


def _npy(array) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _pyarrow():
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("exporting Parquet needs pyarrow: pip install 'mdw-jax[parquet]', or leave parquet out of "
                        "export.formats.") from error
    return pyarrow, parquet


def _nested(pa, array):
    """(M, ...) -> an Arrow array of M nested lists."""
    made = pa.array(np.ascontiguousarray(array).reshape(-1))
    for length in array.shape[:0:-1]:
        made = pa.ListArray.from_arrays(pa.array(np.arange(0, len(made) + 1, length), pa.int32()), made)
    return made


def _value(kind: str) -> dict:
    return {"dtype": kind, "_type": "Value"}


def _lists(kind: str, depth: int) -> dict:
    """A column of lists of lists as `datasets` says it; Sequence is what its older and newer versions both know."""
    return {"feature": _lists(kind, depth - 1), "_type": "Sequence"} if depth else _value(kind)


def _portable(value):
    """A card without the places of files on this machine: of an absolute path the last part is left."""
    if isinstance(value, dict):
        return {name: _portable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(part) for part in value]
    if not isinstance(value, str):
        return value
    return "".join(_last_part(part) for part in re.split("(::|,)", value))


def _last_part(text: str) -> str:
    if text.startswith(("/", "~")):
        return PurePosixPath(text).name
    return PureWindowsPath(text).name if PureWindowsPath(text).drive else text


# The dataset card


