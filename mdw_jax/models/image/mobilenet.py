"""MobileNet V1 / V2 with ImageNet weights, norm-free: batch normalization is folded into the convolutions.

Weights are `.q8.npz` files: per layer `convNN` in execution order a uint8 `kernel_q` with `scale` and `zero`
(kernel = (kernel_q - zero) * scale), a float32 `bias`, and `ops_json`, the graph of operations.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.io.files import parse_json
from mdw_jax.io.numpy_files import numpy_file
from mdw_jax.models.image.blocks import block_function
from mdw_jax.models.image.conv import conv, depthwise_conv
from mdw_jax.models.image.tower import Tower


def mobilenet(path) -> Tower:
    """The backbone of a `.q8.npz` file, up to but without its average pooling; any image size is accepted.

    Raises:
        UserError: the file is missing or of another kind.
    """
    if not Path(path).is_file():
        raise UserError(f"there are no MobileNet weights at '{path}'; set model.weights to a .q8.npz file.")
    graph, params = read_mobilenet(path)
    return mobilenet_of(graph, params, Path(path).name.removesuffix(".npz").removesuffix(".q8"), f"the graph of '{path}'")


def mobilenet_of(graph: dict, params: dict, name: str, what: str) -> Tower:
    """The backbone of a graph and its weights.

    Args:
        graph: "input_tensor" and "ops", as `read_mobilenet` returns it: it ends in its average pooling.
        params: {layer: {"kernel": (kh, kw, C, F), depthwise (kh, kw, 1, C), "bias": (F,)}}.
        name: of the tower.
        what: what the graph is called in messages.

    Raises:
        UserError: the graph cannot be computed with these weights.
    """
    blocks = _blocks(graph["ops"])

    def feature_map(params, images):
        x, name = 2 * images - 1, graph["input_tensor"]
        for ops in blocks:
            compute = functools.partial(_computed, ops, name)
            x, name = block_function(compute)({op["w"]: params[op["w"]] for op in ops if "w" in op}, x), ops[-1]["out"]
        return x

    try:  # the graph and the shapes come from the file
        jax.eval_shape(feature_map, params, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    except Exception as error:
        raise UserError(f"{what} cannot be computed ({' '.join(str(error).split())[:100]}): it is damaged; fetch it "
                        "again.") from error
    last = next(op["w"] for op in reversed(graph["ops"]) if "w" in op)
    return Tower(name, lambda key: params, feature_map, params[last]["kernel"].shape[-1], std=(0.5, 0.5, 0.5),
                 layout={"kind": "mobilenet", "name": name, "input": graph["input_tensor"], "operations": graph["ops"]})


_SHORTEST_BLOCK = 2  # operations: a depthwise convolution and a pointwise one


def _blocks(ops: list[dict]) -> list[list[dict]]:
    """The operations up to the average pooling as blocks that hand one tensor to the next."""
    ops = ops[: next(i for i, op in enumerate(ops) if op["op"] == "AVERAGE_POOL_2D")]
    blocks: list[list[dict]] = []
    block: list[dict] = []
    for i, op in enumerate(ops):
        block.append(op)
        later = {name for following in ops[i + 1:] for name in following["in"]}
        inside = {before["out"] for before in ops[:i]} | {ops[0]["in"][0]}
        if len(block) >= _SHORTEST_BLOCK and not later & inside:
            blocks.append(block)
            block = []
    return [*blocks, block] if block else blocks


def _computed(ops: list[dict], name: str, params: dict, x):
    """The result of a block of operations on its input `x`, which they call `name`."""
    values = {name: x}
    for op in ops:
        x = values[op["in"][0]]
        if op["op"] == "ADD":
            y = x + values[op["in"][1]]
        else:
            layer = params[op["w"]]
            convolve = depthwise_conv if op["op"] == "DEPTHWISE_CONV_2D" else conv
            y = convolve(x, layer["kernel"].astype(x.dtype), op["stride"]) + layer["bias"].astype(x.dtype)
            y = jnp.clip(y, 0, 6) if op["act"] == 3 else jnp.maximum(y, 0) if op["act"] == 1 else y
        values[op["out"]] = y
    return y


OPERATIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "AVERAGE_POOL_2D")


def read_mobilenet(path) -> tuple[dict, dict]:
    """The graph up to its average pooling, and the weights, of a `.q8.npz` file: see `mobilenet_of`.

    Raises:
        UserError: it is damaged or of another kind.
    """
    try:
        with numpy_file(path) as file:
            graph = parse_json(str(file["ops_json"]))
            ops = graph["ops"][: next(i for i, op in enumerate(graph["ops"]) if op["op"] == "AVERAGE_POOL_2D") + 1]
            read = lambda name: file[name].astype(np.float32)
            params = {
                op["w"]: {
                    "kernel": (read(f"{op['w']}/kernel_q") - read(f"{op['w']}/zero")) * read(f"{op['w']}/scale"),
                    "bias": read(f"{op['w']}/bias"),
                }
                for op in ops
                if "w" in op
            }
    except (ValueError, OSError, StopIteration) as error:
        raise UserError(f"'{path}' is not a complete MobileNet .q8.npz file ({error}); fetch it again.") from None
    unknown = {op["op"] for op in ops} - set(OPERATIONS)
    if unknown:
        raise UserError(f"'{path}' holds operations that cannot be computed: {', '.join(sorted(unknown))}; give another "
                        "file.")
    if not all(np.isfinite(array).all() for layer in params.values() for array in layer.values()):
        raise UserError(f"'{path}' holds NaN or infinite weights; fetch it again.")
    return {**graph, "ops": ops}, params
