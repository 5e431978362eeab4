"""The list of suspected mismatches: against brute force, against the truth, and what it says where nobody knows."""

import csv
import re
import shutil

import numpy as np
import pytest
from tiny_config import tiny_config

from mdw_jax.analysis.demo.query import nearest_hits
from mdw_jax.analysis.mismatches import find, words
from mdw_jax.analysis.mismatches.command import mismatches_command
from mdw_jax.analysis.mismatches.find import best_matches, judge, local_similarity, quality, suggest, suspected
from mdw_jax.analysis.mismatches.rows import COLUMNS
from mdw_jax.cli import main
from mdw_jax.data.stored_rows import stays_on_host
from mdw_jax.errors import UserError
from mdw_jax.io.files import read_json, write_json
from mdw_jax.pipeline import experts as expert_stage
from mdw_jax.pipeline.expert_networks import network_embeddings
from mdw_jax.pipeline.preset_run import read_division
from mdw_jax.pipeline.reopen import reopen, trained_preset
from mdw_jax.pipeline.run import experts_command
from mdw_jax.runtime.rng import named_generator

TINY = {
    "run.presets": ("random", "vld", "mdw", "filter_vld"), "data.size": 16, "data.train": 60, "data.val": 30,
    "data.test": 30, "noise.rate": 0.4, "text.dim": 24, "model.mode": "projection", "model.patches": (8,),
    "model.widths": (16,), "model.dim": 8, "experts.count": 1, "experts.epochs": 2, "experts.batch": 32,
    "experts.teacher_count": 1, "experts.teacher_epochs": 1, "distill.pairs": 10, "distill.batch": 5,
    "distill.max_start_epoch": 1, "distill.match_epochs": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run directory with experts, moved since it was made."""
    made = tmp_path_factory.mktemp("made") / "run"
    experts_command(tiny_config(TINY, made))
    moved = tmp_path_factory.mktemp("moved") / "run"
    shutil.move(made, moved)
    return moved


@pytest.fixture(scope="module")
def opened(folder):
    return reopen(folder)


@pytest.fixture(scope="module")
def judged(opened):
    return judge(trained_preset(opened), opened.prepared)


@pytest.fixture
def nothing_trains(monkeypatch):
    monkeypatch.setattr(expert_stage, "_train", None)


@pytest.mark.parametrize("sizes", [(2048, 16384), (7, 5), (1, 1)])
def test_best_matches_in_blocks(sizes):
    generator, done = np.random.default_rng(0), []
    queries, candidates = (generator.standard_normal((n, 4)).astype(np.float16) for n in (23, 31))
    candidates[20] = candidates[3]  # of equal ones, the first
    found, values = best_matches(queries, candidates, sizes, done.append)
    similarity = queries.astype(np.float32) @ candidates.astype(np.float32).T
    np.testing.assert_array_equal(found, similarity.argmax(1))
    np.testing.assert_allclose(values, similarity.max(1), rtol=1e-5)
    assert sum(done) == 23


def test_pairs_are_judged_as_the_experts_did(opened, judged):
    run, _ = trained_preset(opened)
    assert run.name == "mdw" == judged.preset and judged.divided_by == "experts" and not judged.dropped.any()
    np.testing.assert_array_equal(judged.clean_probability, read_division(run))
    networks = list(network_embeddings(run.experts, opened.prepared.model, opened.prepared.train(run.noise)))
    cosine = np.mean([images @ texts.T for images, texts in networks], axis=0)  # (N, K)
    pairs = (judged.image_of, np.arange(len(judged.image_of)))
    np.testing.assert_allclose(judged.similarity, cosine[pairs], atol=2e-3)
    rows = suspected(judged, 0.5)
    suggestions = suggest(judged, rows)
    np.testing.assert_allclose(suggestions.caption_similarity, cosine[judged.image_of[rows]].max(1), atol=2e-3)
    np.testing.assert_allclose(suggestions.image_similarity, cosine[:, rows].max(0), atol=2e-3)
    np.testing.assert_allclose(cosine[judged.image_of[rows], suggestions.caption], suggestions.caption_similarity,
                               atol=2e-3)


@pytest.mark.parametrize("streamed", [False, True])
def test_large_embeddings_lie_in_files_and_say_the_same(folder, opened, monkeypatch, streamed):
    """Rows that stay on the host for images that are decoded once for all networks, and for features."""
    trained = trained_preset(opened)
    if streamed:
        monkeypatch.setattr(find, "LazyImages", type(opened.prepared.train_images))
    before, judgements = set(folder.rglob("*")), {}
    for large in (False, True):
        monkeypatch.setattr(find, "IN_MEMORY", 0 if large else 10**9)
        judged = judge(trained, opened.prepared, "similarity")
        assert stays_on_host(judged.images) == stays_on_host(judged.texts) == large
        rows = suspected(judged, 0.9)
        judgements[large] = (judged, rows, suggest(judged, rows))
        assert set(folder.rglob("*")) == before
    (judged, rows, suggestions), (stored, of_stored, suggestions_of_stored) = judgements.values()
    assert len(rows)
    if streamed:  # half precision comes before the division by the root
        np.testing.assert_allclose(stored.similarity, judged.similarity, atol=2e-3)
        return
    np.testing.assert_array_equal(stored.images[:], judged.images.astype(np.float32))
    np.testing.assert_array_equal(stored.similarity, judged.similarity)
    np.testing.assert_array_equal(of_stored, rows)
    for name in suggestions._fields:
        np.testing.assert_array_equal(getattr(suggestions_of_stored, name), getattr(suggestions, name))
    assert nearest_hits(judged.texts[3], stored.images, 4) == nearest_hits(judged.texts[3], judged.images, 4)


def test_the_order_and_the_limits_of_a_list(judged):
    rows = suspected(judged, 0.7)
    assert set(rows) == set(np.flatnonzero(judged.clean_probability < 0.7))
    assert (np.diff(judged.clean_probability[rows]) >= 0).all()
    np.testing.assert_array_equal(suspected(judged, 0.7, 4), rows[:4])
    tied = judged._replace(clean_probability=np.zeros(len(judged.similarity), np.float32))
    np.testing.assert_array_equal(suspected(tied, 0.5), np.argsort(judged.similarity, kind="stable"))


def test_experts_that_do_not_divide(opened):
    judged = judge(trained_preset(opened, "vld"), opened.prepared)
    assert judged.divided_by.startswith("similarity, ") and np.ptp(judged.clean_probability) > 0
    order = np.argsort(local_similarity(judged.images, judged.texts, judged.image_of, judged.similarity))
    assert judged.clean_probability[order[:10]].mean() < judged.clean_probability[order[-10:]].mean()
    assert "made here" in words.threshold_in_words(judged, 0.5, 3, 0)


def test_experts_that_found_nothing_to_divide(opened, monkeypatch):
    """All ones are what the experts say, and no reason to divide in their place."""
    monkeypatch.setattr(find, "read_division", lambda run: np.ones(len(run.noise.image_of), np.float32))
    judged = judge(trained_preset(opened), opened.prepared)
    assert judged.divided_by == "nobody" and not len(suspected(judged, 0.999))
    assert "counted alike, the pairs served them best" in words.nothing_listed(judged, 0.5)
    asked = judge(trained_preset(opened), opened.prepared, "similarity")
    assert asked.divided_by == "similarity" and len(suspected(asked, 0.5))


@pytest.mark.parametrize("sample, neighbors", [(2000, 3), (9, 2), (4, 10)])
def test_local_similarity_by_hand(sample, neighbors):
    generator = np.random.default_rng(1)
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True)
                     for rows in (generator.standard_normal((9, 4)), generator.standard_normal((15, 4))))
    image_of = generator.integers(0, 9, 15)
    cosine = images @ texts.T
    similarity = cosine[image_of, np.arange(15)]
    got = local_similarity(images, texts, image_of, similarity, sample=sample, neighbors=neighbors)
    draws = named_generator(0, "mismatches", "local")
    captions, pictures = draws.permutation(15)[:sample], draws.permutation(9)[:sample]
    of_image = np.sort(cosine[:, captions], 1)[:, -neighbors:].mean(1)
    of_text = np.sort(cosine[pictures], 0)[-neighbors:].mean(0)
    np.testing.assert_allclose(got, similarity - (of_image[image_of] + of_text) / 2, atol=1e-5)


def test_pairs_that_a_filter_dropped(opened):
    judged = judge(trained_preset(opened, "filter_vld"), opened.prepared)
    assert judged.dropped.any() and not judged.clean_probability[judged.dropped].any()
    assert f"{judged.dropped.sum()} of them have the probability 0" in words.threshold_in_words(judged, 0.5, 9, 0)


def test_quality_by_hand(judged):
    rows = suspected(judged, 0.5)
    suggestions = suggest(judged, rows)
    found, truth = quality(judged, rows, suggestions), judged.true_image_of
    wrong = [row for row in rows if judged.image_of[row] != truth[row]]
    assert found.precision == len(wrong) / len(rows)
    assert found.recall == len(wrong) / sum(judged.image_of != truth)
    right = [truth[caption] == judged.image_of[row] for row, caption in zip(rows, suggestions.caption) if row in wrong]
    assert found.true_captions == np.mean(right)
    assert quality(judged._replace(true_image_of=None), rows, suggestions) is None


def test_the_command(folder, nothing_trains, capsys, tmp_path):
    before = set(folder.rglob("*"))
    assert main(["mismatches", str(folder), "--out", str(tmp_path / "list.csv"), "--top", "5"]) == 0
    out = capsys.readouterr().out
    assert "precision" in out and "mismatched on purpose" in out and "5 most suspicious are kept" in out
    with open(tmp_path / "list.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 5 and {row["truth"] for row in rows} <= {"matched", "mismatched"}
    shown = [line for line in out.splitlines() if line.startswith(("1  ", "2  ", "3  ", "4  ", "5  "))]
    assert "  belong together  cosine" in out and len(shown) == 5
    assert all(re.search(r"  (< 0\.001|0\.00\d|0\.\d\d) +-?[01]\.\d\d  ", line) for line in shown)
    assert set(folder.rglob("*")) == before
    (tmp_path / "captions.csv").write_text("image,caption\n")
    assert main(["mismatches", str(folder), "--out", str(tmp_path / "captions.csv")]) == 2
    assert "would be overwritten; choose another place" in capsys.readouterr().err
    assert (tmp_path / "captions.csv").read_text() == "image,caption\n"
    mismatches_command(str(folder), None, "vld", "division", 0.5, 3)
    assert (folder / "mismatches.csv").exists()


def test_nothing_is_listed(folder, nothing_trains, capsys, monkeypatch):
    monkeypatch.setattr(find, "read_division", lambda run: np.linspace(0.6, 1, len(run.noise.image_of)))
    mismatches_command(str(folder), str(folder / "none.csv"), "", "division", 0.5, 0)
    out = capsys.readouterr().out
    assert "No pair has a probability below 0.5" in out and "does not show that all pairs are right" in out
    assert not (folder / "none.csv").exists()


@pytest.mark.parametrize("estimate, said", [
    (None, "was not estimated"),
    ({"eta": 0.0, "low": 0.0, "high": 1.0, "confidence": 1.0}, "could not be estimated"),
    ({"eta": 0.1, "low": 0.05, "high": 0.2, "confidence": 0.95}, "at most 24% of the list can be mismatched"),
    ({"eta": 0.9, "low": 0.85, "high": 0.95, "confidence": 0.95}, "are not listed"),
    ({"eta": 0.5, "low": 0.0, "high": 0.95, "confidence": 0.95}, "none at all is possible"),
])
def test_where_nobody_knows(judged, estimate, said):
    unknown = judged._replace(true_image_of=None, rate={"true": None, "estimated": estimate})
    pairs = len(judged.image_of)
    text = words.rate_in_words(unknown, round(0.85 * pairs) - 1 if estimate and estimate["eta"] < 0.4 else pairs // 2)
    assert said in text and "clean" not in text
    assert "nobody knows" in text or estimate and estimate["high"] - estimate["low"] < 1


def test_no_drawn_mismatch_is_not_called_clean(judged):
    text = words.rate_in_words(judged._replace(rate={"true": 0.0, "estimated": None}), 5)
    assert "nobody knows" in text and "clean" not in text


def test_mistakes(folder, opened, tmp_path, capsys):
    with pytest.raises(UserError, match="trains no experts"):
        trained_preset(opened, "random")
    with pytest.raises(UserError, match="did you mean mdw"):
        trained_preset(opened, "mwd")
    with pytest.raises(UserError, match="there is no run directory"):
        reopen(tmp_path / "none")
    with pytest.raises(UserError, match="not a run folder"):
        reopen(tmp_path)
    for flags, said in ((["--below", "0"], "--below must be"), (["--below", "x"], "--below must be"),
                        (["--top", "-1"], "--top must be"), (["--by", "eye"], "--by must be"),
                        (["--top", "all"], "--top must be")):
        assert main(["mismatches", str(folder), *flags]) == 2
        assert said in capsys.readouterr().err


def test_no_finished_experts(folder, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(folder / "cache", other / "cache")
    for name in ("config.json", "config_as_given.json"):
        stored = read_json(folder / name)
        stored["experts"]["epochs"] = 7
        write_json(other / name, stored)
    with pytest.raises(UserError, match="no finished experts.*mdw experts"):
        mismatches_command(str(other), None, "", "division", 0.5, 0)
