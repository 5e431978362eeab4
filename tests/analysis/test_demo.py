"""What the local page shows, without Gradio; and, slow, the page itself over HTTP."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from tiny_config import tiny_config

from mdw_jax.analysis.demo import suspects
from mdw_jax.analysis.demo.browse import (
    SORTS,
    all_pairs,
    in_order,
    matches,
    pair_cards,
    partner_cards,
    partners,
    sets_of_run,
)
from mdw_jax.analysis.demo.cards import Card, grid, note, safe
from mdw_jax.analysis.demo.page import import_gradio
from mdw_jax.analysis.demo.query import encoder_of_student, nearest_hits
from mdw_jax.analysis.demo.source import REAL, Demo, kind_of
from mdw_jax.analysis.mismatches.find import suspected
from mdw_jax.cli import main
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import DistilledSet
from mdw_jax.pipeline.run import distill_command

TINY = {
    "run.presets": ("correspond",), "data.size": 16, "data.train": 60, "data.val": 30, "data.test": 30,
    "noise.rate": 0.4, "text.dim": 24, "model.mode": "projection", "model.patches": (8,), "model.widths": (16,),
    "model.dim": 8, "experts.count": 1, "experts.epochs": 2, "experts.batch": 32, "experts.teacher_count": 1,
    "experts.teacher_epochs": 1, "distill.pairs": 10, "distill.batch": 5, "distill.max_start_epoch": 1,
    "distill.match_epochs": 1, "evaluate.students": 1, "evaluate.steps": 20,
}
EVIL = "<script>alert(1)</script> ${alert(2)} {{value}} `x` & \"q\""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("run") / "first"
    distill_command(tiny_config(TINY, made))
    return made


@pytest.fixture(scope="module")
def demo(folder):
    return Demo([str(folder)])


def png(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_all_text_of_cards_is_escaped():
    html = grid([Card(np.zeros((4, 4, 3), np.uint8), [(EVIL, EVIL), ("", EVIL)], EVIL)]) + note(EVIL)
    assert html.count("&lt;script&gt;") == 5 and "<script" not in html
    assert not set("${}`") & set(html)
    assert "&quot;q&quot;" in safe(EVIL) and grid([]) == note("") == ""


def test_kinds_of_paths(folder, demo, tmp_path):
    (label, path), = demo.sets.items()
    assert label == "correspond, set 0" and kind_of(path) == "set" and kind_of(folder) == "run"
    (tmp_path / "student.json").write_text("{}")
    assert kind_of(tmp_path) == kind_of(tmp_path / "student.json") == "student"
    with pytest.raises(UserError, match="there is no 'nowhere'"):
        kind_of("nowhere")
    with pytest.raises(UserError, match="no run directory, distilled set or student"):
        kind_of(tmp_path.parent)
    with pytest.raises(UserError, match="both of the kind 'run'"):
        Demo([str(folder), str(folder)])


def test_a_set_without_its_run_can_be_browsed(demo):
    path = next(iter(demo.sets.values()))
    alone = Demo([str(path)])
    assert alone.encoder is None and alone.places == [] and any("encodes" in line for line in alone.notes)
    assert alone.fit("the set") is None and len(pair_cards(alone.view("the set"), all_pairs(alone.view("the set")))) == 10
    with pytest.raises(UserError, match="student"):
        alone.by_sentence(REAL, "a dog")


def test_sets_of_several_budgets_are_told_apart(tmp_path):
    for name in ("vld-0123456789", "mdw-aaaaaabbbb", "mdw-bbbbbbcccc"):
        (tmp_path / "distilled" / name / "set_0").mkdir(parents=True)
        for file in ("card.json", "distilled.safetensors"):
            (tmp_path / "distilled" / name / "set_0" / file).touch()
    (tmp_path / "distilled" / "mdw-unfinished" / "set_0").mkdir(parents=True)
    assert [label for label, _ in sets_of_run(tmp_path)] == ["mdw, set 0 (aaaaaa)", "mdw, set 0 (bbbbbb)", "vld, set 0"]


def test_pairs_in_any_order(demo):
    label = next(iter(demo.sets))
    view, fit = demo.view(label), demo.fit(label)
    pairs = all_pairs(view, fit)
    assert [pair.pair for pair in in_order(pairs, "number", True)] == list(range(9, -1, -1))
    for by, key in SORTS.items():
        values = [key(pair) for pair in in_order(pairs, by)]
        assert values == sorted(values), by
        assert [key(pair) for pair in in_order(pairs, by, True)] == sorted(values, reverse=True), by
    by_fit = [pair.pair for pair in in_order(pairs, "cosine of image and text")]
    np.testing.assert_array_equal(by_fit, np.argsort(fit, kind="stable"))
    without = all_pairs(view)
    assert [pair.pair for pair in in_order(without, "cosine of image and text", True)] == list(range(10))
    assert view.captions[3] in dict(pair_cards(view, [pairs[3]])[0].lines).values()


def test_partners_are_the_row_of_p(demo):
    view = demo.view(next(iter(demo.sets)))
    p = matches(view.distilled)
    assert view.is_probability
    np.testing.assert_allclose(p.sum(), len(p), rtol=1e-3)
    for pair in (0, 7):
        got = partners(view, pair, 4)
        assert [text for text, _ in got] == np.argsort(-p[pair], kind="stable")[:4].tolist()
        np.testing.assert_allclose([value for _, value in got], np.sort(p[pair])[::-1][:4])
        others = np.delete(p[pair], pair)
        assert all_pairs(view)[pair].strongest == others.max() == p[pair, all_pairs(view)[pair].partner]
    assert any("(its own)" in card.lines[0][0] for card in partner_cards(view, 0, 10))


def test_a_set_without_p():
    distilled = DistilledSet(np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 3), np.float32), {}, {}, 1.0, "nce")
    assert matches(distilled) is None


def test_nearest_hits():
    rows = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 1]], np.float16)
    assert [hit.row for hit in nearest_hits(np.array([[0, 1]]), rows, 3)] == [1, 3, 2]


def test_a_sentence_finds_what_its_embedding_is_nearest_to(demo):
    judged, train = demo.judged, demo.opened.prepared.pairs.train
    cards, said = demo.by_sentence(REAL, train.captions[5])
    expected = np.argsort(-(judged.images.astype(np.float32) @ judged.texts[5].astype(np.float32)))
    assert said == "" and [card.alternative for card in cards[:3]] == [f"image {row}" for row in expected[:3]]
    cards, _ = demo.by_sentence(demo.places[0], "a red circle")
    assert len(cards) == 10 and cards[0].lines[0][0].startswith("pair ")
    with pytest.raises(UserError, match="write a sentence"):
        demo.by_sentence(REAL, "  ")


def test_a_photo_finds_captions(demo):
    judged, train = demo.judged, demo.opened.prepared.pairs.train
    cards, _ = demo.by_photo(REAL, png(np.asarray(train.images[7])))
    best = int((judged.texts.astype(np.float32) @ judged.images[7].astype(np.float32)).argmax())
    assert cards[0].lines[0][1] == train.captions[best]
    with pytest.raises(UserError, match="cannot be read as an image"):
        demo.by_photo(REAL, b"no image")


def test_captions_from_a_file_stand_in_for_sentences(folder, demo, tmp_path):
    prepared = demo.opened.prepared
    from mdw_jax.analysis.demo.query import sentence_features
    from mdw_jax.config import base
    from mdw_jax.models.text.bow import bow_features

    text = base().text
    text.encoder = "precomputed"
    captions = prepared.pairs.train.captions
    features, said = sentence_features([captions[9].upper()], text, prepared, lambda: bow_features(captions))
    assert captions[9] in said and "read the features of its captions from a file" in said
    np.testing.assert_array_equal(features[0], prepared.texts.train[captions.index(captions[9])])


class Student:
    """What `encoder_of_student` uses of a student."""

    shape, fit = (16, 16, 3), "squash"

    def embed_images(self, images):
        if isinstance(images, list):  # of files
            images = np.stack([np.asarray(Image.open(path)) for path in images])
        assert images.dtype == np.uint8 and images.shape[1:] == self.shape
        return images.reshape(len(images), -1).astype(np.float32)

    def embed_captions(self, captions):
        return np.ones((len(captions), 768), np.float32)

    def embed_texts(self, features):
        return np.asarray(features)


def test_a_student_sees_distilled_pixels_as_bytes():
    encoder = encoder_of_student(Student())
    seen = encoder.pixels(np.full((2, 16, 16, 3), 0.5, np.float32))
    assert (seen == 128).all() and encoder.sentences(["a"])[0].shape == (1, 768)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(encoder.photo(png(pixels))[0], pixels.reshape(-1))


def test_sentences_are_compared_with_a_photo(demo):
    train, judged = demo.opened.prepared.pairs.train, demo.judged
    sentences = [train.captions[row] for row in (4, 11, 30)]
    ranked, said = demo.compare(png(np.asarray(train.images[2])), "\n\n".join(sentences))
    cosines = judged.texts[[4, 11, 30]].astype(np.float32) @ judged.images[2].astype(np.float32)
    assert said == "" and [sentence for sentence, _ in ranked] == [sentences[n] for n in np.argsort(-cosines)]
    np.testing.assert_allclose([cosine for _, cosine in ranked], np.sort(cosines)[::-1], atol=2e-3)
    with pytest.raises(UserError, match="one a line"):
        demo.compare(b"", " \n")


def test_suspects_page_by_page(demo, tmp_path):
    judged, pairs = demo.judged, demo.opened.prepared.pairs
    rows = suspected(judged, 0.5)
    first, last = (suspects.suspect_page(judged, pairs, 0.5, page) for page in (1, 999))
    assert first.pages == -(-len(rows) // suspects.PAGE) and len(first.cards) == min(len(rows), suspects.PAGE)
    assert first.cards[0].lines[0][1] == pairs.train.captions[rows[0]]
    assert last.cards[-1].lines[0][1] == pairs.train.captions[rows[-1]]
    assert f"{judged.mismatched[rows].mean():.1%} are mismatched" in first.summary
    path, said = suspects.export_suspects(judged, pairs, 0.5, tmp_path / "list.csv")
    with open(path, encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert said.startswith(f"{len(rows)} pairs written") and "precision" in said
    none = suspects.suspect_page(judged, pairs, 1e-12, 1)
    assert none.cards == [] and "does not show that all pairs are right" in none.summary


def test_without_gradio(monkeypatch, folder, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="gradio"):
        import_gradio()
    assert main(["demo", str(folder)]) == 2
    assert "pip install 'gradio>=6.16' && pip install -U pillow" in capsys.readouterr().err
    assert main(["demo", str(folder), "--port", "99999"]) == 2
    assert "--port is a whole number" in capsys.readouterr().err


def _post(address: str, name: str, values: list, headers=None) -> str:
    """What an endpoint of the page returns."""
    request = urllib.request.Request(f"{address}gradio_api/call/{name}", json.dumps({"data": values}).encode(),
                                     {"Content-Type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=60) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{address}gradio_api/call/{name}/{event}", timeout=120) as response:
        lines = response.read().decode().splitlines()
    assert "event: complete" in lines, lines
    return json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))[0]


@pytest.mark.slow
def test_the_page_over_http(folder, tmp_path):
    pytest.importorskip("gradio")
    log = tmp_path / "log"
    with open(log, "w") as out:
        process = subprocess.Popen([sys.executable, "-m", "mdw_jax", "demo", str(folder)], stdout=out,
                                   stderr=subprocess.STDOUT,
                                   env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        for _ in range(240):
            if "page: " in log.read_text() or process.poll() is not None:
                break
            time.sleep(0.5)
        text = log.read_text()
        assert "page: http://127.0.0.1:" in text, text
        address = text.split("page: ")[1].split()[0]
        with urllib.request.urlopen(address, timeout=60) as response:
            assert response.status == 200 and "default-src 'self'" in response.headers["Content-Security-Policy"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "evil.example"}), timeout=60)
        assert refused.value.code == 421
        assert "mdw-cards" in _post(address, "search", [REAL, "a red circle"])
        assert "write a sentence first" in _post(address, "search", [REAL, ""])
        pairs = _post(address, "pairs", ["correspond, set 0", "caption", True, 1])
        assert pairs.count("<li>") == 10
        assert "(its own)" in _post(address, "matches", ["correspond, set 0", 3])
        assert "fits better" in _post(address, "suspects", [0.9, "division", 1])
        file = _post(address, "export", [0.9, "similarity"])
        with urllib.request.urlopen(file["value"]["url"] if "value" in file else file["url"], timeout=60) as response:
            assert response.read().startswith("\ufeffrank,image,caption".encode())
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert not list(tmp_path.glob("mdw-demo-*"))
