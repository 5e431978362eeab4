import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.distill import (
    DECAYS,
    SET_OPTIMIZERS,
    init_state,
    make_outer_step,
    outer_shapes,
    schedule,
)
from mdw_jax.method.losses import distillation_loss
from mdw_jax.method.matching import STUDENT_OPTIMIZERS, matching_loss, minibatches
from mdw_jax.method.objective import Blend, Draws, Method, draw, draw_blends, objective
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.image.convnet import convnet
from mdw_jax.runtime.pytree import stack

METHOD = Method(inner_steps=2, inner_optimizer="sgd", batch=4, gradient="exact", loss_merge="separate", loss="wbce",
                correspondence="lowrank", rank=2, alpha=3.0, optimizer="adam", decay="none", steps=20, lr_images=0.02,
                lr_texts=0.05, lr_correspondence=0.01, lr_inner_lr=1.0, inner_lr_image=0.1, inner_lr_text=0.2,
                clip_images=False, augment="none", mixup=False, ema_decay=0.8, ceo=False, ceo_every=1, ceo_top_k=1,
                ceo_beta=0.0)
# Everything that differs from METHOD, in one: compiling is what takes the time here.
OTHER = dataclasses.replace(METHOD, ema_decay=0.0, correspondence="identity", clip_images=True, lr_images=2.0)
SHAPE, PAIRS, WIDTH = (8, 8, 3), 6, 10
TOWER = convnet(SHAPE, (4,), (12,))
BACKBONE = TOWER.init(jax.random.key(9))
IMAGES = np.random.default_rng(0).uniform(size=(PAIRS, *SHAPE)).astype(np.float32)
TEXTS = np.random.default_rng(1).normal(size=(PAIRS, WIDTH)).astype(np.float32)
ONES = jnp.ones((PAIRS, *SHAPE[:2], 1))
MODELS = {mode: dual_encoder(TOWER, BACKBONE, WIDTH, mode=mode, dim=7) for mode in ("projection", "full")}


def ends(model, distance=0.05):
    """Two trajectories: starts, and targets at a random distance."""
    starts = [model.init(jax.random.key(i)) for i in range(2)]
    away = [jax.tree.map(lambda x: x + distance * jax.random.normal(jax.random.key(5), x.shape), s) for s in starts]
    return stack(starts), stack(away)


@functools.lru_cache
def outer_step(method, mode):
    return make_outer_step(MODELS[mode], method)


def start(method=METHOD):
    return init_state(jax.random.key(3), method, IMAGES, TEXTS)


def run(steps, method=METHOD, mode="projection", weights=ONES, state=None):
    """State and metrics of each step, the same minibatches every time."""
    begin, target = ends(MODELS[mode])
    state, metrics = state or start(method), []
    for _ in range(steps):
        state, measured = outer_step(method, mode)(state, begin, target, weights, jax.random.key(4))
        metrics.append(measured)
    return state, metrics


@pytest.mark.parametrize("mode, gradient", [("projection", "exact"), ("full", "detached")])
def test_gradient_is_that_of_the_plain_loop_over_images(mode, gradient):
    """The plain loop sends images through the backbone in every inner step, and stores all it meets."""
    model, method = MODELS[mode], dataclasses.replace(METHOD, gradient=gradient)
    begin, target = ends(model)
    learned = start().learned
    learned["correspondence"]["right"] = jax.random.normal(jax.random.key(6), (PAIRS, 2))
    batches = jnp.stack([minibatches(jax.random.key(i), PAIRS, 4, 2) for i in (7, 8)])

    def embed(image, pixels):
        if mode == "full":
            return model.embed_image(image, pixels)
        return model.embed_image(image, TOWER.features(BACKBONE, pixels))

    def naive(learned):
        total = 0.0
        for r in range(2):
            first, goal = (jax.tree.map(lambda x, r=r: x[r], tree) for tree in (begin, target))
            params = first
            for rows in batches[r]:
                def loss(at, rows=rows):
                    v = embed(at["image"], learned["images"][rows])
                    logits = v @ model.embed_text(at["text"], learned["texts"][rows]).T / model.tau
                    return distillation_loss("wbce")(logits, correspondence(learned["correspondence"], rows, 3.0))

                grads = jax.grad(loss)(jax.lax.stop_gradient(params) if gradient == "detached" else params)
                params = {branch: jax.tree.map(lambda p, g, b=branch: p - jnp.exp(learned["log_inner_lr"][b]) * g,
                                               params[branch], grads[branch]) for branch in params}
            square = lambda a, b: sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)))
            total += sum(square(params[b], goal[b]) / square(first[b], goal[b]) for b in params)
        return total / 2

    (loss, _), grads = jax.jit(jax.value_and_grad(
        lambda learned: objective(model, method, learned, begin, target, Draws(batches, Blend(), jax.random.key(0))),
        has_aux=True
    ))(learned)
    wanted, naive_grads = jax.jit(jax.value_and_grad(naive))(learned)
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    for gradient_, other in zip(jax.tree.leaves(grads), jax.tree.leaves(naive_grads), strict=True):
        scale = float(jnp.abs(other).max())
        assert scale > 0
        np.testing.assert_allclose(gradient_ / scale, other / scale, atol=2e-3)


@pytest.mark.parametrize("mode", ["projection", "full"])
def test_matching_loss_falls_and_step_sizes_stay_positive(mode):
    state, metrics = run(25, METHOD, mode)
    assert min(float(m["loss"]) for m in metrics[-3:]) < 0.98 * float(metrics[0]["loss"])
    assert all(float(m[name]) > 0 for m in metrics for name in ("inner_lr_image", "inner_lr_text"))
    assert int(state.step) == 25


def test_a_gradient_that_is_not_finite_changes_nothing():
    begin, target = ends(MODELS["projection"])
    state = start()
    state.learned["texts"] = state.learned["texts"].at[0, 0].set(jnp.nan)
    before = jax.tree.map(np.array, state)
    after, metrics = outer_step(METHOD, "projection")(state, begin, target, ONES, jax.random.key(4))
    assert not np.isfinite(float(metrics["gradient"]))
    chex.assert_trees_all_equal(before, jax.tree.map(np.array, after))


def test_what_is_compiled_ahead_is_what_a_run_calls(caplog):
    model = MODELS["projection"]
    step, (begin, target) = make_outer_step(model, OTHER), ends(model)
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        step.lower(*outer_shapes(model, OTHER, 2, IMAGES.shape, TEXTS.shape)).compile()
        assert "Finished XLA compilation" in caplog.text
        caplog.clear()
        state, key = start(OTHER), jax.random.key(4)
        caplog.clear()
        for _ in range(2):
            state, _ = step(state, begin, target, ONES, key)
        assert "Compiling" not in caplog.text and "XLA compilation" not in caplog.text
    assert int(state.step) == 2


def test_pixels_are_clipped_where_asked():
    images = np.asarray(run(2, OTHER)[0].learned["images"])
    assert images.min() == 0 and images.max() == 1  # the step size of 2 would carry them far out


@pytest.mark.parametrize("method", [METHOD, OTHER])
def test_average_is_the_exponential_one(method):
    average = jax.tree.map(np.array, start(method).learned)
    state = None
    for _ in range(3):
        state, _ = run(1, method, state=state)
        average = jax.tree.map(lambda a, x: method.ema_decay * a + (1 - method.ema_decay) * np.asarray(x), average,
                               state.learned)
        chex.assert_trees_all_close(average, state.average, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_pixel_weights_of_zero_freeze_those_pixels_only(optimizer):
    method = dataclasses.replace(METHOD, optimizer=optimizer)
    weights = ONES.at[:, :, :4].set(0)
    state, _ = run(2, method, weights=weights)
    moved = np.asarray(state.learned["images"]) - IMAGES
    np.testing.assert_array_equal(moved[:, :, :4], 0)
    assert np.abs(moved[:, :, 4:]).max() > 0
    half = run(1, method, weights=ONES / 2)[0].learned
    full = run(1, method)[0].learned
    # Half the weight is half the first update, under Adam as under SGD; nothing else is scaled.
    np.testing.assert_allclose(2 * (half["images"] - IMAGES), full["images"] - IMAGES, rtol=1e-2, atol=1e-6)
    np.testing.assert_allclose(half["texts"], full["texts"], atol=1e-7)


def test_start():
    state = start()
    np.testing.assert_array_equal(state.learned["images"], IMAGES)
    np.testing.assert_allclose(jnp.exp(state.learned["log_inner_lr"]["text"]), 0.2, rtol=1e-6)
    np.testing.assert_allclose(correspondence(state.learned["correspondence"], jnp.arange(PAIRS), 3.0), np.eye(PAIRS))


def test_learning_rates_fall_to_nothing_by_the_last_step():
    method = dataclasses.replace(METHOD, decay="cosine", steps=4)
    before = [start(method)]
    for _ in range(4):
        state, _ = run(1, method, state=jax.tree.map(jnp.copy, before[-1]))
        before.append(state)
    moved = [float(jnp.abs(b.learned["texts"] - a.learned["texts"]).max()) for a, b in zip(before, before[1:])]
    assert moved[0] == pytest.approx(0.05, rel=1e-3) and moved[3] < 0.4 * moved[0]


def test_unknown_optimizers_and_decays_name_the_choices():
    optimizers, decays = ", ".join(SET_OPTIMIZERS), ", ".join(DECAYS)
    with pytest.raises(UserError, match=f"no optimizer .* 'lamb'; set distill.optimizer to one of {optimizers}"):
        make_outer_step(MODELS["projection"], dataclasses.replace(METHOD, optimizer="lamb"))
    with pytest.raises(UserError, match=f"no learning rate decay 'step'; set distill.decay to one of {decays}"):
        make_outer_step(MODELS["projection"], dataclasses.replace(METHOD, decay="step"))


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_the_students_optimizer_is_the_one_asked_for(name):
    """The objective against an unroll by hand."""
    model, method = MODELS["projection"], dataclasses.replace(METHOD, inner_optimizer=name)
    begin, target = ends(model)
    learned, batches = start().learned, jnp.stack([minibatches(jax.random.key(i), PAIRS, 4, 2) for i in (7, 8)])
    draws = Draws(batches, Blend(), jax.random.key(8))
    loss, _ = objective(model, method, learned, begin, target, draws)
    inputs, optimizer, steps = model.inputs(learned["images"]), STUDENT_OPTIMIZERS[name](), {"image": 0.1, "text": 0.2}
    losses = []
    for r in range(2):
        params = first = jax.tree.map(lambda x, r=r: x[r], begin)
        state = {branch: optimizer.init(params[branch]) for branch in params}
        for rows in batches[r]:
            p = correspondence(learned["correspondence"], rows, 3.0)
            grads = jax.grad(lambda at, rows=rows, p=p: distillation_loss("wbce")(
                model.logits(at, inputs[rows], learned["texts"][rows]), p))(params)
            for branch in params:
                update, state[branch] = optimizer.update(grads[branch], state[branch])
                params = {**params, branch: jax.tree.map(lambda x, d, a=steps[branch]: x - a * d, params[branch], update)}
        losses.append(matching_loss(params, first, jax.tree.map(lambda x, r=r: x[r], target)))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-4)
    plain, _ = objective(model, METHOD, learned, begin, target, draws)
    assert abs(float(loss - plain)) > 1e-4 * float(plain)


def test_schedule_depends_on_the_step_alone_and_covers_all():
    drawn = [schedule(0, 0, step, 3, 4, 2) for step in range(40)]
    assert drawn[7] == schedule(0, 0, 7, 3, 4, 2)
    assert all(len(set(networks)) == 3 for networks, _ in drawn)  # no network twice where there are enough
    assert {n for networks, _ in drawn for n in networks} == {0, 1, 2, 3}
    assert {s for _, starts in drawn for s in starts} == {0, 1}
    assert [schedule(0, 1, step, 3, 4, 2) for step in range(40)] != drawn
    assert sorted(schedule(0, 0, 0, 4, 2, 1)[0]) == [0, 0, 1, 1]


def test_cycled_experts_come_in_rounds_of_new_orders():
    drawn = [schedule(0, 0, step, 2, 6, 3, "cycled") for step in range(9)]
    assert drawn[4] == schedule(0, 0, 4, 2, 6, 3, "cycled")
    networks = [n for step, _ in drawn for n in step]
    rounds = [networks[k:k + 6] for k in range(0, 18, 6)]
    assert all(sorted(one) == list(range(6)) for one in rounds) and len({tuple(one) for one in rounds}) > 1
    assert [starts for _, starts in drawn] == [schedule(0, 0, step, 2, 6, 3)[1] for step in range(9)]
    with pytest.raises(UserError, match="set distill.expert_order to one of drawn, cycled"):
        schedule(0, 0, 0, 2, 6, 3, "sorted")


def test_fresh_batches_repeat_rows_that_rounds_do_not():
    rounds, fresh = (np.asarray(draw(jax.random.key(2), dataclasses.replace(
        METHOD, batch=3, inner_steps=40, batches=kind), PAIRS, 2).batches) for kind in ("rounds", "fresh"))
    assert rounds.shape == fresh.shape == (2, 40, 3)
    assert all(len(set(batch)) == 3 for batch in fresh.reshape(-1, 3))
    covered = [np.unique(batches[:, k:k + 2].reshape(2, -1)).size for batches in (rounds, fresh) for k in range(0, 40, 2)]
    assert set(covered[:20]) == {PAIRS} and min(covered[20:]) < PAIRS
    assert set(fresh.ravel()) == set(range(PAIRS))
    with pytest.raises(UserError, match="distill.batches to one of rounds, fresh"):
        minibatches(jax.random.key(0), PAIRS, 2, 1, "all")


def test_linear_step_sizes_are_learned_as_they_are():
    method = dataclasses.replace(METHOD, inner_lr_form="linear", optimizer="sgd", lr_inner_lr=1e3)
    state, metrics = run(1, method)
    assert set(start(method).learned) == {"images", "texts", "correspondence", "inner_lr"}
    before = start(method).learned["inner_lr"]
    assert before == {"image": jnp.float32(0.1), "text": jnp.float32(0.2)}
    # By the chain rule, the gradient by the logarithm is the step size times that by the step size.
    logarithms, _ = run(1, dataclasses.replace(METHOD, optimizer="sgd", lr_inner_lr=1e3))
    for branch, size in before.items():
        moved = float(state.learned["inner_lr"][branch] - size)
        by_log = float(logarithms.learned["log_inner_lr"][branch] - jnp.log(size))
        assert abs(moved) > 1e-4 and by_log == pytest.approx(float(size) * moved, rel=1e-3)
        assert float(metrics[0][f"inner_lr_{branch}"]) == float(state.learned["inner_lr"][branch])


@pytest.mark.parametrize("optimizer, power", [("sgd", 2), ("adam", 1)])
def test_rates_can_be_those_of_normalized_pixels(optimizer, power):
    """The conv net divides pixels by 1/4: SGD's step is a sixteenth of the rate; Adam's, which has no scale, a quarter."""
    method = dataclasses.replace(METHOD, optimizer=optimizer)
    moved = [run(1, replaced)[0].learned["images"] - IMAGES
             for replaced in (method, dataclasses.replace(method, pixel_units="tower"))]
    np.testing.assert_allclose(moved[1], moved[0] / 4**power, rtol=1e-2, atol=1e-6)
    unknown = dual_encoder(TOWER._replace(std=None), BACKBONE, WIDTH, mode="projection", dim=7)
    with pytest.raises(UserError, match="nothing is known of how the tower 'convnet' normalizes"):
        make_outer_step(unknown, dataclasses.replace(method, pixel_units="tower"))


def test_the_logit_scale_of_the_unroll_is_one_over_the_temperature():
    model, target = MODELS["projection"], ends(MODELS["projection"])
    draws = draw(jax.random.key(2), METHOD, PAIRS, 2)
    warm = dataclasses.replace(model, tau=0.5)
    for of, scale in ((model, 2.0), (warm, 0.0)):
        loss, _ = objective(of, dataclasses.replace(METHOD, logit_scale=scale), start().learned, *target, draws)
        np.testing.assert_allclose(loss, objective(warm, METHOD, start().learned, *target, draws)[0], rtol=1e-5)
    assert abs(float(loss - objective(model, METHOD, start().learned, *target, draws)[0])) > 1e-4


def test_mixing_blends_images_and_texts_alike_and_leaves_the_targets():
    """RepBlend, by hand: one inner step on blended rows."""
    model, method = MODELS["projection"], dataclasses.replace(METHOD, mixup=True, inner_steps=1, batch=PAIRS)
    begin, target = ends(model)
    learned, batches, key = start().learned, jnp.stack([jnp.arange(PAIRS)[None]] * 2), jax.random.key(8)
    draws = Draws(batches, draw_blends(key, batches.shape), key)
    loss, inner = objective(model, method, learned, begin, target, draws)
    plain, _ = objective(model, method, learned, begin, target, draws._replace(blends=Blend()))
    assert abs(float(loss - plain)) > 1e-6
    losses = []
    for r, k in enumerate(jax.random.split(key, 2)):
        by_weight, by_order = jax.random.split(k)
        weight = jax.random.uniform(by_weight, (1,))[0]
        order = jax.random.permutation(jax.random.split(by_order, 1)[0], PAIRS)
        blend = lambda x: weight * x + (1 - weight) * x[order]
        params = jax.tree.map(lambda x: x[r], begin)
        logits = model.logits(params, blend(model.inputs(jnp.asarray(IMAGES))), blend(jnp.asarray(TEXTS)))
        losses.append(distillation_loss("wbce")(logits, correspondence(learned["correspondence"], jnp.arange(PAIRS), 3.0)))
    np.testing.assert_allclose(inner[0], np.mean(losses), rtol=1e-4)


@pytest.mark.parametrize("chunk", [2, 4])
def test_gradients_of_chunks_are_those_of_all_images(chunk):
    """Features, and their gradient by the pixels, of two images at a time, and of three where four are asked for."""
    model, (begin, target) = MODELS["projection"], ends(MODELS["projection"])
    draws = draw(jax.random.key(4), METHOD, PAIRS, 2)

    def gradient(method):
        loss = lambda learned: objective(model, method, learned, begin, target, draws)[0]
        return jax.jit(jax.value_and_grad(loss))(start().learned)

    wanted, found = gradient(METHOD), gradient(dataclasses.replace(METHOD, chunk=chunk))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * float(jnp.abs(b).max()))
