"""What a run would cost, without running it: sizes, operations, memory, time. No data and no weights are opened."""

import math
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mdw_jax.analysis.cost.flops import count_flops
from mdw_jax.config.presets import CORESETS, DISTILLED, WITHOUT_EXPERTS, preset_config
from mdw_jax.config.sections import fields
from mdw_jax.data.registry import image_shape
from mdw_jax.errors import UserError
from mdw_jax.method.distill import Method, make_outer_step, outer_shapes
from mdw_jax.method.expert_step import EpochBatches, Recipe, make_expert_steps
from mdw_jax.method.grad_cam import pixel_weights
from mdw_jax.models.build import tower_without_weights
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.image.conv import as_on_accelerator
from mdw_jax.pipeline.preset_run import snapshots_kept
from mdw_jax.reporting.text import markdown_table


class Device(NamedTuple):
    """peak: FLOP/s of dense matrix products as JAX does float32 by default there (TF32; bfloat16 passes on a TPU).
    memory: bytes. Source: the makers' data sheets."""

    peak: float
    memory: float


DEVICES = {
    "a100": Device(156e12, 80e9), "h100": Device(494e12, 80e9), "h200": Device(494e12, 141e9),
    "tpu_v4": Device(275e12, 32e9), "tpu_v5e": Device(197e12, 16e9), "tpu_v5p": Device(459e12, 95e9),
    "tpu_v6e": Device(918e12, 32e9),
    "cpu": Device(0.1e12, 24e9),  # two cores of a server; measured here, ours
}
_FLOAT = {"float32": 4, "bfloat16": 2}


def plan_command(config: ConfigDict) -> None:
    """Prints the plan of every preset of the run that trains experts."""
    for name in config.run.presets:
        if name in WITHOUT_EXPERTS:
            continue
        c = preset_config(config, name)
        sides = "x".join(map(str, image_shape(c.data)[:2]))
        print(f"{name}: {c.model.tower}, {c.model.mode} mode, {sides} px, M = {c.distill.pairs}, "
              f"{c.plan.images:,} images with {c.plan.captions:,} captions\n", flush=True)
        if c.plan.compile:
            print("mdw: compiling, which takes minutes for large towers; --config.plan.compile=false does without the "
                  "peak memory.", file=sys.stderr)
        print(markdown_table([{"what": what, "value": value} for what, value in plan(c, name).items()]), flush=True)


def plan(c: ConfigDict, preset: str = "mdw") -> dict[str, str]:
    """The plan of one resolved preset: {what: how much}, in order.

    `config.plan` says what is not opened: numbers of images and captions, text width, the device, and the share of its
    peak to reckon with. Raises UserError for an unknown device, or without these numbers.
    """
    p = c.plan
    if p.device not in DEVICES:
        raise UserError(f"plan.device must be one of {', '.join(DEVICES)}, not '{p.device}'.")
    if min(p.images, p.captions, p.text_dim) < 1:
        raise UserError(f"plan.images ({p.images}), plan.captions ({p.captions}) and plan.text_dim ({p.text_dim}) must "
                        "be set: mdw plan opens no data; see configs/flickr30k.py.")
    device = DEVICES[p.device]
    rate = device.peak * p.utilization
    e, d = c.experts, c.distill
    distils = preset in DISTILLED and preset not in CORESETS
    with as_on_accelerator(p.device != "cpu"):
        job = Job(c)
        sizes = job.sizes()
        step = _Cost.of(job.expert_step, job.expert_arguments(), p.compile)
        outer = _Cost.of(job.outer_step, job.outer_arguments(), p.compile) if distils else None
        weighing = count_flops(*job.weighing()) if distils and d.ceo else 0
    networks, scouts = 2 * e.count, 2 * e.teacher_count
    steps = p.captions // e.batch
    runs = networks * e.epochs + (scouts * e.teacher_epochs if e.teacher_count else 0)
    experts = runs * steps * step.flops
    kept = networks * (snapshots_kept(c) + 1) * sum(sizes.values()) * _FLOAT[e.store_dtype]
    distilling = d.sets * d.steps * (outer.flops + weighing / d.ceo_every) if distils else 0
    pixels = p.images * math.prod(image_shape(c.data))
    found = {f"parameters, {part}": f"{size:,}" for part, size in sizes.items()}
    if c.model.mode == "projection":
        found["parameters, frozen backbone"] = f"{job.backbone_size:,}"
    found |= {"training images in memory, uint8": _bytes(pixels) + (" (streamed)" if c.data.stream else ""),
              "trajectories on disk": f"{_bytes(kept)} ({networks} networks x {snapshots_kept(c) + 1} snapshots, "
                                      f"{e.store_dtype})",
              f"expert step of {e.batch} pairs": str(step),
              f"experts, {runs} network epochs of {steps:,} steps": _time(experts, rate, p)}
    if distils:
        found |= {f"outer step ({d.inner_steps} inner of {min(d.batch, d.pairs)}, {d.trajectories} trajectories, "
                  f"{d.gradient})": str(outer),
                  f"distilling {d.sets} set(s), {d.steps} outer steps": _time(distilling, rate, p)}
    most = max(cost.memory or 0 for cost in (step, outer) if cost)
    if most > device.memory:
        found["does not fit"] = f"{_bytes(most)} exceed the {_bytes(device.memory)} of one {p.device}"
    return found


class _Cost(NamedTuple):
    """flops, and peak bytes of the compiled computation (None if it was not compiled)."""

    flops: int
    memory: int | None

    @classmethod
    def of(cls, function, arguments, compiled: bool):
        if not compiled:
            return cls(count_flops(function, *arguments), None)
        found = jax.jit(function).lower(*arguments).compile().memory_analysis()
        return cls(count_flops(function, *arguments), found.temp_size_in_bytes + found.argument_size_in_bytes
                   + found.output_size_in_bytes - found.alias_size_in_bytes)

    def __str__(self):
        memory = f", {_bytes(self.memory)} of memory at most" if self.memory else ""
        return f"{_scaled(self.flops, 1000, ' KMGTPEZ')}FLOP{memory}"


class Job:
    """The computations of a config, as functions of shapes alone."""

    def __init__(self, c: ConfigDict):
        self.c = c
        self.image = image_shape(c.data)
        self.tower = tower_without_weights(c.model, self.image)
        key = jax.eval_shape(jax.random.key, 0)
        self.key = key
        self.backbone = jax.eval_shape(self.tower.init, key)
        self.backbone_size = _size(self.backbone)
        self.params = jax.eval_shape(self.model(None).init, key)
        self.recipe, self.method = fields(Recipe, c.experts), fields(Method, c.distill)

    def model(self, backbone):
        m = self.c.model
        return dual_encoder(self.tower, backbone, self.c.plan.text_dim, mode=m.mode, dim=m.dim,
                            image_head=m.image_head, tau=m.tau, dtype=m.dtype)

    def sizes(self):
        image = self.params["image"]
        return {**{f"image {part}": _size(tree) for part, tree in image.items()},
                "text head": _size(self.params["text"])}

    def expert_arguments(self):
        c, batch = self.c, self.c.experts.batch
        images = (c.plan.images, self.tower.width) if c.model.mode == "projection" else (
            batch if c.data.stream else c.plan.images, *self.image)
        rows = _shape((1, batch), jnp.int32)
        weights, keys = _shape((1, batch)), jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        said = None
        if self.recipe.guidance_weight > 0 and self.recipe.division in ("gmm", "oracle"):
            width = jax.eval_shape(lambda p, t: self.model(None).embed_text(p["text"], t), self.params,
                                   self._texts(1)).shape[1] * self.recipe.peers
            said = (_shape((c.plan.images, width)), _shape((c.plan.captions, width)))
        optimizer = jax.eval_shape(lambda p: make_expert_steps(self.model(None), self.recipe, 0.0).optimizer.init(p), self.params)
        carry = (self.params, optimizer, (self.params, _shape(())))
        plan = EpochBatches(rows, rows, None, rows, rows, weights, weights)
        dtype = jnp.float32 if c.model.mode == "projection" else jnp.uint8
        return (carry, plan, keys, said), _shape(images, dtype), self._texts(c.plan.captions)

    def expert_step(self, one, images, texts):
        return make_expert_steps(self.model(None), self.recipe, 0.0).epoch(one, images, texts, None)

    def outer_arguments(self):
        d = self.c.distill
        images, texts = (d.pairs, *self.image), (d.pairs, self.c.plan.text_dim)
        return self._frozen(), *outer_shapes(self.model(None), self.method, d.trajectories, images, texts)

    def outer_step(self, backbone, *arguments):
        return make_outer_step(self.model(backbone), self.method)(*arguments)

    def weighing(self):
        """CEO's Grad-CAM weights: (function, arguments ...)."""
        backbone, state, *_ = self.outer_arguments()
        d = self.c.distill

        def weigh(backbone, params, learned):
            return pixel_weights(self.model(backbone), params, learned["images"], learned["texts"],
                                 learned["correspondence"], alpha=d.alpha, top_k=min(d.ceo_top_k, d.pairs),
                                 beta=d.ceo_beta)

        return weigh, backbone, self.params, state.learned

    def _frozen(self):
        return self.backbone if self.c.model.mode == "projection" else None

    def _texts(self, rows: int):
        return _shape((rows, self.c.plan.text_dim))


def _shape(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def _size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(number: float) -> str:
    return f"{_scaled(number, 1024, ' KMGTP')}{'B' if number < 1024 else 'iB'}"


def _scaled(number: float, step: int, prefixes: str) -> str:
    """Three digits and a prefix: 3.21e12 -> "3.21 T"."""
    power = min(int(math.log(max(number, 1), step)), len(prefixes) - 1)
    return f"{number / step ** power:.3g} {prefixes[power].strip()}"


def _time(flops: float, rate: float, p: ConfigDict) -> str:
    seconds = flops / rate
    unit, size = next((u, s) for u, s in (("days", 86400), ("h", 3600), ("min", 60), ("s", 0.0)) if seconds >= s)
    return (f"{_scaled(flops, 1000, ' KMGTPEZ')}FLOP, {seconds / (size or 1):.3g} {unit} on one {p.device} at "
            f"{p.utilization:.0%} of its peak")
