"""Heads that compute a closed form, as a start of experts."""

import jax
import numpy as np
import pytest
from test_closed_form import clusters
from test_experts import MODEL as OTHER_MODEL
from test_experts import closed_form_teacher, planted, recipe

from mdw_jax.config import base, resolve
from mdw_jax.errors import UserError
from mdw_jax.method import closed_form as cf
from mdw_jax.method.closed_form_heads import closed_form_heads
from mdw_jax.method.experts import train_experts
from mdw_jax.method.retrieval import scores
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.image.tower import Tower
from mdw_jax.runtime.rng import named_key

TOWER = Tower("stub", lambda key: {}, lambda params, images: images, 40)
KEY = named_key(0, "rotation")


def solved(rank):
    features, texts, image_of = clusters(120, 0)
    return features, texts, cf.solve(cf.moments(features, texts, image_of), 1.0, rank)


def cosines(form, features, texts, dim, key=KEY):
    model = dual_encoder(TOWER, {}, 30, mode="projection", dim=dim)
    params = closed_form_heads(model.init(named_key(1, "init")), form, key)
    return np.asarray(model.embed_image(params["image"], features) @ model.embed_text(params["text"], texts).T)


def test_cosines_are_those_of_the_closed_form_whatever_the_rotation():
    features, texts, form = solved(12)
    wanted = cf.embed_images(form, features) @ cf.embed_texts(form, texts).T
    for key in (KEY, named_key(5, "rotation")):
        np.testing.assert_allclose(cosines(form, features, texts, 16, key), wanted, atol=2e-5)


def test_a_narrow_head_has_the_first_directions():
    features, texts, form = solved(12)
    first = solved(7)[2]
    wanted = cf.embed_images(first, features) @ cf.embed_texts(first, texts).T
    np.testing.assert_allclose(cosines(form, features, texts, 8), wanted, atol=2e-5)


def test_networks_differ_in_their_hidden_coordinates_which_have_variance_one():
    features, _, form = solved(12)
    model = dual_encoder(TOWER, {}, 30, mode="projection", dim=16)
    params = model.init(named_key(1, "init"))
    hidden = []
    for n in range(2):
        layer = closed_form_heads(params, form, jax.random.fold_in(KEY, n))["image"]["head"]["projection"]
        hidden.append(features @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]))
    assert np.abs(hidden[0] - hidden[1]).mean() > 0.5
    assert 0.3 < hidden[0].var() < 3
    np.testing.assert_allclose(hidden[0].mean(1), 0, atol=1e-5)


def test_other_features_and_trained_backbones_are_refused():
    form = solved(12)[2]
    with pytest.raises(UserError, match="different features"):
        closed_form_heads(OTHER_MODEL.init(KEY), form, KEY)
    params = OTHER_MODEL.init(KEY)
    with pytest.raises(UserError, match="experts.init to random"):
        closed_form_heads({**params, "image": {**params["image"], "backbone": {}}}, form, KEY)


def test_experts_start_there_and_the_networks_to_match_do_not():
    pairs, val, mismatched = planted(0.4)
    teacher, form = with_form(pairs, val)
    settings = dict(count=1, seed=0, keep=1, mismatched=mismatched, first_teacher=teacher)
    still = recipe(closed_form=True, init="closed_form", epochs=1, lr_with_teachers=0.0, recovery_weight=0.0)
    unchanged = train_experts(OTHER_MODEL, pairs, val, still, **settings)
    images = [np.asarray(OTHER_MODEL.embed_image(best["image"], pairs.images)) for best in unchanged.best]
    texts = [np.asarray(OTHER_MODEL.embed_text(best["text"], pairs.texts)) for best in unchanged.best]
    wanted = cf.embed_images(form, pairs.images)[:, :7] @ cf.embed_texts(form, pairs.texts)[:, :7].T
    for v, t in zip(images, texts, strict=True):
        assert np.corrcoef((v @ t.T).ravel(), wanted.ravel())[0, 1] > 0.99
    matched = recipe(closed_form=True, init="closed_form", epochs=1, lr_with_teachers=0.0, recovery_weight=0.0,
                     trajectory_epochs=1)
    begins = train_experts(OTHER_MODEL, pairs, val, matched, **settings).snapshots[0][0]
    random = OTHER_MODEL.init(named_key(0, "trajectories", 0, "init", 0))
    np.testing.assert_array_equal(begins["text"]["projection"]["kernel"], random["text"]["projection"]["kernel"])


def test_the_start_stays_the_expert_where_no_epoch_is_better():
    pairs, val, mismatched = planted(0.4)
    teacher, _ = with_form(pairs, val)
    ruined = recipe(closed_form=True, init="closed_form", epochs=2, lr_with_teachers=30.0, recovery_weight=0.0)
    trained = train_experts(OTHER_MODEL, pairs, val, ruined, count=1, seed=0, keep=1, mismatched=mismatched,
                            first_teacher=teacher)
    start = trained.snapshots[0][0]
    np.testing.assert_array_equal(trained.best[0]["text"]["projection"]["kernel"], start["text"]["projection"]["kernel"])
    assert max(row["val_r_mean"] for row in trained.log) < scores(OTHER_MODEL, [start], val)[0, -1]


def with_form(pairs, val):
    """The closed form of planted pairs as a teacher that networks can start from, and the form itself."""
    teacher = closed_form_teacher(pairs, val)
    form = cf.fit(np.asarray(pairs.images), np.asarray(pairs.texts), pairs.image_of, np.asarray(val.images),
                  np.asarray(val.texts), val.image_of).form
    return teacher._replace(form=form), form


@pytest.mark.parametrize(("changes", "start"), [
    ({}, "closed_form"), ({"experts.closed_form": False}, "random"), ({"model.mode": "full"}, "random"),
    ({"experts.recipe": "infonce"}, "random")])
def test_auto_starts_from_the_closed_form_where_there_is_one(changes, start):
    c = base()
    c.update_from_flattened_dict({"model.mode": "projection", "experts.closed_form": True, "experts.init": "auto",
                                  **changes})
    assert resolve(c).experts.init == start


@pytest.mark.parametrize(("changes", "message"), [
    ({"experts.closed_form": False}, "set experts.closed_form to True"),
    ({"model.mode": "full"}, "set model.mode to projection"),
])
def test_settings_without_a_closed_form_of_the_heads_features_are_refused(changes, message):
    c = base()
    c.model.mode, c.experts.closed_form, c.experts.init = "projection", True, "closed_form"
    resolve(c)
    for key, value in changes.items():
        c[key.split(".")[0]][key.split(".")[1]] = value
    with pytest.raises(UserError, match=message):
        resolve(c)
