"""How fast the computations of a config are on this machine, in ratios: `mdw bench`.

Everything runs in this process on random tensors of the config's shapes (no data are opened), without augmentation and
mixing. What is compared with what takes turns, so that other work on the machine slows both, and medians are reported.
References: a loop that runs the frozen backbone inside every inner step (`projection` mode), and our own PyTorch code
for the same computation (`torch_reference.py`; CPU only, and only if torch is installed). Outputs are compared first:
where they differ, there is no ratio.
"""

import dataclasses
import functools
import os
import platform
import tempfile
import time
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.analysis.benchmark.case import Case, make_case
from mdw_jax.analysis.benchmark.timing import (
    Program,
    _compile,
    _flat,
    compiled,
    medians,
    threads,
    without_compilation_cache,
)
from mdw_jax.analysis.benchmark.torch_problem import find_reference, torch_memory, torch_problem, torch_settings
from mdw_jax.analysis.cost.flops import count_flops
from mdw_jax.config.presets import preset_config
from mdw_jax.config.sections import fields
from mdw_jax.data.registry import image_shape
from mdw_jax.io.files import write_csv
from mdw_jax.io.trajectory import open_trajectory, read_snapshot, save_trajectory
from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.distill import Method, init_state, make_outer_step, objective
from mdw_jax.method.expert_step import Recipe, make_epoch_batches, make_expert_steps
from mdw_jax.method.losses import soft_loss
from mdw_jax.method.matching import GRADIENTS, matching_loss, unroll
from mdw_jax.method.students import Protocol, make_trainer
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import compiled_inputs
from mdw_jax.models.jit import jit_with_frozen
from mdw_jax.pipeline.preset_run import snapshots_kept
from mdw_jax.pipeline.run_folder import run_folder
from mdw_jax.reporting.text import markdown_table
from mdw_jax.runtime.progress import progress
from mdw_jax.runtime.rng import named_generator, named_key

TOLERANCE = 5e-3  # relative difference of outputs beyond which times are not compared: float32, through an unroll
STUDENTS, STUDENT_STEPS = 5, 20
COLUMNS = ("what", "ours", "reference", "ratio", "unit", "device", "threads", "versions")
_LESS_IS_BETTER = ("s", "MiB")
_PEAK = "matrix product"
_NAIVE, _TORCH = "the backbone in every inner step", "PyTorch"


def bench_command(config: ConfigDict, repeats: int = 5) -> None:
    """Measures the config (as the preset `mdw` has it), prints a table and writes `<run.dir>/bench.csv`.

    repeats: how often each computation is timed, after a call that does not count.
    """
    c = preset_config(config, "mdw")
    folder, about = run_folder(c), machine()
    rows, remarks = bench(c, folder, repeats)
    write_csv(folder / "bench.csv", list(COLUMNS), [{**row, **about} for row in rows])
    d, sides = c.distill, "x".join(map(str, image_shape(c.data)[:2]))
    print(f"{c.model.tower}, {c.model.mode} mode, {sides} px, M = {d.pairs}, S = {d.inner_steps}, b = {d.batch}, "
          f"{d.trajectories} trajectories, loss {d.loss}; medians of {repeats}\n"
          f"{about['device']}, {about['threads']} of {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; "
          f"{about['versions']}")
    print(*remarks, "", sep="\n")
    print(markdown_table([{name: _digits(row.get(name)) for name in COLUMNS[:5]} for row in rows]))
    print(f"a ratio says how many times better ours is; below 1 it is worse.  {folder / 'bench.csv'}")


def bench(c: ConfigDict, folder: Path, repeats: int) -> tuple[list[dict], list[str]]:
    """Rows of the table, those with a ratio first, and what there is to say about them. c: resolved."""
    reference, why_not = find_reference(c)
    rows, remarks = [], [why_not] if why_not else []
    if c.distill.augment != "none" or c.distill.mixup or c.experts.augment != "none":
        remarks.append("augmentation and mixing are left out of what is measured.")
    parts = (matrix_product, expert_step, outer_step, store, students)
    with progress("bench", len(parts), "parts") as advance:
        case = make_case(c)
        for part in parts:
            found, said = part(case, reference, repeats, folder)
            rows += found
            remarks += said
            advance()
    peak = next(row["ours"] for row in rows if row["what"].startswith(_PEAK))
    rows += [_row(f"share of the {_PEAK}'s {row['what']}", 100 * row["ours"] / peak, "%")
             for row in rows if row["what"].startswith("rate of")]
    return sorted(rows, key=lambda row: row.get("ratio") is None), remarks


# ---- what is measured ------------------------------------------------------------------------------------------------


def outer_gradient(model: DualEncoder, method: Method):
    """Ours: (learned, starts, targets, batches) -> (loss, gradient by all that is learned), jitted."""
    def matching(model, learned, starts, targets, batches):
        return objective(model, method, learned, starts, targets, batches, jax.random.key(0))[0]

    return jit_with_frozen(model, jax.value_and_grad(matching, argnums=1))


def naive_outer_gradient(model: DualEncoder, method: Method):
    """The same function of the same arguments in `projection` mode, with the backbone run in every inner step.

    Inner steps are rematerialized, as ours are; trajectories follow one another.
    """
    soft = soft_loss(method.loss)

    def matching(model, learned, starts, targets, batches):
        def inner_loss(params, rows):
            logits = model.logits(params, model.inputs(learned["images"][rows]), learned["texts"][rows])
            return soft(logits, correspondence(learned["correspondence"], rows, method.alpha))

        def trajectory(one):
            start, target, batches = one
            steps = jax.tree.map(jnp.exp, learned["log_steps"])
            final, _ = unroll(inner_loss, start, batches, steps, gradient=method.gradient)
            return matching_loss(final, start, target, method.loss_merge)

        return jax.lax.map(trajectory, (starts, targets, batches)).mean()

    return jit_with_frozen(model, jax.value_and_grad(matching, argnums=1))


# ---- the parts of the bench: (case, PyTorch reference or None, repeats, folder) -> (rows, remarks) -------------------


def matrix_product(case: Case, reference, repeats: int, folder: Path):
    """A large float32 product: what the device can do at best."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    a, multiply = jnp.asarray(x), jax.jit(jnp.matmul)
    runs = {"ours": lambda: jax.block_until_ready(multiply(a, a))}
    if reference:
        b = reference.to_torch({"x": x})["x"]
        runs[_TORCH] = lambda: b @ b
    rates = {who: 2e-9 * size ** 3 / seconds for who, seconds in medians(runs, repeats).items()}
    what = f"{_PEAK} {size} x {size}"
    return [_row(what, rates["ours"], "GFLOP/s"),
            *([_against(what, _TORCH, rates["ours"], rates[_TORCH], "GFLOP/s")] if reference else [])], []


def expert_step(case: Case, reference, repeats: int, folder: Path):
    """Steps of one network on two batches of random pairs."""
    c, recipe = case.c, dataclasses.replace(fields(Recipe, case.c.experts), augment="none")
    generator = named_generator(c.run.seed, "bench", "experts")
    pairs, text_dim = 2 * recipe.batch, case.learned["texts"].shape[1]
    if c.model.mode == "projection":
        images = generator.uniform(size=(pairs, case.tower.width)).astype(np.float32)
    else:
        images = generator.integers(256, size=(pairs, *image_shape(c.data)), dtype=np.uint8)
    texts = generator.normal(size=(pairs, text_dim)).astype(np.float32)
    clean = generator.integers(2, size=pairs)
    params = case.model.init(named_key(c.run.seed, "bench", 0))
    said = None
    if recipe.guidance_weight > 0 and recipe.division in ("gmm", "oracle"):
        width = case.model.embed_text(params["text"], texts[:1]).shape[1] * recipe.peers
        said = tuple(generator.normal(size=(2, pairs, width)).astype(np.float32) / np.sqrt(width))
    do = make_expert_steps(case.model, recipe, 0.0)
    plan = make_epoch_batches(generator, np.arange(pairs), recipe.batch, clean, 1 - clean, np.arange(pairs))
    carry = (params, do.optimizer.init(params), (params, jnp.float32(0)))
    keys = jax.random.split(named_key(c.run.seed, "bench"), len(plan.rows))
    epoch, shared = jax.jit(do.epoch), (jnp.asarray(images), jnp.asarray(texts), None)
    ours = compiled(epoch, (carry, plan, keys, said), *shared)
    programs, remarks = {"ours": ours}, []
    if reference and (recipe.debias or {recipe.clean_loss, recipe.tolerant_loss} - set(reference.LABEL_LOSSES)):
        remarks.append("the PyTorch reference does not know this recipe's losses: no ratio for expert steps.")
    elif reference:
        data = {"images": images, "texts": texts, "image_rows": plan.images, "text_rows": plan.captions,
                "clean": plan.clean, "tolerant": plan.tolerant}
        data |= {"said_images": said[0], "said_texts": said[1]} if said else {}
        theirs = functools.partial(
            reference.expert_steps, reference.to_torch(_flat(params)), reference.to_torch(data),
            dataclasses.asdict(recipe), torch_settings(case, reference, "exact"))

        def outputs(begin, new, average, losses):
            # How far they moved: parameters themselves are mostly where they began.
            return {"losses": losses, **_moves(begin, new, "new"), **_moves(begin, average, "average")}

        def ours_from(begin):
            _, state, (_, count) = carry
            (new, _, (average, _)), losses, _ = epoch(((begin, state, (begin, count)), plan, keys, said), *shared)
            return outputs(begin, new, average, losses)

        found = ours_from(params)
        agree, remark = agreement("expert steps", _TORCH, found, outputs(params, *theirs()),
                                  difference(found, ours_from(_rounded(params)))[0])
        remarks.append(remark)
        if agree:
            programs[_TORCH] = Program(theirs)
    seconds = medians({who: program.run for who, program in programs.items()}, repeats)
    what = "expert steps of one network"
    rows = [_row(what, pairs / seconds["ours"], "pairs/s"), *_costs(what, ours, seconds["ours"])]
    if _TORCH in seconds:
        rows.append(_against(what, _TORCH, pairs / seconds["ours"], pairs / seconds[_TORCH], "pairs/s"))
    return rows, remarks


def outer_step(case: Case, reference, repeats: int, folder: Path):
    """Both gradients of the matching loss against their references, and a whole outer step with its optimizer."""
    remarks, rows = [], []
    if reference and case.method.loss not in reference.SOFT_LOSSES:
        remarks.append(f"the PyTorch reference has no loss '{case.method.loss}': no ratio for outer gradients.")
        reference = None
    whole = _whole_step(case)
    programs = {(f"outer step, {case.method.gradient}", "ours"): whole}
    for gradient in GRADIENTS:
        what, method = f"outer gradient, {gradient}", dataclasses.replace(case.method, gradient=gradient)
        function, arguments = outer_gradient(case.model, method), _outer_arguments(case)
        programs[what, "ours"] = compiled(function, *arguments)
        found, rounded = (_outputs(*function(*given)) for given in (arguments, _rounded(arguments)))
        rounding, _ = difference(found, rounded)
        for who, program, outputs in _references(case, method, reference):
            agree, said = agreement(what, who, found, outputs, rounding)
            remarks.append(said)
            if agree:
                programs[what, who] = program
    seconds = medians({name: program.run for name, program in programs.items()}, repeats)
    for (what, who), program in programs.items():
        ours = programs[what, "ours"]
        if who == "ours":
            rows += [_row(what, seconds[what, who], "s"), *_costs(what, ours, seconds[what, who])]
            continue
        rows.append(_against(what, who, seconds[what, "ours"], seconds[what, who], "s"))
        if program.memory and ours.memory:
            rows.append(_against(_memory(what), who, ours.memory / 2**20, program.memory / 2**20, "MiB"))
        if program.compiling:
            rows.append(_against(f"compiling {what}", who, ours.compiling, program.compiling, "s"))
    return rows, remarks


def _outer_arguments(case: Case):
    return case.learned, case.starts, case.targets, case.batches


def _outputs(loss, gradients) -> dict:
    return {"loss": loss, **_flat(gradients)}


def _references(case: Case, method: Method, reference):
    """Yield (who, program, {name: output}) for the naive loop, in `projection` mode, and for PyTorch, if it is there."""
    if case.model.mode == "projection":
        program = compiled(naive_outer_gradient(case.model, method), *_outer_arguments(case))
        yield _NAIVE, program, _outputs(*program.run())
    if reference:
        problem, settings = torch_problem(case, reference), torch_settings(case, reference, method.gradient)
        tensors = reference.Problem(*map(reference.to_torch, problem))
        run = functools.partial(reference.outer_gradient, tensors, settings)
        loss, gradients = run()
        yield _TORCH, Program(run, memory=torch_memory(reference, problem, settings)), {"loss": loss, **gradients}


def _whole_step(case: Case) -> Program:
    """The outer step with the config's own gradient, on a state that goes on from call to call."""
    images, texts = (jnp.copy(case.learned[name]) for name in ("images", "texts"))
    state = init_state(jax.random.key(0), case.method, images, texts)
    rest = (case.starts, case.targets, jnp.ones((*images.shape[:3], 1)), jax.random.key(0))
    step = make_outer_step(case.model, case.method)
    costs = _compile(step, state, *rest)

    def run():
        nonlocal state  # its buffers are given away at each step
        state, metrics = step(state, *rest)
        jax.block_until_ready(metrics)

    return Program(run, *costs)


def store(case: Case, reference, repeats: int, folder: Path):
    """Writing a trajectory of as many snapshots as a run keeps, and reading one: through the page cache."""
    count, dtype = snapshots_kept(case.c) + 1, case.c.experts.store_dtype
    params = jax.tree.map(lambda x: np.asarray(x[0]), case.starts)
    size = sum(x.size for x in jax.tree.leaves(params)) * jnp.dtype(dtype).itemsize / 1e6
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-") as scratch:
        places = (Path(scratch) / str(n) for n in range(repeats + 1))
        writing = medians({"": lambda: save_trajectory(next(places), [params] * count, key="", dtype=dtype)}, repeats)
        trajectory = open_trajectory(Path(scratch) / "0")
        reading = medians({"": lambda: read_snapshot(trajectory, count - 1)}, repeats)
    about = f"{size:.3g} MB each, {dtype}"
    return [_row(f"writing {count} snapshots, {about}", count * size / writing[""], "MB/s"),
            _row(f"reading one snapshot, {about}", size / reading[""], "MB/s")], []


def students(case: Case, reference, repeats: int, folder: Path):
    """Training students on the distilled set, as an evaluation does between two looks at val."""
    c, learned = case.c, case.learned
    protocol = dataclasses.replace(fields(Protocol, c.evaluate), every=STUDENT_STEPS)
    start, advance = make_trainer(case.model, protocol, case.method.loss, case.method.alpha)
    group = [start(named_key(c.run.seed, "bench", n)) for n in range(STUDENTS)]
    inputs = compiled_inputs(case.model)(learned["images"])
    steps = jax.tree.map(jnp.exp, learned["log_steps"])
    arguments = (group, inputs, learned["texts"], learned["correspondence"], steps)
    run = lambda: jax.block_until_ready(advance(*arguments))
    with without_compilation_cache():
        begin = time.perf_counter()
        run()
        first = time.perf_counter() - begin
    seconds = medians({"": run}, repeats)[""]
    what = f"training {STUDENTS} students for {STUDENT_STEPS} steps"
    # On several devices `advance` lays out the mesh itself, and nothing can trace that.
    flops = count_flops(advance, *arguments) if len(jax.devices()) == 1 else None
    program = Program(run, compiling=first - seconds, flops=flops)
    return [_row(what, seconds, "s"), *_costs(what, program, seconds)], []


# ---- measuring and comparing -----------------------------------------------------------------------------------------


def difference(ours: dict, other: dict) -> tuple[float, str]:
    """The largest `|a - b| / |b|` (Euclidean norms) of two dicts of arrays or tensors, and the name of it.

    NaN counts as larger than all. Raises ValueError if their names differ.
    """
    if ours.keys() != other.keys():
        raise ValueError(f"not the same outputs: {sorted(ours)} and {sorted(other)}.")

    def relative(name):
        a, b = (np.asarray(x, np.float64).ravel() for x in (ours[name], other[name]))
        off, size = np.linalg.norm(a - b), np.linalg.norm(b)
        return float(off / size if size > 0 else off)

    return max(((relative(name), name) for name in ours), key=lambda found: (np.isnan(found[0]), found))


def agreement(what: str, who: str, ours: dict, other: dict, rounding: float) -> tuple[bool, str]:
    """Whether outputs agree within `TOLERANCE`, or thrice what `rounding` moves ours; and the sentence that says so.

    Nothing agrees where rounding moves more than a tenth: there is nothing to tell.
    """
    most, where = difference(ours, other)
    if rounding > 0.1 and not most <= TOLERANCE:
        return False, (f"{what} and {who} cannot be compared: rounding alone moves ours by {rounding:.1g}, so there is "
                       "no ratio; try smaller distill.inner_lr_image, distill.inner_lr_text or experts.lr.")
    if most <= max(TOLERANCE, 3 * rounding):
        return True, (f"{what} and {who} agree: they differ by {most:.1g} at most ({where}), and rounding moves ours by "
                      f"{rounding:.1g}.")
    return False, f"{what} and {who} do not agree: they differ by {most:.1g} ({where}), so there is no ratio."


def _rounded(tree):
    """Every float32 of a pytree as it might have been rounded otherwise."""
    generator = np.random.default_rng(0)

    def nudge(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return x * (1 + 1e-7 * jnp.asarray(generator.normal(size=x.shape), x.dtype))

    return jax.tree.map(nudge, tree)


def _row(what: str, ours: float, unit: str) -> dict:
    return {"what": what, "ours": float(f"{ours:.6g}"), "unit": unit}


def _against(what: str, who: str, ours: float, reference: float, unit: str) -> dict:
    ratio = reference / ours if unit in _LESS_IS_BETTER else ours / reference
    return {**_row(f"{what}, against {who}", ours, unit), "reference": float(f"{reference:.6g}"),
            "ratio": float(f"{ratio:.4g}")}


def _costs(what: str, program: Program, seconds: float) -> list[dict]:
    rows = []
    if program.compiling is not None:
        rows.append(_row(f"compiling {what}", program.compiling, "s"))
    if program.memory is not None:
        rows.append(_row(_memory(what), program.memory / 2**20, "MiB"))
    if program.sent is not None:
        rows.append(_row(f"collectives of {what}, per device", program.sent / 2**20, "MiB"))
    if program.xla_flops:
        rows.append(_row(f"XLA's operations of {what}, per device, loops once", 1e-6 * program.xla_flops, "MFLOP"))
    return rows + ([_row(f"rate of {what}", 1e-9 * program.flops / seconds, "GFLOP/s")] if program.flops else [])


def _memory(what: str) -> str:
    return f"memory beyond inputs of {what}"


def _moves(begin, end, name: str) -> dict:
    """{name/path: end - begin} for nested dicts of arrays, or `end` a flat dict of tensors."""
    begin, end = _flat(begin), _flat(end)
    return {f"{name}/{path}": np.asarray(end[path]) - np.asarray(begin[path]) for path in begin}


def machine() -> dict:
    """device, threads and versions, as columns of the CSV."""
    device = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        about = Path("/proc/cpuinfo")
        lines = about.read_text().splitlines() if about.exists() else []
        named = [line for line in lines if line.startswith("model name")]
        device = named[0].partition(":")[2].strip() if named else platform.processor() or platform.machine()
    packages = {name: _version(name) for name in ("mdw-jax", "jax", "torch")}
    return {"device": device, "threads": threads(),
            "versions": ", ".join(f"{name} {version}" for name, version in packages.items() if version)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def _digits(value):
    """Three significant digits for the terminal."""
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
