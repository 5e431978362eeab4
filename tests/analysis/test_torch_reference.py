import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mdw_jax.analysis.benchmark import torch_reference as reference  # noqa: E402
from mdw_jax.analysis.benchmark.case import make_case  # noqa: E402
from mdw_jax.analysis.benchmark.compare import difference  # noqa: E402
from mdw_jax.analysis.benchmark.outer_step import outer_gradient  # noqa: E402
from mdw_jax.analysis.benchmark.torch_problem import torch_memory, torch_problem, torch_settings  # noqa: E402
from mdw_jax.config import base  # noqa: E402
from mdw_jax.config.overrides import preset_config  # noqa: E402
from mdw_jax.config.sections import fields  # noqa: E402
from mdw_jax.method.expert_step import EpochInputs, Recipe, make_epoch_batches, make_expert_steps  # noqa: E402


@pytest.fixture(autouse=True)
def hasty_compiler():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def tiny(**changes):
    """A case with a P that is far from the identity, so that all of its gradients are well conditioned."""
    c = base()
    c.update_from_flattened_dict({
        "data.size": 8, "model.patches": (2, 2), "model.widths": (10, 12), "model.dim": 8, "text.dim": 10,
        "experts.batch": 16, "experts.epochs": 2, "experts.recovery_start": 1, "distill.pairs": 8,
        "distill.inner_steps": 3, "distill.batch": 4, "distill.trajectories": 2, "distill.rank": 2, "distill.alpha": 0.7,
        "distill.correspondence_init": "identity", "distill.correspondence": "lowrank"})
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    case = make_case(preset_config(c, "mdw"))
    p = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), case.learned["correspondence"])
    return case._replace(learned={**case.learned, "correspondence": p})


def both(case):
    """Loss and gradients of ours and of the reference: two flat dicts."""
    loss, gradients = outer_gradient(case.model, case.method)(case.learned, case.starts, case.targets, case.batches)
    problem = reference.Problem(*map(reference.to_torch, torch_problem(case, reference)))
    settings = torch_settings(case, reference, case.method.gradient)
    other_loss, other = reference.outer_gradient(problem, settings)
    flat = {"/".join(key.key for key in path): x for path, x in jax.tree_util.tree_leaves_with_path(gradients)}
    return {"loss": loss, **flat}, {"loss": other_loss, **other}


@pytest.mark.parametrize("mode, gradient, p, loss, merge", [
    ("full", "exact", "lowrank", "probability", "separate"),
    ("full", "detached", "lowrank", "wbce", "merged"),
    ("full", "exact", "identity", "nce", "separate"),
    ("projection", "exact", "lowrank", "wbce", "separate"),
    ("projection", "detached", "identity", "nce", "separate"),
    ("projection", "detached", "full", "probability", "merged"),
])
def test_loss_and_gradients_agree(mode, gradient, p, loss, merge):
    ours, other = both(tiny(model__mode=mode, distill__gradient=gradient, distill__correspondence=p,
                            distill__loss=loss, distill__loss_merge=merge))
    assert {"images", "texts", "log_inner_lr/image", "log_inner_lr/text"} < ours.keys()
    assert len(ours) == {"identity": 5, "full": 6, "lowrank": 8}[p]
    assert all(np.linalg.norm(x) > 0 for x in ours.values())
    assert difference(ours, other)[0] < 5e-4  # P's gradients under `probability` are small differences of large numbers


def test_detached_is_not_exact():
    """The two passes must leave out what the detached gradient leaves out, and the loss must not notice."""
    case = tiny(model__mode="projection")
    problem = reference.Problem(*map(reference.to_torch, torch_problem(case, reference)))
    exact, detached = (reference.outer_gradient(problem, torch_settings(case, reference, name))
                       for name in ("exact", "detached"))
    assert float(exact[0]) == pytest.approx(float(detached[0]), rel=1e-5)
    assert difference(exact[1], detached[1])[0] > 0.01


@pytest.fixture
def mobilenet_file(tmp_path):
    """A tiny network with an odd map, both strides, a depthwise convolution and a residual."""
    generator = np.random.default_rng(0)
    shapes = {"a": (3, 3, 3, 8), "b": (3, 3, 1, 8), "c": (1, 1, 8, 8), "d": (3, 3, 1, 8)}
    arrays = {}
    for name, shape in shapes.items():
        arrays |= {f"{name}/kernel_q": generator.integers(0, 256, shape).astype(np.uint8),
                   f"{name}/scale": np.float32(0.004), f"{name}/zero": np.int32(120),
                   f"{name}/bias": generator.normal(size=shape[-1] if name in "ac" else 8).astype(np.float32)}
    ops = [{"op": "CONV_2D", "in": [0], "out": 1, "stride": 2, "act": 3, "w": "a"},
           {"op": "DEPTHWISE_CONV_2D", "in": [1], "out": 2, "stride": 1, "act": 3, "w": "b"},
           {"op": "CONV_2D", "in": [2], "out": 3, "stride": 1, "act": 0, "w": "c"},
           {"op": "ADD", "in": [3, 1], "out": 4},
           {"op": "DEPTHWISE_CONV_2D", "in": [4], "out": 5, "stride": 2, "act": 1, "w": "d"},
           {"op": "AVERAGE_POOL_2D", "in": [5], "out": 6}]
    np.savez(tmp_path / "tiny.q8.npz", ops_json=json.dumps({"input_tensor": 0, "ops": ops}), **arrays)
    return str(tmp_path / "tiny.q8.npz")


def test_a_mobilenet_agrees(mobilenet_file):
    convnet = {f"model__{name}": base().model[name] for name in ("patches", "widths")}  # not taken: at their defaults
    ours, other = both(tiny(data__size=18, model__tower="mobilenet", model__weights=mobilenet_file, **convnet,
                            model__mode="projection", distill__loss="nce", distill__trajectories=1))
    assert difference(ours, other)[0] < 1e-4


@pytest.mark.parametrize("mode, recipe", [("full", {"momentum": 0.9, "weight_decay": 0.01}),
                                          ("projection", {"clean_loss": "infonce", "guidance_weight": 0.0})])
def test_expert_steps_agree(mode, recipe):
    case = tiny(model__mode=mode)
    recipe = dataclasses.replace(fields(Recipe, case.config.experts), lr=0.05, **recipe)
    generator, pairs = np.random.default_rng(0), 3 * recipe.batch
    images = (generator.integers(256, size=(pairs, 8, 8, 3), dtype=np.uint8) if mode == "full" else
              generator.normal(size=(pairs, 12)).astype(np.float32))
    texts, probability = generator.normal(size=(pairs, 10)).astype(np.float32), generator.uniform(size=pairs)
    teacher = generator.normal(size=(2, pairs, 5)).astype(np.float32) if recipe.guidance_weight else None
    params, run = case.model.init(jax.random.key(0)), make_expert_steps(case.model, recipe, 0.0)
    plan = make_epoch_batches(generator, generator.permutation(pairs), recipe.batch, probability, 1 - probability,
                      generator.permutation(pairs))
    inputs = EpochInputs(run.init(params), plan, jax.random.split(jax.random.key(1), 3),
                         None if teacher is None else tuple(teacher))
    state, losses, _ = jax.jit(run.epoch)(inputs, images, jnp.asarray(texts), None)

    data = {"images": images, "texts": texts, "image_rows": plan.images, "text_rows": plan.captions,
            "clean": plan.clean, "tolerant": plan.tolerant}
    data |= {} if teacher is None else {"teacher_images": teacher[0], "teacher_texts": teacher[1]}
    flat = lambda tree: {"/".join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    begin = flat(params)
    found = reference.expert_steps(reference.to_torch(begin), reference.to_torch(data), dataclasses.asdict(recipe),
                                   torch_settings(case, reference, "exact"))
    np.testing.assert_allclose(losses, found[2], rtol=1e-5)
    for ours, other in zip((state.params, state.average), found, strict=False):
        moves = [{name: np.asarray(x) - np.asarray(begin[name]) for name, x in end.items()}
                 for end in (flat(ours), other)]
        assert difference(*moves)[0] < 1e-4


@pytest.mark.slow
def test_memory_of_a_known_size():
    """A thousand times the pairs in a batch: logits alone are 4 MB each, and the exact unroll keeps several a step."""
    changes = {"model__mode": "projection", "distill__correspondence": "identity", "distill__loss": "nce",
               "distill__pairs": 1000, "distill__batch": 1000, "distill__trajectories": 1, "data__size": 4,
               "model__patches": (2, 2)}
    grown = {}
    for gradient in ("exact", "detached"):
        case = tiny(distill__gradient=gradient, distill__inner_steps=6, **changes)
        grown[gradient] = torch_memory(reference, torch_problem(case, reference),
                                       torch_settings(case, reference, gradient))
    if None in grown.values():
        pytest.skip("the system does not tell how much memory a process takes")
    assert grown["exact"] > 6 * 3 * 4e6 and grown["exact"] > 3 * grown["detached"] > 3 * 2 * 4e6
