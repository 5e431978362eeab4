"""Parts of the benchmark beside training steps: the device's peak, the store of snapshots, students."""

import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.analysis.benchmark.case import Case
from mdw_jax.analysis.benchmark.rows import MDW_JAX, PEAK, TORCH, Measured, cost_rows, ratio_row, value_row
from mdw_jax.analysis.benchmark.timing import Program, medians, without_compilation_cache
from mdw_jax.analysis.cost.flops import count_flops
from mdw_jax.config.sections import fields
from mdw_jax.io.trajectory import open_trajectory, read_snapshot, save_trajectory
from mdw_jax.method.objective import step_sizes
from mdw_jax.method.students import Protocol, make_trainer
from mdw_jax.models.embedding import compiled_inputs
from mdw_jax.pipeline.preset_run import last_snapshot
from mdw_jax.runtime.rng import named_key

STUDENTS, STUDENT_STEPS = 5, 20


def matrix_product(reference, repeats: int) -> Measured:
    """Measure a large float32 product: what the device can do at best.

    Args:
        reference: the module `torch_reference`, or None.
        repeats: timed calls.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    a, multiply = jnp.asarray(x), jax.jit(jnp.matmul)
    runs = {MDW_JAX: lambda: jax.block_until_ready(multiply(a, a))}
    if reference:
        b = reference.to_torch({"x": x})["x"]
        runs[TORCH] = reference.finished(lambda: b @ b)
    rates = {name: 2e-9 * size ** 3 / seconds for name, seconds in medians(runs, repeats).items()}
    measure = f"{PEAK} {size} x {size}"
    rows = [value_row(measure, rates[MDW_JAX], "GFLOP/s")]
    if reference:
        rows.append(ratio_row(measure, TORCH, rates[MDW_JAX], rates[TORCH], "GFLOP/s"))
    return Measured(rows, [])


def store(case: Case, repeats: int, directory: Path) -> Measured:
    """Measure writing a trajectory of as many snapshots as a run keeps, and reading one: through the page cache.

    Args:
        case: what is measured.
        repeats: timed calls.
        directory: where a temporary one is made.
    """
    count, dtype = last_snapshot(case.config) + 1, case.config.experts.store_dtype
    params = jax.tree.map(lambda x: np.asarray(x[0]), case.starts)
    megabytes = sum(x.size for x in jax.tree.leaves(params)) * jnp.dtype(dtype).itemsize / 1e6
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as scratch:
        paths = (Path(scratch) / str(n) for n in range(repeats + 1))
        writing = medians({"": lambda: save_trajectory(next(paths), [params] * count, key="", dtype=dtype)}, repeats)
        trajectory = open_trajectory(Path(scratch) / "0")
        reading = medians({"": lambda: read_snapshot(trajectory, count - 1)}, repeats)
    size = f"{megabytes:.3g} MB each, {dtype}"
    return Measured([value_row(f"writing {count} snapshots, {size}", count * megabytes / writing[""], "MB/s"),
                     value_row(f"reading one snapshot, {size}", megabytes / reading[""], "MB/s")], [])


def students(case: Case, repeats: int) -> Measured:
    """Measure training students on the distilled set, as an evaluation does between two looks at val.

    Args:
        case: what is measured.
        repeats: timed calls.
    """
    config, learned = case.config, case.learned
    protocol = dataclasses.replace(fields(Protocol, config.evaluate), every=STUDENT_STEPS)
    start, advance = make_trainer(case.model, protocol, case.method.loss, case.method.alpha)
    group = [start(named_key(config.run.seed, "bench", n)) for n in range(STUDENTS)]
    inputs = compiled_inputs(case.model)(learned["images"])
    steps = step_sizes(learned)
    arguments = (group, inputs, learned["texts"], learned["correspondence"], steps)
    run = lambda: jax.block_until_ready(advance(*arguments))
    with without_compilation_cache():
        begin = time.perf_counter()
        run()
        first = time.perf_counter() - begin
    seconds = medians({"": run}, repeats)[""]
    measure = f"training {STUDENTS} students for {STUDENT_STEPS} steps"
    # On several devices `advance` lays out the mesh itself, and nothing can trace that.
    flops = count_flops(advance, *arguments) if len(jax.devices()) == 1 else None
    program = Program(run, compile_seconds=first - seconds, flops=flops)
    return Measured([value_row(measure, seconds, "s"), *cost_rows(measure, program, seconds)], [])
