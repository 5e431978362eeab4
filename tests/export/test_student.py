"""A student written to files and read back embeds as it did; files that are none are refused."""

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mdw_jax.config import base
from mdw_jax.errors import UserError
from mdw_jax.export.backbone import tower_from
from mdw_jax.export.captions import caption_encoder, text_layout
from mdw_jax.export.student import RECORD, WEIGHTS, load_student, save_student
from mdw_jax.io import checksums
from mdw_jax.io.checksums import write_listed
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.image.convnet import convnet
from mdw_jax.models.image.mobilenet import mobilenet_of
from mdw_jax.models.image.tower import Tower
from mdw_jax.models.image.vit import vit
from mdw_jax.models.text.bow import bow_features

SIZE, TEXT, DIM = 16, 12, 8
IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
CAPTIONS = ["a dog on a beach", "two red squares", ""]


def tiny_mobilenet():
    """Two convolutions, one of each kind, and a sum: all that a MobileNet consists of."""
    normal = np.random.default_rng(1).normal
    layer = lambda *shape: {"kernel": normal(size=shape).astype(np.float32) / 3,
                            "bias": normal(size=shape[-1:]).astype(np.float32) / 9}
    ops = [{"op": "CONV_2D", "in": [0], "out": 1, "stride": 2, "act": 3, "w": "conv00"},
           {"op": "DEPTHWISE_CONV_2D", "in": [1], "out": 2, "stride": 1, "act": 3, "w": "conv01"},
           {"op": "ADD", "in": [1, 2], "out": 3}, {"op": "CONV_2D", "in": [3], "out": 4, "stride": 2, "act": 0,
                                                   "w": "conv02"}, {"op": "AVERAGE_POOL_2D", "in": [4], "out": 5}]
    return mobilenet_of({"input_tensor": 0, "ops": ops},
                        {"conv00": layer(3, 3, 3, 6), "conv01": layer(3, 3, 1, 6), "conv02": layer(1, 1, 6, 7)},
                        "mobilenet_tiny", "the graph")


TOWERS = {"convnet": lambda: convnet((SIZE, SIZE, 3), (4, 2), (6, 10)), "mobilenet": tiny_mobilenet,
          "vit": lambda: vit((SIZE, SIZE, 3), 8, 8, 1, 2)}


def text_section(encoder="bow"):
    c = base()
    c.text.encoder, c.text.dim = encoder, TEXT
    return text_layout(c.text, TEXT)


def saved(folder, tower="convnet", mode="projection", text=None, **settings):
    tower = TOWERS[tower]()
    model = dual_encoder(tower, tower.init(jax.random.key(1)), TEXT, mode=mode, dim=DIM, **settings)
    params = jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(2)))
    save_student(folder, model, params, shape=(SIZE, SIZE, 3), text=text or text_section(), about={"preset": "mdw"})
    return model, params


@pytest.fixture(scope="module")
def one_student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    saved(folder)
    return folder


@pytest.fixture
def copied(one_student, tmp_path):
    return shutil.copytree(one_student, tmp_path / "copy")


@pytest.mark.parametrize(("tower", "mode"), [(tower, "projection") for tower in TOWERS] + [("mobilenet", "full")])
def test_what_is_read_embeds_as_what_was_written(tmp_path, tower, mode):
    model, params = saved(tmp_path, tower, mode)
    student = load_student(tmp_path)
    images = model.embed_image(params["image"], model.inputs(jnp.asarray(IMAGES, jnp.float32) / 255))
    texts = model.embed_text(params["text"], jnp.asarray(bow_features(CAPTIONS, TEXT)))
    found = student.embed_images(IMAGES), student.embed_captions(CAPTIONS)
    for ours, wanted in zip(found, (images, texts), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    assert student.description == {"preset": "mdw"} and student.model.mode == mode
    assert load_student(tmp_path / RECORD).sha256 == student.sha256


def test_files_of_photos_and_of_none(tmp_path, one_student):
    student = load_student(one_student)
    paths = [tmp_path / f"{n}.png" for n in range(70)]  # more than one batch
    for n, path in enumerate(paths):
        Image.fromarray(IMAGES[n % 5]).save(path)
    found = student.embed_images(paths)
    assert found.shape == (70, DIM)
    np.testing.assert_allclose(found[:5], student.embed_images(IMAGES), atol=1e-6)
    np.testing.assert_allclose(found[65:], found[:5], atol=1e-6)
    assert student.embed_images([]).shape == student.embed_captions([]).shape == (0, DIM)
    paths[3].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 of 64 images cannot be read, the first is '.*3\.png'"):
        student.embed_images(paths)
    with pytest.raises(UserError, match="takes uint8 images"):
        student.embed_images(IMAGES[:, :8])


def test_precomputed_texts_need_an_encoder(tmp_path):
    saved(tmp_path, text={"kind": "precomputed", "width": TEXT, "source": "features.npz"})
    student = load_student(tmp_path)
    assert student.embed_texts(np.ones((2, TEXT))).shape == (2, DIM)
    with pytest.raises(UserError, match="sentences cannot be encoded: .*features.npz.*--text"):
        student.embed_captions(["a dog"])


@pytest.mark.parametrize(("change", "message"), [
    (lambda record: record.update(format="other"), "is of the format 'other'"),
    (lambda record: record.update(sha256="0"), "sha256 differs"),
    (lambda record: record.update(dim="8"), "not a student of format"),
    (lambda record: record.update(dim=9), "do not fit the model"),
    (lambda record: record.update(tau=0.0), "not a student of format"),
    (lambda record: record.pop("text"), "not a student of format"),
    (lambda record: record["text"].update(kind="os:system"), "text encoder in the file is damaged"),
    (lambda record: record["image"].update(shape=[SIZE, SIZE]), "not a student of format"),
    (lambda record: record["image"].update(mode="eval"), "not a student of format"),
    (lambda record: record["image"].update(tower={"kind": "os:system"}), "only convnet, vit, mobilenet"),
    (lambda record: record["image"]["tower"].update(widths=["6", "10"]), "layout of the backbone"),
    (lambda record: record["image"]["tower"].update(widths=[6, 11]), "do not fit the model"),
    (lambda record: record["image"]["tower"].update(widths=[6, 10**9]), "layout of the backbone"),
])
def test_records_that_are_none_are_refused(copied, change, message):
    record = json.loads((copied / RECORD).read_text())
    change(record)
    write_listed(copied / RECORD, json.dumps(record).encode())
    with pytest.raises(UserError, match=message):
        load_student(copied)


def test_a_flipped_bit_of_the_record_is_found(copied, monkeypatch):
    """A digit of tau, or of a size, would else be another student."""
    monkeypatch.setattr(checksums, "_PAUSE", 0)
    good = (copied / RECORD).read_bytes()
    for place in range(0, len(good), 11):
        (copied / RECORD).write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1:])
        with pytest.raises(UserError, match="the student in .* cannot be read .* SHA256SUMS .* train or copy it again"):
            load_student(copied)
    (copied / checksums.SUMS).unlink()  # of an earlier version
    (copied / RECORD).write_bytes(good)
    assert load_student(copied).sha256


def test_weights_that_are_missing_or_too_many_are_refused(copied):
    tensors, record = load_file(copied / WEIGHTS), json.loads((copied / RECORD).read_text())
    for changed, message in ((tensors | {"text_head.more": tensors["text_head.fc.bias"]}, "has no place for"),
                             ({k: v for k, v in tensors.items() if k != "text_head.fc.bias"}, "is missing")):
        save_file(changed, copied / WEIGHTS)
        record["sha256"] = hashlib.sha256((copied / WEIGHTS).read_bytes()).hexdigest()
        write_listed(copied / RECORD, json.dumps(record).encode())
        with pytest.raises(UserError, match=message):
            load_student(copied)
    with pytest.raises(UserError, match="holds no student"):
        load_student(copied / "nowhere")


def test_towers_from_outside_are_refused_before_anything_is_written(tmp_path):
    tower = Tower("own", lambda key: {}, lambda params, images: images, 3)
    model = dual_encoder(tower, {}, TEXT, mode="projection", dim=DIM)
    with pytest.raises(UserError, match="'own' comes from outside the package"):
        save_student(tmp_path / "s", model, model.init(jax.random.key(0)), shape=(SIZE, SIZE, 3), text=text_section(),
                     about={})
    assert not (tmp_path / "s").exists()


def test_a_published_tower_is_read_from_files_of_the_same_sha256_alone(tmp_path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
    layout = {"kind": "published", "name": "nfnet_l0", "source": "timm/nowhere", "sha256": "0" * 64}
    with pytest.raises(UserError, match="have another sha256 .* give the same revision"):
        tower_from(layout, (32, 32, 3), {}, str(tmp_path / "w.safetensors"))
    with pytest.raises(UserError, match="layout of the backbone, a published, is damaged"):
        tower_from({**layout, "name": "os"}, (32, 32, 3), {}, str(tmp_path / "w.safetensors"))


def test_the_check_of_hashed_words_tells_another_projection():
    c = base()
    c.text.seed = 1
    assert text_layout(c.text, TEXT)["check"] != text_section()["check"]
    np.testing.assert_array_equal(caption_encoder(text_section())(CAPTIONS), bow_features(CAPTIONS, TEXT))
