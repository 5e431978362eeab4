"""The formats of an export. To add one, write its function and one entry of `FORMATS`.

The same set gives the same bytes, and nothing in a file can run code when it is read.
"""

import io
import json
import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import CARD, TENSORS, DistilledSet
from mdw_jax.io.files import npy_bytes
from mdw_jax.method.correspondence import correspondence

_PNG_MODES = {1: "L", 3: "RGB"}  # by number of channels
_ROW_GROUP = 64 * 2**20  # bytes of a Parquet row group, about: what a viewer fetches to show one row


class NearestCaptions(NamedTuple):
    """The real training captions nearest to each distilled text.

    Attributes:
        captions: M lists of k strings, nearest first.
        cosines: (M, k) cosines of their features with those of the text.
    """

    captions: list[list[str]]
    cosines: np.ndarray

    def columns(self, row: int) -> dict:
        """The captions of one distilled text, as JSON can hold them."""
        return {"caption": self.captions[row][0], "captions": list(self.captions[row]),
                "cosines": [float(cosine) for cosine in self.cosines[row]]}


class Format(NamedTuple):
    """A format of an export.

    Attributes:
        files: (set, nearest captions, numbers of the whole set) -> {file name: bytes}. None for "safetensors", which
            `save_distilled` writes together with the card.
        description: one line for the dataset card.
        patterns: glob patterns of its file names, to remove those of an earlier export.
        needs_images: whether every image must be a PNG: (H, W, C) with one channel or three.
    """

    files: Callable[[DistilledSet, NearestCaptions, dict], dict[str, bytes]] | None
    description: str
    patterns: tuple[str, ...]
    needs_images: bool = False


def is_image_set(distilled: DistilledSet) -> bool:
    """Whether the images can be PNGs: (M, H, W, C) with one channel or three."""
    return distilled.images.ndim == 4 and distilled.images.shape[-1] in _PNG_MODES


def eight_bits(images):
    """Float images in [0, 1] -> uint8, clipped and rounded."""
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def png_loss(images) -> dict:
    """The loss of precision by 8 bits.

    Args:
        images: (M, H, W, C) float.

    Returns:
        "largest_error" of a pixel, in units of [0, 1], and "clipped", the share of values outside [0, 1].
    """
    return {"largest_error": float(np.abs(eight_bits(images) / np.float32(255) - images).max()),
            "clipped": float(((images < 0) | (images > 1)).mean())}


def dense_correspondence(distilled: DistilledSet) -> np.ndarray:
    """P in full, (M, M) float32: row i says how far image i belongs to each text."""
    params = {name: jnp.asarray(array) for name, array in distilled.correspondence.items()}
    return np.asarray(correspondence(params, jnp.arange(len(distilled.images)), distilled.alpha), np.float32)


# ---- formats ---------------------------------------------------------------------------------------------------------


def folder_files(distilled: DistilledSet, nearest: NearestCaptions, numbers: dict) -> dict[str, bytes]:
    """PNGs and a metadata.jsonl with one line for each, as Hugging Face's `imagefolder` reads them."""
    names = [f"{row:06d}.png" for row in range(len(distilled.images))]
    p = dense_correspondence(distilled)
    # The shortest decimal of a float32's double is read back as the same float32.
    lines = [json.dumps({"file_name": name, **nearest.columns(row), "text": distilled.texts[row].tolist(),
                         "correspondence": p[row].tolist()}) + "\n" for row, name in enumerate(names)]
    return {**{f"images/{name}": _png(image) for name, image in zip(names, distilled.images, strict=True)},
            "images/metadata.jsonl": "".join(lines).encode()}


def parquet_files(distilled: DistilledSet, nearest: NearestCaptions, numbers: dict) -> dict[str, bytes]:
    """One table with one pair per row: image (PNG, where possible), pixels and text (float32), row of P, captions.

    Numbers of the whole set are in the schema's metadata under "mdw_jax", and the types of its columns for the library
    `datasets` under "huggingface".
    """
    pa, parquet = import_pyarrow()
    rows = range(len(distilled.images))
    columns = {"row": pa.array(rows, pa.int32())}
    features: dict[str, Any] = {"row": _value_type("int32")}
    if is_image_set(distilled):
        images = [{"bytes": _png(distilled.images[row]), "path": f"{row:06d}.png"} for row in rows]
        columns["image"] = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        features["image"] = {"_type": "Image"}
    for name, array in (("pixels", distilled.images), ("text", distilled.texts),
                        ("correspondence", dense_correspondence(distilled))):
        columns[name], features[name] = _nested_array(pa, array), _list_type("float32", array.ndim - 1)
    captions = [nearest.columns(row) for row in rows]
    for name, kind, depth in (("caption", "string", 0), ("captions", "string", 1), ("cosines", "float32", 1)):
        value = pa.string() if kind == "string" else pa.float32()
        columns[name] = pa.array([row[name] for row in captions], pa.list_(value) if depth else value)
        features[name] = _list_type(kind, depth)
    table = pa.table(columns).replace_schema_metadata({
        "huggingface": json.dumps({"info": {"features": features}}), "mdw_jax": json.dumps(numbers)})
    out = io.BytesIO()
    parquet.write_table(table, out, row_group_size=max(1, _ROW_GROUP * table.num_rows // table.nbytes))
    return {"data.parquet": out.getvalue()}


def webdataset_files(distilled: DistilledSet, nearest: NearestCaptions, numbers: dict) -> dict[str, bytes]:
    """One tar shard: for each pair the image, the nearest caption, and arrays of its text and its row of P."""
    p, out = dense_correspondence(distilled), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, image in enumerate(distilled.images):
            metadata = {"row": row, "pairs": len(p), **nearest.columns(row), **numbers}
            parts = {"png": _png(image), "txt": metadata["caption"].encode(), "json": json.dumps(metadata).encode(),
                     "text.npy": npy_bytes(distilled.texts[row]), "correspondence.npy": npy_bytes(p[row])}
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"{row:06d}.{suffix}")  # no owner and no time: the same set, the same file
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return {"shard-000000.tar": out.getvalue()}


FORMATS: dict[str, Format] = {
    "safetensors": Format(None, f"`{TENSORS}`: all numbers, float32, P in half precision; "
                          f"`{CARD}`: where they came from", (TENSORS,)),
    "folder": Format(folder_files, "`images/`: `load_dataset('imagefolder', data_dir='images')`",
                     ("images/metadata.jsonl", f"images/{6 * '[0-9]'}.png"), needs_images=True),
    "parquet": Format(parquet_files, "`data.parquet`: `load_dataset('parquet', data_files='data.parquet')`",
                      ("data.parquet",)),
    "webdataset": Format(webdataset_files, "`shard-000000.tar`: `.png` and `.txt` (the nearest caption), as img2dataset "
                         "writes them and open_clip reads them, with `.json`, `.text.npy` and `.correspondence.npy`",
                         ("shard-000000.tar",), needs_images=True),
}


# ---- files -----------------------------------------------------------------------------------------------------------


def _png(image) -> bytes:
    out, pixels = io.BytesIO(), eight_bits(image)
    mode = _PNG_MODES[pixels.shape[-1]]
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, mode).save(out, "PNG")
    return out.getvalue()


def import_pyarrow():
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("exporting Parquet needs pyarrow: pip install 'mdw-jax[parquet]', or leave parquet out of "
                        "export.formats.") from error
    return pyarrow, parquet


def _nested_array(pa, array):
    """(M, ...) -> an Arrow array of M nested lists."""
    nested = pa.array(np.ascontiguousarray(array).reshape(-1))
    for length in array.shape[:0:-1]:
        nested = pa.ListArray.from_arrays(pa.array(np.arange(0, len(nested) + 1, length), pa.int32()), nested)
    return nested


def _value_type(dtype: str) -> dict:
    return {"dtype": dtype, "_type": "Value"}


def _list_type(dtype: str, depth: int) -> dict:
    """A column of nested lists for `datasets`; older and newer versions both know Sequence."""
    return {"feature": _list_type(dtype, depth - 1), "_type": "Sequence"} if depth else _value_type(dtype)
