"""A reference implementation in eager PyTorch for `mdw bench`, written from the equations of docs/method.md.

Nothing here is from the code of published methods. The exact gradient keeps the graph of all inner steps
(`create_graph=True`). The detached one is TESLA's two passes: unroll without a graph, then push the gradient by the
last parameters through one inner step at a time. In `projection` mode features are computed once and the unroll runs on
them, as in mdw_jax.

Parameters are flat dicts, name -> tensor, with the names of mdw_jax's pytrees joined by "/" and its layouts, so that
weights are copied as they are. It needs the package torch. Run as a program, it measures memory: see `main`.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from mdw_jax.export import torch_tensors
from mdw_jax.export.torch_tensors import correspondence, subtree

DISTILLATION_LOSSES = ("nce", "wbce", "probability")
EXPERT_LOSSES = ("infonce", "gce")
TOWERS = ("convnet", "mobilenet")
STUDENT_OPTIMIZERS = ("sgd",)


class Settings(NamedTuple):
    """What an outer step does, as in the config.

    Attributes:
        mode, tau, tower, patches: of `config.model`; the tower is one of `TOWERS`.
        loss, alpha, gradient, merge: of `config.distill`.
        graph: operations of a mobilenet, up to its average pooling.
    """

    mode: str
    tau: float
    loss: str
    alpha: float
    gradient: str
    merge: str
    tower: str
    patches: tuple
    graph: tuple


class Problem(NamedTuple):
    """One outer step, arrays or tensors by name.

    Attributes:
        learned: images (M, H, W, C), texts (M, d), correspondence/..., log_inner_lr/image, log_inner_lr/text.
        starts, targets: snapshots, R of each parameter.
        backbone: the frozen one of `projection` mode.
        batches: {"rows": (R, S, b)}.
    """

    learned: dict[str, Any]
    starts: dict[str, Any]
    targets: dict[str, Any]
    backbone: dict[str, Any]
    batches: dict[str, Any]


# ---- the device ------------------------------------------------------------------------------------------------------


def use_gpu() -> None:
    """Compute on the first GPU from now on, products in TF32 as JAX does there."""
    torch.set_default_device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def to_torch(arrays) -> dict[str, torch.Tensor]:
    """`torch_tensors.to_torch`, on the device in use."""
    return {name: x.to(torch.get_default_device()) for name, x in torch_tensors.to_torch(arrays).items()}


def finished(run):
    """A function that calls `run`, waits for the device, and returns what it returned."""
    def call():
        results = run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return results

    return call


def to_host(tree: dict) -> dict:
    """Tensors by name, where numpy finds them."""
    return {name: x.cpu() for name, x in tree.items()}


def gpu_memory(run) -> int | None:
    """Bytes of the GPU that a call of `run` needs beyond what is there before; None where the GPU is not in use."""
    if not torch.cuda.is_initialized():
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    finished(run)()
    return torch.cuda.max_memory_allocated() - before


# ---- towers ----------------------------------------------------------------------------------------------------------


def _dense(params, name, x):
    return F.linear(x, params[f"{name}/kernel"].T, params[f"{name}/bias"])


def head(params, x):
    """`h = W1 x; LayerNorm(W2 gelu(h) + h)`: (B, d) -> (B, dim)."""
    h = _dense(params, "projection", x)
    h = _dense(params, "fc", F.gelu(h)) + h
    return F.layer_norm(h, h.shape[-1:], params["layer_norm/scale"], params["layer_norm/bias"], eps=1e-5)


def convnet(params, images, patches):
    """Features of a conv net of non-overlapping patches: (B, H, W, C) -> (B, F)."""
    x = (images - 0.5) * 4
    for stage, patch in enumerate(patches):
        b, h, w, c = x.shape
        x = x.reshape(b, h // patch, patch, w // patch, patch, c).permute(0, 1, 3, 2, 4, 5)
        x = _dense(params, f"Dense_{2 * stage}", x.reshape(b, h // patch, w // patch, patch * patch * c))
        if stage == 0:
            x = x + params["position"]
        x = F.gelu(x, approximate="tanh")
        x = x + F.gelu(_dense(params, f"Dense_{2 * stage + 1}", x), approximate="tanh")
    return x.mean((1, 2))


def mobilenet(params, images, graph):
    """Features of a mobilenet given as a list of operations: (B, H, W, C) -> (B, F). Padding is TensorFlow's SAME."""
    values = {graph[0]["in"][0]: (2 * images - 1).permute(0, 3, 1, 2)}
    for op in graph:
        x = values[op["in"][0]]
        if op["op"] == "ADD":
            y = x + values[op["in"][1]]
        else:
            kernel, stride = params[f"{op['w']}/kernel"].permute(3, 2, 0, 1), op["stride"]
            depthwise = op["op"] == "DEPTHWISE_CONV_2D"
            pads = []
            for size, k in ((x.shape[3], kernel.shape[3]), (x.shape[2], kernel.shape[2])):  # F.pad: last axis first
                total = max((-(-size // stride) - 1) * stride + k - size, 0)
                pads += [total // 2, total - total // 2]
            y = F.conv2d(F.pad(x, pads), kernel, params[f"{op['w']}/bias"], stride,
                         groups=x.shape[1] if depthwise else 1)
            y = y.clamp(0, 6) if op["act"] == 3 else F.relu(y) if op["act"] == 1 else y
        values[op["out"]] = y
    return values[graph[-1]["out"]].mean((2, 3))


def features(backbone, images, settings: Settings):
    """Pooled features of a backbone: (B, H, W, C) in [0, 1] -> (B, F)."""
    if settings.tower == "convnet":
        return convnet(backbone, images, settings.patches)
    if settings.tower == "mobilenet":
        return mobilenet(backbone, images, settings.graph)
    raise ValueError(f"the reference has no tower '{settings.tower}'")


def embed_image(params, inputs, settings: Settings):
    """Images, or in `projection` mode features, -> (B, D), unit length."""
    image = subtree(params, "image")
    x = features(subtree(image, "backbone"), inputs, settings) if settings.mode == "full" else inputs
    projection = subtree(image, "head")
    return F.normalize(head(projection, x) if projection else x, dim=-1, eps=1e-6)


def embed_text(params, texts):
    """Text features (B, d) -> (B, D), unit length."""
    return F.normalize(head(subtree(params, "text"), texts), dim=-1, eps=1e-6)


# ---- losses ----------------------------------------------------------------------------------------------------------


def distillation_loss(name: str, logits, target):
    """Soft-target loss of (b, b) logits; the target is a block of P."""
    if name == "wbce":  # LoRS: positives and the rest averaged apart
        p, other, positive = torch.sigmoid(logits), torch.sigmoid(-logits), (target.detach() > 0.5).float()
        terms = -target * torch.log(p + 1e-6) - (1 - target) * torch.log(other + 1e-6)
        mean = lambda mask: (terms * mask).sum() / mask.sum().clamp(min=1)
        return (mean(positive) + mean(1 - positive)) / 2
    if name == "probability":
        return soft_cross_entropy(logits, 10 * target)
    if name != "nce":
        raise ValueError(f"the reference has no loss '{name}'")
    return sum(-(target * F.log_softmax(logits, axis)).sum(axis).mean() for axis in (0, 1)) / 2


def soft_cross_entropy(logits, target_logits):
    """Cross entropy to the probabilities `softmax(target_logits)`, rows and columns averaged."""
    return sum(-(F.softmax(target_logits, axis) * F.log_softmax(logits, axis)).sum(axis).mean() for axis in (0, 1)) / 2


def pair_losses(name: str, q: float, logits):
    """InfoNCE or GCE of each pair of a batch, both directions averaged: (B, B) -> (B,)."""
    own = [F.log_softmax(x, 1).diagonal() for x in (logits, logits.T)]
    return sum(-x if name == "infonce" else (1 - torch.exp(q * x)) / q for x in own) / 2


# ---- the outer step --------------------------------------------------------------------------------------------------


def outer_gradient(problem: Problem, settings: Settings):
    """Matching loss averaged over the R trajectories, and its gradient by all that is learned.

    Args:
        problem: of tensors.
        settings: what the outer step does.

    Returns:
        (scalar, {name: gradient}).
    """
    images = problem.learned["images"].detach().requires_grad_()
    inputs = images if settings.mode == "full" else features(problem.backbone, images, settings)
    learned = {name: x.detach().requires_grad_() for name, x in (problem.learned | {"images": inputs}).items()}
    unrolled = _exact if settings.gradient == "exact" else _two_passes
    trajectories = len(problem.batches["rows"])
    total, gradient = 0.0, {name: torch.zeros_like(x) for name, x in learned.items()}
    for r, batches in enumerate(problem.batches["rows"]):
        start, target = ({name: x[r] for name, x in tree.items()} for tree in (problem.starts, problem.targets))
        loss, gradients = unrolled(start, target, batches, learned, settings)
        total += loss / trajectories
        for total_gradient, of_trajectory in zip(gradient.values(), gradients, strict=True):
            total_gradient += of_trajectory / trajectories
    if settings.mode == "projection":  # once, however many inner steps
        gradient["images"], = torch.autograd.grad(inputs, images, gradient["images"])
    return total, gradient


def _student_loss(params, learned, rows, settings):
    v = embed_image(params, learned["images"][rows], settings)
    t = embed_text(params, learned["texts"][rows])
    return distillation_loss(settings.loss, v @ t.T / settings.tau, correspondence(learned, rows, settings.alpha))


def _inner_gradient(params, learned, rows, settings, create_graph: bool):
    loss = _student_loss(params, learned, rows, settings)
    return torch.autograd.grad(loss, list(params.values()), create_graph=create_graph)


def _step_sizes(learned):
    return {branch: learned[f"log_inner_lr/{branch}"].exp() for branch in ("image", "text")}


def _stepped(params, gradients, steps):
    """`theta - a g`, each branch with its own a."""
    return {name: p - steps[name.partition("/")[0]] * g for (name, p), g in zip(params.items(), gradients, strict=True)}


def _leaves(params):
    return {name: p.detach().requires_grad_() for name, p in params.items()}


def _exact(start, target, batches, learned, settings):
    """Back-propagation through the whole unroll, whose graph is kept."""
    params, steps = _leaves(start), _step_sizes(learned)
    for rows in batches:
        params = _stepped(params, _inner_gradient(params, learned, rows, settings, True), steps)
    loss = matching_loss(params, start, target, settings.merge)
    return loss.detach(), torch.autograd.grad(loss, list(learned.values()))


def _two_passes(start, target, batches, learned, settings):
    """TESLA: the final parameters are `theta_0 - sum_i a g_i`, so dL = -sum_i (dL/dtheta_S)^T d(a g_i)."""
    constant = {name: x.detach() for name, x in learned.items()}
    params, step_sizes = _leaves(start), _step_sizes(constant)
    for rows in batches:
        params = _leaves(_stepped(params, _inner_gradient(params, constant, rows, settings, False), step_sizes))
    loss = matching_loss(params, start, target, settings.merge)
    by_last = torch.autograd.grad(loss, list(params.values()))

    total = [torch.zeros_like(x) for x in learned.values()]
    params = _leaves(start)
    for rows in batches:
        after = _stepped(params, _inner_gradient(params, learned, rows, settings, True), _step_sizes(learned))
        pushed = sum((v * p).sum() for v, p in zip(by_last, after.values(), strict=True))
        for gradient, of_step in zip(total, torch.autograd.grad(pushed, list(learned.values())), strict=True):
            gradient += of_step
        params = _leaves(after)
    return loss.detach(), total


def matching_loss(final, start, target, merge: str):
    """`|final - target|^2 / |start - target|^2`, a branch and summed (`separate`) or as one ratio (`merged`)."""
    square = lambda a, branch: sum(((a[name] - target[name]) ** 2).sum() for name in a if name.startswith(branch))
    left, travelled = ([square(a, branch) for branch in ("image/", "text/")] for a in (final, start))
    if merge == "merged":
        return sum(left) / sum(travelled)
    return sum(a / b for a, b in zip(left, travelled, strict=True))


# ---- the expert step -------------------------------------------------------------------------------------------------


def expert_steps(params, data: dict, recipe: dict, settings: Settings):
    """SGD steps of one expert on real pairs.

    Args:
        params: {name: tensor}.
        data: images (uint8 pixels or features) and texts; rows of each, `image_rows` and `text_rows` (steps, B);
            weights of the tracks, `clean` and `tolerant` (steps, B); embeddings by teachers, `teacher_images` and
            `teacher_texts`, or neither.
        recipe: fields of `config.experts`.
        settings: the model.

    Returns:
        Parameters, averaged parameters, (steps,) losses.
    """
    params = _leaves(params)
    average = {name: p.detach().clone() for name, p in params.items()}
    momentum = {name: torch.zeros_like(p) for name, p in params.items()}
    losses = []
    for i, (images, texts) in enumerate(zip(data["image_rows"], data["text_rows"], strict=True)):
        x = data["images"][images]
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        logits = embed_image(params, x, settings) @ embed_text(params, data["texts"][texts]).T / settings.tau
        loss = sum((data[track][i] * pair_losses(recipe[f"{track}_loss"], recipe[f"{track}_q"], logits)).mean()
                   for track in ("clean", "tolerant"))
        if "teacher_images" in data:
            teacher = data["teacher_images"][images] @ data["teacher_texts"][texts].T / recipe["guidance_tau"]
            loss = loss + recipe["guidance_weight"] * soft_cross_entropy(logits, teacher)
        gradients = torch.autograd.grad(loss, list(params.values()))
        losses.append(loss.detach())
        decay = min(recipe["ema_decay"], (1 + i) / (10 + i))
        with torch.no_grad():
            for (name, p), g in zip(params.items(), gradients, strict=True):
                momentum[name].mul_(recipe["momentum"]).add_(g + recipe["weight_decay"] * p)
                p -= recipe["lr"] * momentum[name]
                average[name].mul_(decay).add_(p, alpha=1 - decay)
    return {name: p.detach() for name, p in params.items()}, average, torch.stack(losses)


# ---- memory ----------------------------------------------------------------------------------------------------------


def save_problem(path, problem: Problem, settings: Settings) -> None:
    """Write both as one .npz; arrays must be numpy's."""
    arrays = {f"{field}:{name}": x for field, part in problem._asdict().items() for name, x in part.items()}
    np.savez(path, settings=json.dumps(settings._asdict()), **arrays)


def load_problem(path) -> tuple[Problem, Settings]:
    """Read what `save_problem` wrote, as tensors."""
    with np.load(path, allow_pickle=False) as file:
        settings = Settings(**json.loads(str(file["settings"])))
        parts = {field: {} for field in Problem._fields}
        for name in file.files:
            field, _, leaf = name.partition(":")
            if field in parts:
                parts[field][leaf] = file[name]
    return Problem(**{field: to_torch(part) for field, part in parts.items()}), settings


def main(path: str, threads: str) -> None:
    """Print by how many bytes one `outer_gradient` of a saved problem makes this process grow at most (Linux).

    Inputs, the interpreter and PyTorch itself are not counted: a short unroll has loaded all of them before.

    Args:
        path: of `save_problem`.
        threads: of PyTorch.
    """
    torch.set_num_threads(int(threads))
    problem, settings = load_problem(path)
    outer_gradient(problem._replace(batches={"rows": problem.batches["rows"][:1, :1]}), settings)
    Path("/proc/self/clear_refs").write_text("5")  # restart the peak
    before = _kilobytes("VmRSS")
    outer_gradient(problem, settings)
    print(1024 * (_kilobytes("VmHWM") - before))


def _kilobytes(field: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith(field + ":")))


if __name__ == "__main__":
    main(*sys.argv[1:])
