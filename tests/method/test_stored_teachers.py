"""Experts whose teachers' embeddings, images and texts stay on the host learn what those learn that have all in memory."""

import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experts import MODEL, EveryEpoch, planted, recipe

from mdw_jax.data import stored_rows, streaming
from mdw_jax.data.stored_rows import SideBySide, create_rows, finished_rows, stays_on_host
from mdw_jax.method import caption_search, closed_form, experts, noise_rate, teacher_embeddings, teachers
from mdw_jax.method.experts import train_experts
from mdw_jax.method.teacher_embeddings import form_embeddings, teacher_ensembles
from mdw_jax.method.teachers import Teacher, all_pair_losses
from mdw_jax.models.embedding import embeddings


@pytest.fixture
def on_host(monkeypatch):
    """Teachers' embeddings are never in memory, and there are several transfers and parts."""
    monkeypatch.setattr(teacher_embeddings, "IN_MEMORY", 0)
    monkeypatch.setattr(streaming, "_MOST_STEPS", 3)
    monkeypatch.setattr(teachers, "_PART_BYTES", 3000)


def in_files(rows, path):
    file = create_rows(path, rows.shape, np.float32)
    file[:] = rows
    return finished_rows(file)


def assert_close(one, other, atol):
    chex.assert_trees_all_close(one, other, atol=atol)


@pytest.mark.parametrize("changes", [{"teacher_count": 0}, {"teacher_count": 1, "teacher_epochs": 2}])
@pytest.mark.slow
def test_the_same_experts_but_for_half_precision(monkeypatch, changes):
    pairs, val, mismatched = planted(0.4)
    # What random draws would magnify is out of it: near-equal captions, and pairs on the border of the division.
    monkeypatch.setattr(experts, "divide", lambda losses, seed: np.where(mismatched, 0.1, 0.9).astype(np.float32))
    settings = {"count": 1, "seed": 0, "keep": 3, "mismatched": mismatched}
    trained = lambda: train_experts(MODEL, pairs, val, recipe("dtcl", epochs=3, recovery_weight=0.0, **changes), **settings)
    in_memory = trained()
    monkeypatch.setattr(teacher_embeddings, "IN_MEMORY", 0)
    monkeypatch.setattr(streaming, "_MOST_STEPS", 3)
    stored = trained()
    assert_close(stored.snapshots, in_memory.snapshots, 2e-3)
    assert (stored.correct == in_memory.correct).mean() > 0.99
    assert "wait_fraction" in stored.log[-1] and "wait_fraction" not in in_memory.log[-1]


@pytest.mark.parametrize("debias, mapped", [(False, True), (True, True), (True, False)])
def test_images_and_texts_in_files_train_the_same_experts(tmp_path, monkeypatch, debias, mapped):
    monkeypatch.setattr(stored_rows, "MAPPED", 10**9 if mapped else 0)
    pairs, val, mismatched = planted(0.4)
    stored = pairs._replace(images=in_files(np.asarray(pairs.images), tmp_path / "images.npy"),
                            texts=in_files(np.asarray(pairs.texts), tmp_path / "texts.npy"))
    made = [train_experts(MODEL, data, val, recipe("dtcl", epochs=3, debias=debias), count=1, seed=0, keep=3, rate=0.4,
                          mismatched=mismatched) for data in (pairs, stored)]
    assert_close(made[0].snapshots, made[1].snapshots, 1e-4)
    np.testing.assert_array_equal(made[0].correct, made[1].correct)


def test_recovery_and_resuming_from_files(on_host, tmp_path):
    pairs, val, mismatched = planted(0.4)
    arguments = (MODEL, pairs, val, recipe("dtcl", epochs=3, recovery_search="sample"))
    settings = {"count": 1, "seed": 0, "keep": 2, "mismatched": mismatched}
    whole = train_experts(*arguments, **settings)
    for trained in experts.expert_epochs(*arguments, **settings, checkpointer=EveryEpoch(tmp_path)):
        if trained.epochs > 1:
            break
    resumed = train_experts(*arguments, **settings, checkpointer=EveryEpoch(tmp_path))
    chex.assert_trees_all_equal(resumed.snapshots, whole.snapshots)
    np.testing.assert_array_equal(resumed.correct_bits, whole.correct_bits)
    assert whole.log[-1]["precision"] > 0.75


@pytest.mark.parametrize("teacher_count", [0, 1])
def test_a_first_teachers_embeddings_are_let_go_once_it_has_taught(teacher_count):
    pairs, val, mismatched = planted(0.4)
    network = MODEL.init(jax.random.key(0))
    images, texts = map(np.array, embeddings(MODEL, network, pairs))
    held = weakref.ref(images)
    settings = recipe("dtcl", epochs=2, teacher_count=teacher_count, teacher_epochs=1, trajectory_epochs=1,
                      trajectory_lr=0.1)
    division = np.where(mismatched, 0.1, 0.9).astype(np.float32)
    training = experts.expert_epochs(MODEL, pairs, val, settings, count=1, seed=0, keep=1, mismatched=mismatched,
                                     first_teacher=Teacher(images, texts, division))
    del images, texts
    alive = {}
    for trained in training:
        gc.collect()
        alive.setdefault(trained.log[-1]["generation"] if trained.log else "", held() is not None)  # after its first epoch
    assert alive == {"": True} | ({"teachers": True} if teacher_count else {}) | {
        "experts": not teacher_count, "trajectories": False}
    np.testing.assert_array_equal(trained.clean_probability, division)


def test_losses_of_stored_embeddings_are_those_of_their_networks(on_host, tmp_path):
    pairs, *_ = planted(0.4)
    networks = [MODEL.init(jax.random.key(n)) for n in range(3)]
    stored = teacher_ensembles(MODEL, networks, pairs, [[0, 1, 2], [1]], lambda: tmp_path, "peers")
    assert all(stays_on_host(rows) for both in stored for rows in both)
    assert len(list(tmp_path.iterdir())) == 6  # each network's once, however many ensembles it is in
    whole = [tuple(jnp.asarray(rows[:]) for rows in both) for both in stored]
    losses = [all_pair_losses(both, 0.07, pairs.image_of, 32, seed=0, epoch=1) for both in (stored, whole)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_sample_is_drawn_anew_each_epoch_also_for_a_finished_teacher(monkeypatch):
    monkeypatch.setattr("mdw_jax.method.caption_search.SAMPLE", 20)
    seen, search = [], experts.recovery_candidates
    monkeypatch.setattr(experts, "recovery_candidates", lambda *args: seen.append(search(*args)) or seen[-1])
    pairs, val, mismatched = planted(0.4)
    for way, calls in (("sample", 3), ("exact", 1)):
        seen.clear()
        train_experts(MODEL, pairs, val, recipe("dtcl", epochs=3, teacher_count=1, teacher_epochs=1, recovery_search=way),
                      count=1, seed=0, keep=1, mismatched=mismatched)
        assert len(seen) == calls
        assert all(len(np.unique(found[found >= 0])) <= 20 for found in seen) == (way == "sample")
        assert way == "exact" or (seen[0] != seen[1]).any()


def test_a_large_closed_form_teaches_from_files(on_host, tmp_path):
    pairs, val, _ = planted(0.4)
    features, texts = np.asarray(pairs.images), np.asarray(pairs.texts)
    form = closed_form.fit(features, texts, pairs.image_of, np.asarray(val.images), np.asarray(val.texts),
                           val.image_of).form
    for stored, embed, rows in zip(form_embeddings(form, features, texts, lambda: tmp_path),
                                   (closed_form.embed_images, closed_form.embed_texts), (features, texts), strict=True):
        assert isinstance(stored, SideBySide)
        np.testing.assert_allclose(stored[:], embed(form, rows), atol=1e-3)


def test_the_noise_rate_of_pairs_in_files(on_host, monkeypatch, tmp_path):
    monkeypatch.setattr(noise_rate, "FEWEST_PAIRS", 50)
    pairs, val, _ = planted(0.4)
    stored = pairs._replace(texts=in_files(np.asarray(pairs.texts), tmp_path / "texts.npy"))
    rates = [noise_rate.noise_rate(MODEL, data, val, recipe("tolerant", epochs=6), seed=0) for data in (pairs, stored)]
    assert 0 < rates[0].eta < 1
    np.testing.assert_allclose(rates[1], rates[0], atol=1e-6)


@pytest.mark.parametrize("way", ["exact", "ann"])
def test_candidates_that_stay_are_searched_with_the_same_draws_where_training_is_resumed(monkeypatch, tmp_path, way):
    """A finished teacher's are found once, in whatever epoch training begins."""
    draws = []
    monkeypatch.setitem(caption_search.SEARCHES, way, lambda images, texts, k, generator: (
        draws.append(generator.integers(2**40)) or caption_search.top_captions(images, texts, k)))
    pairs, val, mismatched = planted(0.4)
    arguments = (MODEL, pairs, val, recipe("dtcl", epochs=3, teacher_count=1, teacher_epochs=1, recovery_search=way))
    settings = {"count": 1, "seed": 0, "keep": 1, "mismatched": mismatched}
    for trained in experts.expert_epochs(*arguments, **settings, checkpointer=EveryEpoch(tmp_path)):
        if trained.epochs > 2:
            break
    train_experts(*arguments, **settings, checkpointer=EveryEpoch(tmp_path))
    assert len(draws) == 2 and draws[0] == draws[1]
