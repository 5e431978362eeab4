"""Filters: what they drop, that all that follows sees the rest alone, and that row numbers stay those of the data."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import prepared_run, tiny_config

from mdw_jax.analysis.certificate.case import experts_to_certify
from mdw_jax.config import resolve
from mdw_jax.errors import UserError
from mdw_jax.io.files import read_json
from mdw_jax.io.records import stored_array
from mdw_jax.io.trajectory import open_trajectory, read_snapshot
from mdw_jax.method.filtering import best_pairs
from mdw_jax.models.embedding import Inputs, embeddings
from mdw_jax.pipeline import filter as filter_module
from mdw_jax.pipeline.coreset import coreset_set
from mdw_jax.pipeline.distill import distill_stage
from mdw_jax.pipeline.experts import experts_stage, kept_pairs
from mdw_jax.pipeline.preset_run import SCORER_RECIPES, open_preset, read_division
from mdw_jax.pipeline.sets import real_pairs
from mdw_jax.pipeline.start import expert_embeddings, start_rows

TINY = {
    "run.presets": ("mdw",), "data.size": 16, "data.train": 60, "data.val": 30, "data.test": 30, "noise.rate": 0.4,
    "text.dim": 24, "model.mode": "projection", "model.patches": (8,), "model.widths": (16,), "model.dim": 8,
    "experts.count": 1, "experts.epochs": 3, "experts.batch": 32, "distill.pairs": 10, "distill.batch": 5,
    "distill.max_start_epoch": 1, "distill.match_epochs": 1, "distill.steps": 1, "distill.inner_steps": 1,
    "distill.rank": 2, "experts.lr": 0.3,
}


def tiny(directory, **changes):
    return tiny_config(TINY, directory, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_run(tiny, tmp_path_factory)


@pytest.mark.parametrize("score", SCORER_RECIPES)
def test_the_worst_pairs_of_every_score_are_dropped_from_the_experts_on(data, score):
    directory, prepared = data
    run = open_preset(tiny(directory, filter__score=score, experts__recipe="infonce"), prepared, "mdw")
    scores = filter_module.score_pairs(run, prepared, experts_stage).scores
    kept, pairs = kept_pairs(run, prepared), len(run.noise.image_of)
    np.testing.assert_array_equal(kept, best_pairs(scores, run.noise.true_rate))
    record = experts_stage(run, prepared)
    assert record["rate"]["true"] == run.noise.mismatched[kept].mean() and record["certificate_inputs"] is None
    dropped = np.setdiff1d(np.arange(pairs), kept)
    division = read_division(run)
    assert (division[dropped] == 0).all() and (division[kept] == 1).all()
    correct = np.unpackbits(stored_array(run.experts.path / "correct.npy", (2, 3, None)), axis=-1, count=pairs)
    assert not correct[..., dropped].any()
    assert read_json(run.filter.folder.path / "filter.json")["remaining_rate"] == record["rate"]["true"]


def test_experts_of_a_filter_never_see_a_dropped_pair(data, monkeypatch):
    directory, prepared = data
    run = open_preset(tiny(directory, filter__score="closed_form"), prepared, "infonce")
    kept = kept_pairs(run, prepared)
    seen = filter_module.training_inputs(run, prepared, kept)
    np.testing.assert_array_equal(seen.texts, prepared.captions.train[kept])
    np.testing.assert_array_equal(seen.image_of, run.noise.image_of[kept])
    experts_stage(run, prepared)
    first = read_snapshot(open_trajectory(run.experts.path / "net_00", key=run.experts.key), 1)
    # The same, had the captions of the dropped pairs been others.
    texts = np.array(prepared.captions.train)
    texts[np.setdiff1d(np.arange(len(texts)), kept)] = 7
    monkeypatch.setattr(type(prepared), "train", lambda self, noise: Inputs(
        self.train_images, jnp.asarray(texts), np.asarray(noise.image_of)))
    again = run._replace(experts=run.experts._replace(path=run.experts.path.with_name("again")))
    experts_stage(again, prepared)
    second = read_snapshot(open_trajectory(again.experts.path / "net_00", key=run.experts.key), 1)
    chex.assert_trees_all_equal(first, second)


def test_scoring_experts_are_those_of_other_presets(data):
    directory, prepared = data
    plain = {name: open_preset(tiny(directory), prepared, name) for name in ("mdw", "infonce")}
    for score, name in (("cosine", "infonce"), ("neg_clip_loss", "infonce"), ("dtcl_cosine", "mdw")):
        run = open_preset(tiny(directory, filter__score=score), prepared, "infonce")
        assert run.filter.scorer.experts == plain[name].experts and run.filter.scorer.noise.sha256 == run.noise.sha256
        assert run.experts.key not in (plain["mdw"].experts.key, plain["infonce"].experts.key)
    override = tiny(directory, run__preset_overrides=("mdw:filter.score=cosine", "mdw:filter.drop=0.5"))
    run = open_preset(override, prepared, "mdw")
    assert run.filter.scorer.experts == plain["infonce"].experts and run.config.filter.drop == 0.5
    assert open_preset(override, prepared, "infonce").sets == plain["infonce"].sets  # without a filter nothing changes


def test_sets_consist_of_kept_pairs(data):
    directory, prepared = data
    config = tiny(directory, filter__score="closed_form", filter__drop=0.6)
    for name in ("random", "herding", "clip_filter", "forgetting"):
        run = open_preset(config, prepared, name)
        kept = kept_pairs(run, prepared)
        images = coreset_set(run, prepared, 0).images
        allowed = real_pairs(prepared, run.noise, kept)[0]
        assert all((allowed == image).all((1, 2, 3)).any() for image in images)
    for init in ("random", "division", "division_top", "k_means", "herding", "facility_location"):
        start = tiny(directory, filter__score="closed_form", filter__drop=0.6, distill__init=init,
                     experts__recipe="infonce")  # all kept pairs are of the clean side
        run = open_preset(start, prepared, "mdw")
        experts_stage(run, prepared)
        rows = start_rows(run, prepared, 0)
        assert np.isin(rows, kept).all() and len(set(run.noise.image_of[rows])) == 10


def test_a_card_says_what_was_dropped(data):
    directory, prepared = data
    run = open_preset(tiny(directory, filter__score="closed_form"), prepared, "random")
    [folder] = distill_stage(run, prepared)
    card = read_json(folder / "card.json")["filter"]
    assert card["score"] == "closed_form" and card["kept"] == card["pairs"] - round(card["drop"] * card["pairs"])
    assert not list((directory / "experts").glob("*filter*"))


def test_the_embeddings_of_experts_are_of_the_rows_that_are_asked(data):
    directory, prepared = data
    run, rows = open_preset(tiny(directory), prepared, "mdw"), np.array([7, 3, 200])
    for epoch in ("best", 1, -1):
        whole = list(expert_embeddings(run, prepared, epoch))
        some = list(expert_embeddings(run, prepared, epoch, rows))
        assert len(whole) == len(some) == 2
        for (images, texts), (few_images, few_texts) in zip(whole, some, strict=True):
            np.testing.assert_allclose(few_images, images[run.noise.image_of[rows]], atol=1e-6)
            np.testing.assert_allclose(few_texts, texts[rows], atol=1e-6)
    # The last snapshot that is stored is that of epoch 1.
    params = read_snapshot(open_trajectory(run.experts.path / "net_01", key=run.experts.key), 1)
    np.testing.assert_allclose(whole[1][1], embeddings(prepared.model, params, prepared.train(run.noise))[1], atol=1e-6)


def test_a_filter_of_clean_pairs_drops_nothing(data):
    directory, prepared = data
    run = open_preset(tiny(directory, filter__score="cosine", noise__rate=0.0), prepared, "random")
    np.testing.assert_array_equal(kept_pairs(run, prepared), np.arange(len(run.noise.image_of)))
    assert not run.filter.scorer.experts.path.exists()


def test_the_unknown_rate_of_natural_noise_is_estimated(data):
    directory, prepared = data
    run = open_preset(tiny(directory, filter__score="closed_form", noise__protocol="natural", noise__rate=0.0), prepared,
                      "random")
    estimated = filter_module.score_pairs(run, prepared, experts_stage).estimated_rate
    pairs = len(run.noise.image_of)
    assert 0 < estimated < 0.6 and len(kept_pairs(run, prepared)) == pairs - round(estimated * pairs)
    assert "remaining_rate" not in read_json(run.filter.folder.path / "filter.json")


@pytest.mark.parametrize(("changes", "message"), [
    ({"distill__pairs": 40, "filter__drop": 0.9}, "leaves pairs of .* images, but distill.pairs is 40"),
    ({"experts__batch": 64, "filter__drop": 0.9}, "leaves 30 pairs, but its experts need 64")])
def test_a_filter_that_leaves_too_little_is_a_users_mistake(data, changes, message):
    directory, prepared = data
    run = open_preset(tiny(directory, filter__score="closed_form", **changes), prepared, "mdw")
    with pytest.raises(UserError, match=message):
        kept_pairs(run, prepared)


@pytest.mark.parametrize(("changes", "message"), [
    ({"filter__drop": 0.2}, "filter.score is empty"), ({"filter__drop": 1.0, "filter__score": "cosine"}, r"\[0, 1\)"),
    ({"filter__score": "cosine", "experts__recipe": "debiased"}, "not random")])
def test_filters_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        resolve(tiny("somewhere", **changes))


def test_no_certificate_for_filtered_pairs(data):
    directory, prepared = data
    presets = ("mdw", "infonce")
    config = tiny(directory, run__presets=presets, run__preset_overrides=("infonce:filter.score=cosine",))
    [(names, _)] = experts_to_certify(config, prepared, [None])
    assert names == "mdw"
    with pytest.raises(UserError, match="experts of unfiltered pairs"):
        experts_to_certify(tiny(directory, run__presets=presets, filter__score="cosine"), prepared, [None])
