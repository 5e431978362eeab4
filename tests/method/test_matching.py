import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdw_jax.config import options
from mdw_jax.errors import UserError
from mdw_jax.method.matching import (
    STUDENT_OPTIMIZERS,
    matching_loss,
    minibatches,
    scan_mean,
    student_optimizer,
    unroll,
)


def quadratic(params, batch):
    return sum(0.5 * jnp.sum((p - batch) ** 2) for p in jax.tree.leaves(params))


START = {"image": {"w": jnp.array([1.0, 2.0])}, "text": {"w": jnp.array([3.0])}}


def test_unroll_of_a_quadratic_has_a_closed_form():
    steps = {"image": jnp.float32(0.1), "text": jnp.float32(0.3)}
    final, losses = unroll(quadratic, START, jnp.zeros(4), steps)
    np.testing.assert_allclose(final["image"]["w"], START["image"]["w"] * 0.9**4, rtol=1e-6)
    np.testing.assert_allclose(final["text"]["w"], START["text"]["w"] * 0.7**4, rtol=1e-6)
    np.testing.assert_allclose(losses[0], 0.5 * (1 + 4 + 9), rtol=1e-6)


def step_gradient(gradient, remat=True):
    def final_weight(a):
        return unroll(quadratic, START, jnp.zeros(3), {"image": a, "text": a}, gradient=gradient, remat=remat)[0]

    return jax.grad(lambda a: final_weight(a)["text"]["w"][0])(jnp.float32(0.2))


def test_exact_and_detached_step_size_gradients_have_their_closed_forms():
    # exact: d/da 3 (1 - a)^3; detached: minus the sum of the gradients met on the way.
    np.testing.assert_allclose(step_gradient("exact"), -3 * 3 * 0.8**2, rtol=1e-5)
    np.testing.assert_allclose(step_gradient("detached"), -3 * (1 + 0.8 + 0.64), rtol=1e-5)


@pytest.mark.parametrize("gradient", ["exact", "detached"])
def test_rematerialization_changes_nothing(gradient):
    np.testing.assert_allclose(step_gradient(gradient), step_gradient(gradient, remat=False), rtol=1e-6)


WIDTH = 400  # parameters that dwarf the rest: WIDTH^2 floats


def network_loss(shared):
    """A regression by two layers, toward the learned data."""

    def loss(params, rows):
        hidden = jnp.tanh(shared["x"][rows] @ params["image"]["w"])
        return jnp.mean((hidden @ params["text"]["w"] - shared["y"][rows]) ** 2)

    return loss


def network(key, count: int):
    """What is learned, and the starts and batches of `count` trajectories of 12 steps."""
    keys = jax.random.split(key, 4)
    shared = {"x": jax.random.normal(keys[0], (6, WIDTH)), "y": jax.random.normal(keys[1], (6,))}
    starts = {"image": {"w": 0.05 * jax.random.normal(keys[2], (count, WIDTH, WIDTH))},
              "text": {"w": 0.05 * jax.random.normal(keys[3], (count, WIDTH))}}
    batches = jnp.stack([minibatches(key, 6, 3, 12) for key in jax.random.split(keys[0], count)])
    return shared, starts, batches


def after_unrolls(gradient, shared, starts, batches, mean, remat=True, optimizer="sgd"):
    """Mean over trajectories of how far they end from nothing, and the mean inner losses."""
    steps = {"image": shared["a"], "text": jnp.float32(0.01)}

    def one(start, batches):
        final, inner = unroll(network_loss(shared), start, batches, steps, gradient=gradient, remat=remat,
                              optimizer=optimizer)
        return sum(jnp.sum(w**2) for w in jax.tree.leaves(final)), inner

    if mean == "scan_mean":
        return scan_mean(lambda each: one(*each), (starts, batches))
    losses, inner = jax.vmap(one)(starts, batches)
    return losses.mean(), inner.mean(0)


@pytest.mark.parametrize("gradient", ["exact", "detached"])
@pytest.mark.parametrize("mean", ["scan_mean", "vmap"])
def test_gradients_are_the_same_however_they_are_accumulated(gradient, mean):
    shared, starts, batches = network(jax.random.key(0), 3)
    shared["a"] = jnp.float32(0.02)

    def value_and_grad(*how):
        return jax.jit(jax.value_and_grad(lambda s: after_unrolls(gradient, s, starts, batches, *how),
                                          has_aux=True))(shared)

    (loss, inner), by = value_and_grad(mean)
    (plain_loss, plain_inner), plain_by = value_and_grad("vmap", False)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-5)
    np.testing.assert_allclose(inner, plain_inner, rtol=1e-4)
    for name, values in plain_by.items():
        np.testing.assert_allclose(by[name], values, rtol=1e-3, atol=1e-4 * float(jnp.abs(values).max()))


def test_inner_losses_may_close_over_anything():
    """Integers that are traced, and arrays that nobody keeps."""
    table = jnp.array([[0, 2], [1, 0]])
    learned = jnp.arange(3.0)

    def loss(learned, order, gradient):
        inner = lambda params, row: sum(jnp.sum((p - learned[order[row]]) ** 2) for p in jax.tree.leaves(params))
        steps = {"image": jnp.float32(0.1), "text": jnp.float32(0.2)}
        final, inner = unroll(inner, START, jnp.array([1, 0, 1]), steps, gradient=gradient)
        return sum(jnp.sum(w**2) for w in jax.tree.leaves(final)) + inner.sum()

    def by_each(learned, gradient):
        return scan_mean(lambda order: (loss(learned, order, gradient), 0.0), table)[0]

    for gradient in ("exact", "detached"):
        plain = sum(jax.grad(loss)(learned, order, gradient) for order in table) / 2
        use_vmap = jax.grad(lambda x: jax.vmap(lambda order: loss(x, order, gradient))(table).mean())
        for gradient_ in (jax.jit(use_vmap)(learned), jax.jit(jax.grad(lambda x: by_each(x, gradient)))(learned)):
            np.testing.assert_allclose(gradient_, plain, rtol=1e-5)
    array = jnp.arange(3.0) + 1
    reference = weakref.ref(array)
    jax.grad(loss)(array, table[0], "detached")
    del array
    gc.collect()
    assert reference() is None


def small_problem():
    """What is learned, a start, and the rows of five steps."""
    keys = jax.random.split(jax.random.key(1), 4)
    learned = {"images": jax.random.normal(keys[0], (6, 5)), "texts": jax.random.normal(keys[1], (6, 3)),
               "a": {"image": jnp.float32(0.05), "text": jnp.float32(0.1)}}
    start = {"image": {"w": 0.3 * jax.random.normal(keys[2], (5, 4)), "b": jnp.zeros(4)},
             "text": {"w": 0.3 * jax.random.normal(keys[3], (3, 4))}}
    return learned, start, minibatches(keys[0], 6, 3, 5)


def small_loss(learned, params, rows):
    v = jnp.tanh(learned["images"][rows] @ params["image"]["w"] + params["image"]["b"])
    t = jnp.tanh(learned["texts"][rows] @ params["text"]["w"])
    return -jnp.diagonal(jax.nn.log_softmax(2 * v @ t.T)).mean()


def summary_of(final, inner):
    return sum(jnp.sum((x - 0.1) ** 2) for x in jax.tree.leaves(final)) + (inner * jnp.arange(1, 6)).sum() / 50


def by_loop(name, gradient, learned, start, batches):
    """The unroll as a Python loop, which keeps all and stops derivatives at the parameters if asked to."""
    optimizer = STUDENT_OPTIMIZERS[name]()
    params, state, inner = start, {branch: optimizer.init(start[branch]) for branch in start}, []
    for rows in batches:
        at = jax.lax.stop_gradient(params) if gradient == "detached" else params
        loss, grads = jax.value_and_grad(lambda p, rows=rows: small_loss(learned, p, rows))(at)
        inner.append(loss)
        new = {}
        for branch in params:
            direction, state[branch] = optimizer.update(grads[branch], state[branch])
            new[branch] = {key: params[branch][key] - learned["a"][branch] * direction[key] for key in params[branch]}
        params = new
    return summary_of(params, jnp.stack(inner))


@pytest.mark.parametrize("remat", [True, False])
@pytest.mark.parametrize("gradient", ["exact", "detached"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_unrolls_of_every_optimizer_are_those_of_a_plain_loop(name, gradient, remat):
    learned, start, batches = small_problem()

    def by_unroll(learned, start):
        return summary_of(*unroll(lambda params, rows: small_loss(learned, params, rows), start, batches, learned["a"],
                                  gradient=gradient, remat=remat, optimizer=name))

    with jax.enable_x64(True):
        learned, start = jax.tree.map(lambda x: x.astype(jnp.float64), (learned, start))
        value, grads = jax.jit(jax.value_and_grad(by_unroll, (0, 1)))(learned, start)
        expected, expected_grads = jax.jit(jax.value_and_grad(
            lambda learned, start: by_loop(name, gradient, learned, start, batches), (0, 1)))(learned, start)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for gradient_, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
            assert jnp.abs(wanted).max() > 0
            np.testing.assert_allclose(gradient_, wanted, rtol=1e-5, atol=1e-5 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_optimizers_with_state_differ_from_sgd_and_their_gradients_from_each_other(name):
    learned, start, batches = small_problem()
    ends = {(optimizer, gradient): jax.value_and_grad(lambda images, optimizer=optimizer, gradient=gradient: summary_of(
        *unroll(lambda params, rows: small_loss({**learned, "images": images}, params, rows), start, batches,
                learned["a"], gradient=gradient, optimizer=optimizer)))(learned["images"])
        for optimizer in ("sgd", name) for gradient in ("exact", "detached")}
    assert abs(float(ends["sgd", "exact"][0] - ends[name, "exact"][0])) > 1e-3
    np.testing.assert_allclose(ends[name, "exact"][0], ends[name, "detached"][0], rtol=1e-5)
    assert float(jnp.abs(ends[name, "exact"][1] - ends[name, "detached"][1]).max()) > 1e-4


def test_two_steps_of_momentum_by_hand():
    steps = {"image": jnp.float32(0.1), "text": jnp.float32(0.1)}
    final, _ = unroll(quadratic, START, jnp.zeros(2), steps, optimizer="momentum")
    # p1 = 0.9 p0, velocity 0.9 p0 + p1 = 1.8 p0, p2 = 0.9 p0 - 0.18 p0
    np.testing.assert_allclose(final["text"]["w"], 0.72 * START["text"]["w"], rtol=1e-6)


@pytest.mark.parametrize("gradient", ["exact", "detached"])
def test_gradients_through_adam_are_finite_where_a_parameter_is_not_used(gradient):
    def final_weight(data):
        loss = lambda params, batch: jnp.sum(params["text"]["w"] * data) + 0 * jnp.sum(params["image"]["w"] * data)
        final, _ = unroll(loss, START, jnp.zeros(3), {"image": 0.1, "text": 0.1}, gradient=gradient, optimizer="adam")
        return sum(jnp.sum(w) for w in jax.tree.leaves(final))

    assert jnp.isfinite(jax.grad(final_weight)(jnp.float32(0.5)))


def test_an_optimizer_from_another_module(tmp_path, monkeypatch):
    (tmp_path / "student_steps.py").write_text(
        "import optax\nfrom mdw_jax.method.matching import StudentOptimizer\n"
        "half = lambda: optax.scale(0.5)\nnumber = lambda: 0.5\nentry = StudentOptimizer(half, 'my_torch(groups)')\n")
    monkeypatch.syspath_prepend(tmp_path)
    steps, halves = ({"image": jnp.float32(a), "text": jnp.float32(a)} for a in (0.2, 0.1))
    expected, _ = unroll(quadratic, START, jnp.zeros(3), halves)
    for name in ("half", "entry"):
        final, _ = unroll(quadratic, START, jnp.zeros(3), steps, optimizer=f"student_steps:{name}", gradient="detached")
        np.testing.assert_allclose(final["text"]["w"], expected["text"]["w"], rtol=1e-6)
    with pytest.raises(UserError, match="returns float; let it return an optax.GradientTransformation"):
        student_optimizer("student_steps:number")
    assert isinstance(student_optimizer("sgd"), optax.GradientTransformation)


def memory_of(gradient, trajectories: int, steps: int, optimizer: str = "sgd") -> float:
    """Of the gradient of trajectories one after another, in units of one network's parameters."""
    shared, starts, batches = network(jax.random.key(0), trajectories)
    shared["a"] = jnp.float32(0.02)
    step = jax.jit(jax.grad(lambda s, starts: after_unrolls(gradient, s, starts, batches[:, :steps],
                                                            "scan_mean", optimizer=optimizer)[0]))
    return step.lower(shared, starts).compile().memory_analysis().temp_size_in_bytes / (4 * WIDTH**2)


def test_memory_grows_with_inner_steps_of_an_exact_gradient_only_and_never_with_trajectories():
    assert memory_of("exact", 1, 12) > memory_of("exact", 1, 2) + 8  # parameters between steps are kept
    assert memory_of("detached", 1, 12) < memory_of("detached", 1, 2) + 0.5
    assert memory_of("exact", 4, 12) < memory_of("exact", 1, 12) + 2.5  # not another 12 each


def test_memory_grows_with_inner_steps_of_an_optimizer_with_state():
    assert memory_of("detached", 1, 12, "momentum") > memory_of("detached", 1, 2, "momentum") + 8


def test_matching_loss_is_one_at_the_start_and_zero_at_the_target():
    target = jax.tree.map(lambda w: w + 1, START)
    for merge, at_start in (("separate", 2.0), ("merged", 1.0)):
        np.testing.assert_allclose(matching_loss(START, START, target, merge), at_start)
        np.testing.assert_allclose(matching_loss(target, START, target, merge), 0.0)


def test_minibatches_use_the_whole_set_before_repeating():
    rows = np.asarray(minibatches(jax.random.key(0), 10, 3, 7))
    assert rows.shape == (7, 3)
    for first in (0, 3):
        assert len(set(rows[first : first + 3].ravel())) == 9


def test_unknown_choices_are_user_errors():
    with pytest.raises(UserError, match=", ".join(options.GRADIENTS)):
        unroll(quadratic, START, jnp.zeros(1), {"image": 0.1, "text": 0.1}, gradient="exakt")
    with pytest.raises(UserError, match=", ".join(STUDENT_OPTIMIZERS)):
        unroll(quadratic, START, jnp.zeros(1), {"image": 0.1, "text": 0.1}, optimizer="rmsprop")
    with pytest.raises(UserError, match=", ".join(options.LOSS_MERGES)):
        matching_loss(START, START, START, "sum")
