"""Run by test_mesh.py in processes of their own, on 1, 2 or 8 virtual devices, in one process or two."""

import contextlib
import functools
import io
import logging
import os
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

jax.config.update("jax_disable_most_optimizations", True)
port, process, processes, out = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, process)

from mdw_jax.config import base  # noqa: E402
from mdw_jax.config.overrides import preset_config  # noqa: E402
from mdw_jax.config.sections import fields  # noqa: E402
from mdw_jax.data.decoding import Encoded  # noqa: E402
from mdw_jax.data.lazy_images import LazyImages  # noqa: E402
from mdw_jax.data.stored_rows import create_rows, finished_rows  # noqa: E402
from mdw_jax.errors import UserError  # noqa: E402
from mdw_jax.method import teacher_embeddings  # noqa: E402
from mdw_jax.method.caption_search import top_captions  # noqa: E402
from mdw_jax.method.distill import Method, init_state, make_outer_step, outer_shapes  # noqa: E402
from mdw_jax.method.expert_step import Recipe  # noqa: E402
from mdw_jax.method.experts import train_experts  # noqa: E402
from mdw_jax.method.students import Protocol, StudentData, evaluate  # noqa: E402
from mdw_jax.models.dual_encoder import dual_encoder  # noqa: E402
from mdw_jax.models.embedding import Inputs  # noqa: E402
from mdw_jax.models.image.convnet import convnet  # noqa: E402
from mdw_jax.models.image.tower import Tower  # noqa: E402
from mdw_jax.runtime import mesh  # noqa: E402
from mdw_jax.runtime.processes import broadcast_from_main, is_main  # noqa: E402
from mdw_jax.runtime.pytree import stack  # noqa: E402


def main(mode):
    c = base()
    c.update_from_flattened_dict({
        "experts.count": 1, "experts.epochs": 3, "experts.batch": 16, "experts.warmup": 1, "experts.teacher_count": 0,
        "experts.recovery_start": 1, "distill.pairs": 8, "distill.inner_steps": 2, "distill.batch": 4,
        "distill.trajectories": 2, "distill.rank": 2, "distill.ceo": False, "distill.chunk": 4, "distill.optimizer": "sgd",
        "evaluate.steps": 4, "evaluate.every": 2, "evaluate.batch": 8, "evaluate.lr_scales": (1.0,),
        "evaluate.students": 2, "distill.gradient": "detached" if mode == "projection" else "exact"})
    c = preset_config(c, "mdw")
    generator = np.random.default_rng(0)
    split = lambda n: Inputs(jnp.asarray(generator.integers(256, size=(n, 8, 8, 3)), jnp.uint8),
                             jnp.asarray(generator.normal(size=(n, 6)), jnp.float32), np.arange(n))
    tower = convnet((8, 8, 3), (4,), (10,))
    model = dual_encoder(tower, tower.init(jax.random.key(1)), 6, mode=mode, dim=8)
    train, val = split(64), split(16)
    if mode == "projection":
        seen = jax.jit(model.inputs)
        train, val = (data._replace(images=seen(data.images / 255.0)) for data in (train, val))
    trained = train_experts(model, train, val, fields(Recipe, c.experts), count=1, seed=0, keep=3)
    method = fields(Method, c.distill)
    images, texts = generator.uniform(size=(8, 8, 8, 3)), generator.normal(size=(8, 6))
    state, step = init_state(jax.random.key(2), method, images, texts), make_outer_step(model, method)
    starts, targets = (stack([trained.snapshots[n][at] for n in (0, 1)]) for at in (0, 2))
    if processes == 1:
        step.lower(*outer_shapes(model, method, 2, images.shape, texts.shape)).compile()
    losses, weights = [], mesh.replicated(jnp.ones((8, 8, 8, 1)))
    with compiling() as compiled:
        for n in range(2):
            state, metrics = step(state, starts, targets, weights, jax.random.key(n))
            losses.append(float(metrics["loss"]))
    assert processes > 1 or not any("outer_step" in line for line in compiled), compiled
    learned = jax.tree.map(np.asarray, state.learned)
    inputs = jnp.asarray(learned["images"]) if mode == "full" else jax.jit(model.inputs)(learned["images"])
    lesson = StudentData(inputs, jnp.asarray(learned["texts"]), learned["correspondence"],
                    {"image": 0.1, "text": 0.1}, method.loss, method.alpha)
    scored = evaluate(model, lesson, val, val, fields(Protocol, c.evaluate), seed=3)
    return {"experts": trained.snapshots[1][3], "learned": learned, "losses": losses,
            "students": scored.params, "log": [row["val_r_mean"] for row in trained.log]}


@contextlib.contextmanager
def compiling():
    """A list that says what is compiled within."""
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("jax").addHandler(handler)
    with jax.log_compiles(True):
        yield said
    logging.getLogger("jax").removeHandler(handler)


def two_epochs():
    """The recipe of one expert that divides after its first epoch, and recovers in the second."""
    c = base()
    c.update_from_flattened_dict({
        "experts.count": 1, "experts.epochs": 2, "experts.batch": 18, "experts.warmup": 1, "experts.teacher_count": 0,
        "experts.recovery_start": 1})
    return fields(Recipe, preset_config(c, "mdw").experts)


def streamed():
    """Experts of pictures that are decoded when asked for, and how many of them this process decoded."""
    recipe, generator = two_epochs(), np.random.default_rng(0)
    pixels, decoded = generator.integers(256, size=(86, 8, 8, 3), dtype=np.uint8), []

    def read(n):
        decoded.append(n)
        buffer = io.BytesIO()
        Image.fromarray(pixels[n]).save(buffer, "png")
        return buffer.getvalue()

    lazy = LazyImages([Encoded(str(n), functools.partial(read, n)) for n in range(86)], 8)
    model = dual_encoder(convnet((8, 8, 3), (4,), (10,)), None, 6, mode="full", dim=8)
    train, val = (Inputs(images, jnp.asarray(generator.normal(size=(n, 6)), jnp.float32), np.arange(n))
                  for images, n in ((lazy, 86), (jnp.asarray(pixels[:16]), 16)))
    trained = train_experts(model, train, val, recipe, count=1, seed=0, keep=2)
    # Where devices are many, each of the two networks has its own; a process needs one of them, or half of each.
    by_networks = 2 * 2 * 72 // processes
    by_teachers = 86 // processes + 8  # they see all images once, rounded up to whole rows for all devices
    assert len(decoded) <= by_networks + by_teachers, (len(decoded), by_networks, by_teachers)
    for at in (0, 85):  # images of the first process and of the last
        broken = LazyImages([Encoded(str(n), functools.partial(read, n) if n != at else lambda: b"no image")
                             for n in range(86)], 8)
        try:
            train_experts(model, train._replace(images=broken), val, recipe, count=1, seed=0, keep=2)
        except UserError as error:
            assert "cannot be decoded" in str(error) or "and all others with it" in str(error), error
        else:
            raise AssertionError("a file that is no image was learned from")
    return {"experts": [snapshots[2] for snapshots in trained.snapshots], "correct": trained.correct.astype(np.float32)}


def stored():
    """Experts whose images, texts and teachers stay in files, and the captions nearest to some images."""
    recipe, generator = two_epochs(), np.random.default_rng(0)
    model = dual_encoder(Tower("stub", lambda key: {}, lambda params, images: images, 6), {}, 6, mode="projection", dim=8)
    rows = generator.normal(size=(2, 86, 6)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        files = [create_rows(Path(folder) / f"{n}.npy", part.shape, np.float32) for n, part in enumerate(rows)]
        for file, part in zip(files, rows, strict=True):
            file[:] = part
        train, val = Inputs(*map(finished_rows, files), np.arange(86)), Inputs(*map(jnp.asarray, rows), jnp.arange(86))
        teacher_embeddings.IN_MEMORY = 0
        trained = train_experts(model, train, val, recipe, count=1, seed=0, keep=2)
    return {"experts": [snapshots[2] for snapshots in trained.snapshots], "loss": [row["loss"] for row in trained.log],
            "nearest": top_captions(rows[0], rows[1], 3)}


def check_broadcast():
    """All processes get what process 0 decides, and its errors."""
    assert broadcast_from_main(lambda: {"process": jax.process_index(), "word": "ä"}) == {
        "process": 0, "word": "ä"}
    assert broadcast_from_main(lambda: None) is None

    def fail():
        raise UserError(f"process {jax.process_index()} failed")

    try:
        broadcast_from_main(fail)
    except UserError as error:
        assert str(error) == "process 0 failed", error
    else:
        raise AssertionError("no process failed")


check_broadcast()
results = {mode: main(mode) for mode in ("projection", "full")} | {"streamed": streamed(), "stored": stored()}
assert len(jax.devices()) == int(os.environ["EXPECTED_DEVICES"])
if is_main():
    leaves = jax.tree_util.tree_leaves_with_path(results)
    np.savez(out, **{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})
