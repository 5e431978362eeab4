"""Image towers as files: what a tower computes (`Tower.layout`, JSON) and its weights (tensors in PyTorch's layout).

A convolution's weight is (F, C / groups, kh, kw), a dense layer's (out, in), as PyTorch stores them; the names are those
of this package with dots. `export/templates/train.py` computes the same in PyTorch.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mdw_jax.errors import UserError
from mdw_jax.models.image.convnet import convnet
from mdw_jax.models.image.mobilenet import OPERATIONS, mobilenet_of
from mdw_jax.models.image.pretrained import SPECS, pretrained
from mdw_jax.models.image.spectrogram import spectrogram_tower
from mdw_jax.models.image.tower import Tower
from mdw_jax.models.image.vit import vit
from mdw_jax.models.weights.convert import assemble
from mdw_jax.models.weights.hub import fetch, files_digest, read_tensors, weight_files

_LEAVES = {"kernel": "weight", "scale": "weight"}
_MOST_OPERATIONS, _MOST_LAYERS, _LARGEST = 1000, 100, 1 << 14  # what a layout of strangers may ask for
_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}  # 3: the attention of `vit`, whose axes are reversed


def named_tensors(params: Mapping, prefix: str) -> dict[str, np.ndarray]:
    """Parameters as tensors in PyTorch's layout, float32 on the host, by dotted names that begin with `prefix.`."""
    tensors = {}
    for path, leaf in flatten_dict(params).items():
        array = np.asarray(leaf, np.float32)
        array = array.transpose(_AXES[array.ndim]) if path[-1] == "kernel" else array
        tensors[_name(path, prefix)] = np.ascontiguousarray(array)
    return tensors


def params_from(tensors: Mapping[str, np.ndarray], prefix: str, like, what: str) -> dict:
    """The inverse of `named_tensors`.

    Args:
        tensors: by name; those that do not begin with `prefix.` are left alone.
        prefix: as in `named_tensors`.
        like: parameters of the same structure and shapes, or their `jax.ShapeDtypeStruct`s.
        what: what the tensors belong to, for messages: "one student".

    Raises:
        UserError: tensors are missing, of another shape or not finite, or there are more than the structure has.
    """
    paths = {path: tuple(leaf.shape) for path, leaf in flatten_dict(like).items()}
    layout = [(_name(path, prefix), path, tuple(shape[axis] for axis in _AXES[len(shape)]) if path[-1] == "kernel"
               else shape) for path, shape in paths.items()]
    extra = {name for name in tensors if name.startswith(f"{prefix}.")} - {name for name, _, _ in layout}
    if extra:
        raise UserError(f"the weights hold tensors that the model has no place for ({', '.join(sorted(extra)[:3])}); give "
                        f"the files of {what}.")
    return assemble(layout, dict(tensors), what)


def _name(path, prefix: str) -> str:
    return ".".join((prefix, *path[:-1], _LEAVES.get(path[-1], path[-1])))


def layout_of(tower: Tower) -> dict:
    """The layout of a tower.

    Raises:
        UserError: it has none, as towers from outside the package.
    """
    if tower.layout is None:
        raise UserError(f"the image tower '{tower.name}' comes from outside the package and cannot be written into a file; "
                        "train with one of this package.")
    return dict(tower.layout)


def tower_from(layout: Mapping[str, Any], shape, tensors: Mapping[str, np.ndarray], source: str | None = None) -> Tower:
    """The tower that a layout and its tensors describe; its `init` returns these weights.

    Args:
        layout: what `layout_of` returned, read from a file of strangers: everything in it is checked.
        shape: (H, W, C) of one image.
        tensors: those of the backbone begin with "backbone.". None are needed for a published tower, which is read from
            where its layout says.
        source: where to read a published tower instead.

    Raises:
        UserError: the layout is none, or the weights do not fit it.
    """
    kind = layout.get("kind")
    if kind not in _KINDS:
        raise UserError(f"the backbone is of the kind {kind!r}, and only {', '.join(_KINDS)} can be computed; write the "
                        "files again with this version.")
    try:
        build = _KINDS[kind](layout, tensors, source)
        if len(shape) == 3 and shape[-1] == 1 and kind in ("mobilenet", "published"):
            return spectrogram_tower(build, tuple(shape))
        return build(tuple(shape))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"the layout of the backbone, a {kind}, is damaged ({error!r}); copy the files again.") from None


def _convnet(layout, tensors, source) -> Callable[[Any], Tower]:
    patches, widths = (tuple(_whole(value) for value in layout[name][:_MOST_LAYERS]) for name in ("patches", "widths"))
    return lambda shape: _filled(convnet(_bounded(shape), patches, widths), tensors)


def _vit(layout, tensors, source) -> Callable[[Any], Tower]:
    sizes = {name: _whole(layout[name]) for name in ("patch", "width", "depth", "heads")}
    if sizes["depth"] > _MOST_LAYERS:
        raise ValueError(f"depth {sizes['depth']}")
    return lambda shape: _filled(vit(_bounded(shape), **sizes), tensors)


def _mobilenet(layout, tensors, source) -> Callable[[Any], Tower]:
    operations = list(layout["operations"])
    if not operations or len(operations) > _MOST_OPERATIONS or operations[-1].get("op") != "AVERAGE_POOL_2D":
        raise ValueError("operations")
    names = [operation["w"] for operation in operations if "w" in operation]
    for operation in operations:
        if operation["op"] not in OPERATIONS or "w" in operation and not re.fullmatch(r"\w{1,40}", operation["w"]):
            raise ValueError(f"operation {operation}")
        if "stride" in operation:
            _whole(operation["stride"])
    like = {}
    for name in names:
        shape = tensors[f"backbone.{name}.weight"].shape
        like[name] = {"kernel": jax.ShapeDtypeStruct(tuple(shape[axis] for axis in (2, 3, 1, 0)), np.float32),
                      "bias": jax.ShapeDtypeStruct(shape[:1], np.float32)}
    params = params_from(tensors, "backbone", like, "one backbone")
    graph = {"input_tensor": layout["input"], "ops": operations}
    return lambda shape: mobilenet_of(graph, params, str(layout["name"]), "the graph of the backbone")


def _published(layout, tensors, source) -> Callable[[Any], Tower]:
    name, given = str(layout["name"]), source or str(layout["source"])
    if name not in SPECS:
        raise ValueError(f"name {name}")
    found = files_digest(weight_files(fetch(given)))
    if found != layout["sha256"]:
        raise UserError(f"the weights '{given}' of the tower '{name}' have another sha256 ({found[:12]}...) than those it "
                        f"was trained with ({str(layout['sha256'])[:12]}...); give the same revision.")
    return lambda shape: pretrained(name, shape, read_tensors(given))._replace(layout=dict(layout))


_KINDS = {"convnet": _convnet, "vit": _vit, "mobilenet": _mobilenet, "published": _published}
SELF_CONTAINED = ("convnet", "vit", "mobilenet")
"""Kinds whose weights are written; a published tower is named, with the sha256 of its files."""


def _filled(tower: Tower, tensors) -> Tower:
    """The tower with these weights in place of random ones."""
    like = jax.eval_shape(tower.init, jax.random.key(0))
    params = params_from(tensors, "backbone", like, "one backbone")
    return tower._replace(init=lambda key: params)


def _whole(value) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise ValueError(f"{value!r} is no whole number from 1 to {_LARGEST}")
    return value


def _bounded(shape):
    if math.prod(shape) > 1 << 28:
        raise ValueError(f"images of {shape}")
    return shape
