import dataclasses
import io

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mdw_jax.config import base, resolve
from mdw_jax.config.recipes import RECIPES
from mdw_jax.data import streaming
from mdw_jax.data.decoding import Encoded
from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.errors import UserError
from mdw_jax.io.checkpoint import read_checkpoint, save_checkpoint
from mdw_jax.method import closed_form, experts
from mdw_jax.method.caption_search import top_captions
from mdw_jax.method.expert_state import Checkpointer
from mdw_jax.method.expert_step import Recipe, make_epoch_batches, make_expert_steps, track_weights, undivided_weights
from mdw_jax.method.experts import expert_epochs, train_experts
from mdw_jax.method.losses import soft_cross_entropy
from mdw_jax.method.teachers import Teacher, teacher_indices
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.embedding import Inputs, ensemble_embeddings
from mdw_jax.models.image.convnet import convnet
from mdw_jax.models.image.tower import Tower
from mdw_jax.runtime.rng import named_key

LATENT, WIDTH, PER_IMAGE = 6, 16, 2
STUB = Tower("stub", lambda key: {}, lambda params, images: images, WIDTH)  # experts see its features only
MODEL = dual_encoder(STUB, {}, WIDTH, mode="projection", dim=8)
TRAIN = 160


def recipe(name="dtcl", **changes):
    c = base()
    c.experts.recipe = name
    c.experts.update({"epochs": 6, "lr_infonce": 0.1, "lr": 0.5, "batch": 32, "warmup": 1, "recovery_start": 2,
                      "momentum": 0.0, "weight_decay": 0.0, "recovery_top_k": 3, "recovery_weight": 0.5,
                      "tolerant_weight": 0.7, "ema_decay": 0.5})
    resolved = resolve(c).experts
    fields = {field.name: resolved[field.name] for field in dataclasses.fields(Recipe)}
    return Recipe(**{**fields, **changes})


def planted(rate, seed=0):
    """Image and caption features are linear in a shared latent; `rate` of the images lose their captions."""
    generator = np.random.default_rng(seed)
    by_image, by_text = generator.normal(size=(2, LATENT, WIDTH))

    def split(count):
        latent = generator.normal(size=(count, LATENT))
        image_of = np.repeat(np.arange(count), PER_IMAGE)
        noise = lambda rows: 0.3 * generator.normal(size=(rows, WIDTH))
        images, texts = latent @ by_image + noise(count), latent[image_of] @ by_text + noise(len(image_of))
        return Inputs(jnp.asarray(images, jnp.float32), jnp.asarray(texts, jnp.float32), image_of)

    train, val = split(TRAIN), split(60)
    paired = np.arange(TRAIN)
    chosen = generator.permutation(TRAIN)[: round(rate * TRAIN)]
    paired[chosen] = np.roll(chosen, 1)
    mismatched = paired[train.image_of] != train.image_of
    return train._replace(image_of=paired[train.image_of]), val, mismatched


def train(name, rate=0.4, keep=1, seed=0, data=None, **changes):
    pairs, val, mismatched = data or planted(rate)
    return train_experts(MODEL, pairs, val, recipe(name, **changes), count=1, seed=seed, keep=keep, rate=rate,
                         mismatched=mismatched)


@pytest.fixture
def plans(monkeypatch):
    """Every call of make_epoch_batches: (clean, tolerant, captions), in the order of epochs and networks."""
    seen = []

    def note(generator, image_of, batch, clean, tolerant, captions):
        seen.append((clean, tolerant, captions))
        return make_epoch_batches(generator, image_of, batch, clean, tolerant, captions)

    monkeypatch.setattr(experts, "make_epoch_batches", note)
    return seen


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name):
    trained = train(name, epochs=3)
    assert [len(s) for s in trained.snapshots] == [2, 2] and len(trained.log) == 6
    assert all(np.isfinite(row["loss"]) for row in trained.log)
    assert trained.log[-1]["val_r_mean"] > 1.5 * 100 * 16 / 3 / 60  # chance: mean of 1, 5 and 10 in 60
    divides = recipe(name).division in ("gmm", "oracle")
    assert ("precision" in trained.log[-1]) == divides and "precision" not in trained.log[0]
    assert trained.clean_probability.shape == (TRAIN * PER_IMAGE,)
    assert divides == bool(np.any(trained.clean_probability < 1))


def test_the_tolerant_loss_beats_infonce_under_noise():
    data = planted(0.4)
    best = {name: np.mean([row["val_r_mean"] for row in train(name, data=data, epochs=12).log if row["epoch"] == 12])
            for name in ("infonce", "tolerant")}
    assert best["tolerant"] > best["infonce"] + 2


def test_same_seed_same_experts_and_snapshot_zero_is_the_start():
    data = planted(0.4)
    one, again, other = (train("dtcl", data=data, epochs=3, keep=2, seed=s) for s in (5, 5, 6))
    chex.assert_trees_all_equal(one.snapshots, again.snapshots)
    assert [len(s) for s in one.snapshots] == [3, 3]
    for n in range(2):
        start = MODEL.init(named_key(5, "experts", 0, "init", n))
        chex.assert_trees_all_equal(one.snapshots[n][0], start)
    leaf = lambda snapshots, n: jax.tree.leaves(snapshots[n][0])[-1]
    assert not np.array_equal(leaf(one.snapshots, 0), leaf(one.snapshots, 1))
    assert not np.array_equal(leaf(one.snapshots, 0), leaf(other.snapshots, 0))


def test_best_is_the_epoch_of_the_best_validation():
    data = planted(0.4)
    trained = train("tolerant", data=data, epochs=4, keep=4)
    for n, name in enumerate("AB"):
        values = [row["val_r_mean"] for row in trained.log if row["network"] == name]
        chex.assert_trees_all_equal(trained.best[n], trained.snapshots[n][1 + int(np.argmax(values))])
        np.testing.assert_allclose(experts.scores(MODEL, trained.best[n:n + 1], data[1])[0, -1], max(values), rtol=1e-6)


@pytest.mark.parametrize("dual", [True, False])
def test_each_network_trains_on_the_others_division(monkeypatch, plans, dual):
    divisions = [np.where(np.arange(TRAIN * PER_IMAGE) % 2 == n, 0.9, 0.1).astype(np.float32) for n in range(2)]
    calls, seen, losses_of = iter(divisions), [], experts.all_pair_losses
    monkeypatch.setattr(experts, "divide", lambda losses, seed: next(calls))
    monkeypatch.setattr(experts, "all_pair_losses",
                        lambda by, *rest, **names: seen.append(by) or losses_of(by, *rest, **names))
    data = planted(0.4)
    trained = train("no_recovery", data=data, epochs=2, dual=dual, guidance_weight=0.0)
    warm, divided = plans[:2], plans[2:]
    assert all((clean == 0).all() and (tolerant == 1).all() for clean, tolerant, _ in warm)
    for n, (clean, tolerant, captions) in enumerate(divided):
        by = trained.snapshots[1 - n if dual else n][1]
        np.testing.assert_allclose(seen[0][n][1], MODEL.embed_text(by["text"], data[0].texts), atol=1e-5)
        np.testing.assert_allclose(clean, np.where(divisions[n] > 0.5, 0.9, 0))
        np.testing.assert_allclose(tolerant, np.where(divisions[n] > 0.5, 0, 0.7))
        np.testing.assert_array_equal(captions, np.arange(TRAIN * PER_IMAGE))


def test_teachers_are_the_peer_and_then_the_others_never_oneself():
    assert teacher_indices(0, 2, 3) == [1] and teacher_indices(3, 6, 1) == [2]
    assert teacher_indices(2, 6, 3) == [3, 4, 5] and teacher_indices(5, 6, 3) == [4, 0, 1]
    v = [np.eye(3)[:2], np.ones((2, 3))]
    both = ensemble_embeddings([jnp.asarray(x) for x in v])
    np.testing.assert_allclose(both @ both.T, (v[0] @ v[0].T + v[1] @ v[1].T) / 2, rtol=1e-6)


def test_guidance_is_smallest_where_student_and_teacher_agree():
    teacher = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)) * 3)
    gradient = jax.grad(soft_cross_entropy)(teacher, teacher)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert soft_cross_entropy(teacher, teacher) < soft_cross_entropy(teacher + jnp.eye(5), teacher)


def test_averages_follow_the_weights_by_hand():
    data = planted(0.0)
    last = train("tolerant", data=data, epochs=1, ema_decay=0.0, batch=320).snapshots[0]
    averaged = train("tolerant", data=data, epochs=1, ema_decay=0.5, batch=320).snapshots[0]
    # One step of 320 pairs; the decay of the first step is 1/10.
    chex.assert_trees_all_close(averaged[1], jax.tree.map(lambda s, w: 0.1 * s + 0.9 * w, last[0], last[1]), atol=1e-6)


def test_teachers_teach_the_experts_from_their_first_step(plans):
    data = planted(0.4)
    trained = train("dtcl", data=data, epochs=2, keep=2, teacher_count=1, teacher_epochs=3)
    assert [row["generation"] for row in trained.log] == ["teachers"] * 6 + ["experts"] * 4
    assert [len(s) for s in trained.snapshots] == [3, 3]
    experts_plans = plans[6:]
    assert len(experts_plans) == 4
    for clean, _, captions in experts_plans:  # divided, risky pairs recovered, at once and alike for all
        assert (clean == 0).any() and (captions[clean == 0] != np.arange(TRAIN * PER_IMAGE)[clean == 0]).any()
        np.testing.assert_array_equal(clean, experts_plans[0][0])
    val = [np.mean([row["val_r_mean"] for row in trained.log if (row["generation"], row["epoch"]) == at])
           for at in (("teachers", 1), ("experts", 1))]
    assert val[1] > val[0]


def test_correct_says_which_pairs_were_matched_in_their_batch():
    trained = train("infonce", data=planted(0.0), epochs=6)
    assert trained.correct.shape == (2, 6, TRAIN * PER_IMAGE) and trained.correct.dtype == bool
    assert trained.correct[:, 5].mean() > trained.correct[:, 0].mean()


def test_recovery_draws_captions_for_risky_images_from_the_peers_nearest(monkeypatch, plans):
    risky = np.arange(TRAIN * PER_IMAGE) % 4 == 0
    monkeypatch.setattr(experts, "divide", lambda losses, seed: np.where(risky, 0.2, 0.8).astype(np.float32))
    data = planted(0.4)
    trained = train("dtcl", data=data, epochs=3, keep=3)
    own = np.arange(TRAIN * PER_IMAGE)
    for _, _, captions in plans[:4]:  # before recovery starts
        np.testing.assert_array_equal(captions, own)
    for n, (clean, tolerant, captions) in enumerate(plans[4:]):
        other = trained.snapshots[1 - n][2]
        v = MODEL.embed_image(other["image"], data[0].images)
        nearest = np.argsort(-np.asarray(v @ MODEL.embed_text(other["text"], data[0].texts).T))[:, :3]
        np.testing.assert_array_equal(captions[~risky], own[~risky])
        inside = (nearest[data[0].image_of] == captions[:, None]).any(1)
        assert inside[risky].mean() > 0.98  # all but near ties
        np.testing.assert_allclose(tolerant, np.where(risky, 0.5, 0))
        assert (clean[risky] == 0).all()


def test_tracks_by_hand():
    r = recipe("dtcl")
    clean, tolerant = track_weights(r, [1.0, 0.5, 0.49, 0.0], False)
    np.testing.assert_allclose(clean, [1, 0.5, 0, 0])
    np.testing.assert_allclose(tolerant, [0, 0, 0.7, 0.7])
    np.testing.assert_allclose(track_weights(r, [1.0, 0.0], True)[1], [0, 0.5])


def test_a_plan_uses_each_row_at_most_once_and_keeps_it_together():
    values = np.arange(23)
    plan = make_epoch_batches(np.random.default_rng(0), values + 100, 5, values * 2.0, values * 3.0, values)
    rows = np.asarray(plan.captions)
    assert rows.shape == (4, 5) and len(set(rows.ravel())) == 20
    np.testing.assert_array_equal(plan.images, rows + 100)
    np.testing.assert_array_equal(plan.clean, rows * 2)
    np.testing.assert_array_equal(plan.tolerant, rows * 3)
    assert make_epoch_batches(np.random.default_rng(0), values, 50, values, values, values).images.shape == (1, 23)


def test_top_captions_by_sorting():
    generator = np.random.default_rng(0)
    images, texts = jnp.asarray(generator.normal(size=(7, 4))), jnp.asarray(generator.normal(size=(11, 4)))
    wanted = np.argsort(-np.asarray(images @ texts.T), axis=1)[:, :3]
    np.testing.assert_array_equal(top_captions(images, texts, 3), wanted)


def test_full_mode_on_pixels():
    generator = np.random.default_rng(0)
    tower = convnet((8, 8, 3), (4,), (WIDTH,))
    model = dual_encoder(tower, None, WIDTH, mode="full", dim=8)
    data = Inputs(jnp.asarray(generator.integers(0, 256, (24, 8, 8, 3)), jnp.uint8),
                  jnp.asarray(generator.normal(size=(24, WIDTH)), jnp.float32), np.arange(24))
    trained = train_experts(model, data, data, recipe(epochs=3, batch=8, augment="flip"), count=1, seed=0, keep=1,
                            mismatched=np.zeros(24, bool))
    start, after = trained.snapshots[0]
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start, after)
    assert min(jax.tree.leaves(moved["image"]["backbone"])) > 0 and len(trained.log) == 6


def test_streamed_images_train_the_same_experts(monkeypatch):
    monkeypatch.setattr(streaming, "STEPS_PER_TRANSFER", 2)  # several slabs an epoch, the last one short
    pairs, val, mismatched = planted(0.4)
    pixels = np.random.default_rng(3).integers(0, 256, (TRAIN, 8, 8, 3), dtype=np.uint8)

    def encoded(image):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        return buffer.getvalue()

    stored = [encoded(image) for image in pixels]
    lazy = LazyImages([Encoded(str(i), lambda data=data: data) for i, data in enumerate(stored)], 8)
    model = dual_encoder(convnet((8, 8, 3), (4,), (8,)), None, WIDTH, mode="full", dim=8)
    val = val._replace(images=jnp.asarray(pixels[:60]))
    made = [train_experts(model, pairs._replace(images=images), val, recipe(epochs=3, warmup=1), count=1, seed=0,
                          keep=3, mismatched=mismatched) for images in (jnp.asarray(pixels), lazy)]
    chex.assert_trees_all_close(made[0].snapshots, made[1].snapshots, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(made[0].correct, made[1].correct)
    assert all(row["pairs_per_second"] > 0 and 0 < row["wait_fraction"] < 1 for row in made[1].log)
    assert "wait_fraction" not in made[0].log[0]


class EveryEpoch(Checkpointer):
    """Saves after every epoch, in files."""

    def __init__(self, directory):
        self.directory = directory

    def load(self, name):
        return read_checkpoint(self.directory / name, "key")

    def save(self, name, state):
        save_checkpoint(self.directory / name, state, "key")

    def should_save(self):
        return True


@pytest.mark.parametrize("epochs_before", [1, 3, 4])  # of the teachers; all of theirs; and of the experts
def test_resumed_experts_are_the_same(tmp_path, epochs_before):
    pairs, val, mismatched = planted(0.4)
    arguments = (MODEL, pairs, val, recipe("dtcl", epochs=3, teacher_count=1, teacher_epochs=3))
    settings = {"count": 1, "seed": 0, "keep": 2, "mismatched": mismatched}
    whole = train_experts(*arguments, **settings)
    for trained in expert_epochs(*arguments, **settings, checkpointer=EveryEpoch(tmp_path)):
        if trained.epochs > epochs_before:  # what came before is saved; this epoch is lost
            break
    seen = [trained.epochs for trained in expert_epochs(*arguments, **settings, checkpointer=EveryEpoch(tmp_path))]
    assert epochs_before in seen and seen[-1] == 6
    resumed = train_experts(*arguments, **settings, checkpointer=EveryEpoch(tmp_path))  # all of it is there
    chex.assert_trees_all_equal(resumed._replace(log=[]), whole._replace(log=[]))
    assert resumed.log == whole.log and whole.epochs == 6


def test_pairs_that_are_not_divided_are_all_treated_alike():
    weights = lambda division, warming_up=False: [
        float(track[0]) for track in undivided_weights(recipe(division=division, tolerant_weight=0.7), 2, warming_up)]
    assert weights("clean") == weights("clean", True) == [1, 0] and weights("tolerant") == [0, 1]
    assert weights("both") == [1, pytest.approx(0.7)] and weights("both", True) == weights("gmm", True) == [0, 1]
    with pytest.raises(UserError, match="experts.division is 'gmm'; choose one of"):
        weights("gmm")


def closed_form_teacher(pairs, val):
    """The closed form of planted pairs as a teacher."""
    texts, features = np.asarray(pairs.texts), np.asarray(pairs.images)
    fitted = closed_form.fit(features, texts, pairs.image_of, np.asarray(val.images), np.asarray(val.texts), val.image_of)
    embed = lambda kind, rows: jnp.asarray(kind(fitted.form, rows))
    return Teacher(embed(closed_form.embed_images, features), embed(closed_form.embed_texts, texts),
                   fitted.clean_probability)


def test_a_first_teacher_divides_and_guides_from_the_first_step(plans):
    pairs, val, mismatched = planted(0.4)
    teacher = closed_form_teacher(pairs, val)
    taught = recipe(closed_form=True, decay="cosine", lr_with_teachers=0.5, epochs=2, recovery_weight=0.0)
    trained = train_experts(MODEL, pairs, val, taught, count=1, seed=0, keep=1, mismatched=mismatched,
                            first_teacher=teacher)
    np.testing.assert_array_equal(trained.clean_probability, teacher.clean_probability)
    for clean, _, captions in plans:
        np.testing.assert_array_equal(clean, np.where(teacher.clean_probability >= 0.5, teacher.clean_probability, 0))
        np.testing.assert_array_equal(captions, np.arange(len(captions)))
    alone = train("dtcl", epochs=2, data=(pairs, val, mismatched))
    assert trained.log[-1]["val_r_mean"] > alone.log[-1]["val_r_mean"]


def test_a_generation_between_keeps_the_first_teachers_division(plans):
    pairs, val, mismatched = planted(0.4)
    teacher = closed_form_teacher(pairs, val)
    taught = recipe(closed_form=True, teacher_count=1, teacher_epochs=1, epochs=1, recovery_weight=0.0)
    trained = train_experts(MODEL, pairs, val, taught, count=1, seed=0, keep=1, mismatched=mismatched,
                            first_teacher=teacher)
    assert [row["generation"] for row in trained.log] == ["teachers"] * 2 + ["experts"] * 2
    assert len(plans) == 4 and all((clean == plans[0][0]).all() for clean, _, _ in plans)


def test_a_cosine_decay_ends_at_zero():
    """The last step of a generation changes almost nothing, the first as much as without decay."""
    steps = {decay: make_expert_steps(MODEL, recipe(decay=decay), 0.0, total_steps=100) for decay in ("none", "cosine")}
    moved = {}
    for decay, made in steps.items():
        state = made.optimizer.init({"x": jnp.zeros(1)})
        moves = []
        for _ in range(100):
            update, state = made.optimizer.update({"x": jnp.ones(1)}, state, {"x": jnp.zeros(1)})
            moves.append(float(update["x"][0]))
        moved[decay] = moves
    assert moved["cosine"][0] == moved["none"][0] == moved["none"][-1] and abs(moved["cosine"][-1]) < 1e-3


def test_adam_experts_learn(plans):
    trained = train("dtcl", optimizer="adam", lr=5e-3, epochs=3, weight_decay=1e-3)
    assert trained.log[-1]["val_r_mean"] > 2 * 100 * 6 / 60
