"""train.py of an export computes what this package computes: every piece beside its JAX counterpart."""

import hashlib
import importlib.util
import io
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_student import CAPTIONS, IMAGES, SIZE, TEXT, TOWERS, text_section, tiny_mobilenet
from tiny_models import write_model

torch = pytest.importorskip("torch")

import mdw_jax.export  # noqa: E402
from mdw_jax.config import base  # noqa: E402
from mdw_jax.data.decoding import decode  # noqa: E402
from mdw_jax.export.backbone import named_tensors  # noqa: E402
from mdw_jax.export.captions import caption_encoder, text_layout  # noqa: E402
from mdw_jax.export.student import load_student  # noqa: E402
from mdw_jax.io.checksums import write_listed  # noqa: E402
from mdw_jax.method.correspondence import correspondence  # noqa: E402
from mdw_jax.method.losses import DISTILLATION_LOSSES  # noqa: E402
from mdw_jax.method.retrieval import recalls  # noqa: E402
from mdw_jax.method.students import Protocol, StudentData, make_trainer  # noqa: E402
from mdw_jax.models.dual_encoder import dual_encoder  # noqa: E402
from mdw_jax.models.image.convnet import convnet  # noqa: E402
from mdw_jax.models.image.mobilenet import mobilenet  # noqa: E402
from mdw_jax.models.image.spectrogram import spectrogram_tower  # noqa: E402
from mdw_jax.models.text.bow import bow_features  # noqa: E402
from mdw_jax.models.weights.shipped import shipped_or_local  # noqa: E402

PROGRAM = Path(mdw_jax.export.__file__).parent / "templates" / "train.py"
M, DIM, TAU = 6, 8, 0.2


def load_program(path=PROGRAM):
    spec = importlib.util.spec_from_file_location(f"train_{path.parent.name.replace('-', '_')}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as for a program that is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


train = load_program()
words, checks, photos = (sys.modules[name] for name in ("captions", "checks", "photos"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def record_of(tower, mode="projection", **others):
    image = {"shape": [SIZE, SIZE, 3], "fit": "squash", "mode": mode, "dtype": "float32", "head": True,
             "tower": dict(tower.layout), "start": "stored"}
    return {"image": image, "text": text_section(), "dim": DIM, "tau": TAU, "loss": "probability", "alpha": 1.0,
            "batch": M, "step_sizes": {"image": 0.05, "text": 0.2}, "phases": [{"steps": 12, "factor": 1.0}],
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}, **others}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_transformer_by_its_own_library(tmp_path, pooling):
    pytest.importorskip("transformers")
    write_model(tmp_path, "bert")
    c = base()
    c.text.encoder, c.text.path, c.text.pooling, c.text.max_tokens = "transformer", str(tmp_path), pooling, 12
    layout = text_layout(c.text, 16)
    captions = ["A dog running .", "two DOGS, the snow", "the man climbs the rock " * 3]
    ours = words.encode(captions, layout, tmp_path)
    np.testing.assert_allclose(ours, caption_encoder(layout)(captions), atol=1e-5)
    (tmp_path / "vocab.txt").write_text("other")
    with pytest.raises(words.InputError, match="sha256 of its files differs"):
        words.encode(captions, layout, tmp_path)


def as_torch(tensors):
    return {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}


def backbone_tensors(tower, params):
    return {name.removeprefix("backbone."): x for name, x in as_torch(named_tensors(params, "backbone")).items()}


@pytest.mark.parametrize("name", DISTILLATION_LOSSES)
def test_losses(name):
    logits, target = 4 * normal(M, M), np.abs(normal(M, M))
    ours = train.LOSSES[name](torch.from_numpy(logits), torch.from_numpy(target)).item()
    assert ours == pytest.approx(float(DISTILLATION_LOSSES[name](jnp.asarray(logits), jnp.asarray(target))), rel=1e-5)


def test_no_loss_is_missing():
    assert set(train.LOSSES) == set(DISTILLATION_LOSSES)


@pytest.mark.parametrize("p", [{}, {"matrix": normal(M, M)}, {"diag": normal(M), "left": normal(M, 2),
                                                              "right": 2 * normal(M, 2)}])
def test_blocks_of_p(p):
    rows = np.array([5, 0, 3])
    ours = train.correspondence(as_torch(p), torch.from_numpy(rows), 0.7)
    np.testing.assert_allclose(ours, correspondence({k: jnp.asarray(v) for k, v in p.items()}, rows, 0.7), atol=1e-6)


def test_hashed_words():
    captions = [*CAPTIONS, "I", "a a a dog dog", "Ein süßer Hund läuft, läuft", "犬 と 猫", "x" * 500, "don't stop_me 42"]
    np.testing.assert_allclose(words.bow_features(captions, 48, 3), bow_features(captions, 48, 3), atol=2e-6)
    np.testing.assert_allclose(words.encode(CAPTIONS, text_section()), bow_features(CAPTIONS, TEXT), atol=2e-6)
    with pytest.raises(words.InputError, match="draws other random numbers"):
        words.encode(CAPTIONS, text_section() | {"check": "0"})
    with pytest.raises(words.InputError, match="--caption-features"):
        words.encode(CAPTIONS, {"kind": "transformer", "source": "bert", "width": 3})


@pytest.mark.parametrize("name", ["convnet", "mobilenet"])
def test_small_towers(name):
    tower = TOWERS[name]()
    params = tower.init(jax.random.key(0))
    images = IMAGES.astype(np.float32) / 255
    network = train.backbone_of(record_of(tower)["image"], backbone_tensors(tower, params))
    ours = network(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(ours, tower.features(params, jnp.asarray(images)), atol=1e-5)
    assert network.width == tower.width


@pytest.mark.parametrize("side", [64, 50])
def test_the_published_mobilenet(side):
    tower = mobilenet(shipped_or_local("mobilenet_v1_0.25"))
    params = tower.init(None)
    images = np.random.default_rng(0).random((3, side, side, 3), np.float32)
    network = train.backbone_of(record_of(tower)["image"], backbone_tensors(tower, params))
    ours = network(torch.from_numpy(images)).detach().numpy()
    wanted = np.asarray(tower.features(params, jnp.asarray(images)))
    assert np.abs(wanted).max() > 0.5  # the comparison is not one of zeros
    np.testing.assert_allclose(ours, wanted, atol=1e-4)


def test_log_mels():
    tower = spectrogram_tower(lambda shape: tiny_mobilenet(), (40, 20, 1))
    params = tower.init(jax.random.key(0))
    images = np.random.default_rng(0).random((2, 40, 20, 1), np.float32)
    image = record_of(tower)["image"] | {"shape": [40, 20, 1]}
    ours = train.backbone_of(image, backbone_tensors(tower, params))(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(ours, tower.features(params, jnp.asarray(images)), atol=1e-4)


def test_towers_that_are_not_computed_are_named():
    layout = {"kind": "published", "name": "nfnet_l0", "source": "timm/nfnet_l0", "sha256": "ab"}
    with pytest.raises(words.InputError, match="published, name nfnet_l0, source timm/nfnet_l0, sha256 ab.*mdw train"):
        train.backbone_of({"shape": [8, 8, 3], "tower": layout}, {})


@pytest.mark.parametrize("mode", ["projection", "full"])
def test_training_step_by_step(mode):
    """From the same first weights, with batches of the whole set (so that their order is nothing), both end alike."""
    tower = TOWERS["convnet"]()
    backbone = tower.init(jax.random.key(1))
    model = dual_encoder(tower, backbone, TEXT, mode=mode, dim=DIM, image_head=True, tau=TAU)
    record = record_of(tower, mode, phases=[{"steps": 6, "factor": 1.0}, {"steps": 6, "factor": 0.1}])
    images, texts, p = np.random.default_rng(0).random((M, SIZE, SIZE, 3), np.float32), normal(M, TEXT), normal(M, M)
    protocol = Protocol("val", 1, 12, 6, M, 0.9, 5e-4, (1.0,), 0.3)
    start, advance = make_trainer(model, protocol, "probability", 1.0)
    first = start(jax.random.key(3))
    data = StudentData(model.inputs(jnp.asarray(images)), jnp.asarray(texts), {"matrix": jnp.asarray(p)}, {}, "", 1.0)
    students = [first]
    for factor in (1.0, 0.1):
        sizes = {branch: jnp.float32(factor * size) for branch, size in record["step_sizes"].items()}
        students = advance(students, data.inputs, data.texts, data.correspondence, sizes)
    wanted = students[0][0]

    def tensors_of(params):
        image = {"backbone": backbone, **params["image"]}
        return as_torch(named_tensors(image["backbone"], "backbone") | named_tensors(image["head"], "image_head")
                        | named_tensors(params["text"], "text_head"))

    class Loaded(train.Student):
        def __init__(self, record, tensors):
            super().__init__(record, {})
            self.load_state_dict(tensors_of(first[0]))

    program = types.SimpleNamespace(**vars(train))
    function = types.FunctionType(train.train.__code__, {**vars(program), "Student": Loaded}, None,
                                  train.train.__defaults__)
    pairs = {"images": torch.from_numpy(images), "texts": torch.from_numpy(texts), "p": {"matrix": torch.from_numpy(p)}}
    found = function(record, pairs, {}, "cpu").state_dict()
    moved = 0.0
    for name, tensor in tensors_of(wanted).items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), atol=2e-4, err_msg=name)
        moved = max(moved, float((tensor - tensors_of(first[0])[name]).abs().max()))
    assert moved > 0.05  # far more than the tolerance


def test_first_weights_are_drawn_alike():
    head = train.Head(400, 300)
    params = dual_encoder(tiny_mobilenet(), {}, 400, mode="projection", dim=300).init(jax.random.key(0))["text"]
    for name in ("projection", "fc"):
        ours, theirs = getattr(head, name).weight, params[name]["kernel"]
        ours, theirs = ours.detach().numpy(), np.asarray(theirs)
        assert ours.std() == pytest.approx(theirs.std(), rel=0.01)
        assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.01)  # both are cut off there
    torch.manual_seed(0)
    network = train.ConvNet((SIZE, SIZE, 3), (4, 2), (60, 100))
    wanted = convnet((SIZE, SIZE, 3), (4, 2), (60, 100)).init(jax.random.key(0))
    for name in ("Dense_0", "Dense_2", "Dense_3"):
        assert getattr(network, name).weight.std().item() == pytest.approx(float(wanted[name]["kernel"].std()), rel=0.05)
    assert not head.fc.bias.any() and network.position.std().item() == pytest.approx(1, rel=0.1)


def test_recalls_with_ties():
    similarity = np.round(normal(30, 80), 1)
    image_of = np.arange(80) % 30

    class Same:
        embed_images = staticmethod(lambda rows: rows)
        embed_texts = staticmethod(lambda rows: rows)

    data = {"images": torch.from_numpy(similarity), "texts": torch.eye(80), "image_of": torch.from_numpy(image_of)}
    found = train.recalls(Same, data, "cpu")
    np.testing.assert_allclose(list(found.values()), recalls(jnp.asarray(similarity), jnp.asarray(image_of)), rtol=1e-5)
    assert list(found) == [*train.METRICS, "r_mean"]


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "turned", "transparent", "palette", "gray", "same", "gray16",
                                  "clear16"])
def test_photos_are_read_alike(tmp_path, fit, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 4), np.uint8).repeat(20, 0).repeat(20, 1)
    image, out, options = Image.fromarray(pixels, "RGBA"), io.BytesIO(), {}
    wide = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)  # 16 bits
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    image = {"transparent": image, "palette": image.convert("RGB").quantize(16), "gray": image.convert("L"),
             "gray16": wide, "clear16": wide, "same": image.convert("RGB").resize((32, 32))}.get(kind, image.convert("RGB"))
    if kind == "clear16":
        options["transparency"] = int(pixels[0, 0, 0]) * 257
    image.save(out, "JPEG" if kind in ("JPEG", "turned") else "PNG", **options)
    (tmp_path / "photo").write_bytes(out.getvalue())
    found = photos.pixels(tmp_path / "photo", {"shape": [32, 32, 3], "fit": fit})
    np.testing.assert_array_equal(found, decode(out.getvalue(), 32, fit))
    if kind == "gray16":
        assert 100 < found.mean() < 156  # neither cut off at white nor black


def test_captions_of_a_csv(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("\ufeffFile_Name,Caption,other\na.png,a dog,1\na.png,\"two, dogs\",2\n,x,3\n", encoding="utf-8")
    assert words.read_captions(path, None) == [("a.png", "a dog"), ("a.png", "two, dogs")]
    assert words.read_captions(path, "file_name,other") == [("a.png", "1"), ("a.png", "2")]
    path.write_text("split,image,caption\ntrain,a,x\nTest,b,y\nval,c,z\n")
    assert words.read_captions(path, None) == [("b", "y")]  # students are not scored on what they may have seen
    path.write_text("file_name,caption\na,b\n")
    with pytest.raises(words.InputError, match="none that is called words; name them by --columns"):
        words.read_captions(path, "file_name,words")


def test_a_student_of_train_py_is_read_by_this_package(tmp_path):
    tower = TOWERS["mobilenet"]()
    record = record_of(tower, expected=None, set={"sha256": "ab"}, about={"preset": "mdw"})
    torch.manual_seed(0)
    student = train.Student(record, backbone_tensors(tower, tower.init(None)))
    train.save(student, record, None, types.SimpleNamespace(out=tmp_path / "s", seed=5))
    train.save(student, record, None, types.SimpleNamespace(out=tmp_path / "s", seed=5))  # once more, over the first
    read = load_student(tmp_path / "s")
    sums = (tmp_path / "s" / "SHA256SUMS").read_bytes()
    write_listed(tmp_path / "s" / "student.safetensors", (tmp_path / "s" / "student.safetensors").read_bytes())
    assert (tmp_path / "s" / "SHA256SUMS").read_bytes() == sums  # the list is as this package writes it
    images = torch.from_numpy(IMAGES).float() / 255
    with torch.no_grad():
        ours = student.embed_images(student.inputs(images)).numpy(), student.embed_texts(
            torch.from_numpy(bow_features(CAPTIONS, TEXT))).numpy()
    np.testing.assert_allclose(ours[0], read.embed_images(IMAGES), atol=1e-5)
    np.testing.assert_allclose(ours[1], read.embed_captions(CAPTIONS), atol=1e-5)
    assert read.description["seed"] == 5 and read.description["set"] == {"preset": "mdw", "sha256": "ab"}
    assert "start" not in json.loads((tmp_path / "s" / "student.json").read_text())["image"]


@pytest.mark.parametrize(("content", "message"), [
    (None, r"There is no file '.*'; give the CSV"), (b"image,caption\n", "has no row with an image and a caption"),
    (b"", r"has the columns \(none\)"), ("image,caption\na.png,süß\n".encode("latin-1"), "is not UTF-8 .* save it as"),
    (b"image,caption\na.png," + b"x" * 200_000, "is no CSV that can be read"), (".", "cannot be read")])
def test_captions_that_cannot_be_read_are_one_sentence(tmp_path, content, message):
    path = tmp_path / "c.csv"
    if content == ".":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(words.InputError, match=message):
        words.read_captions(path, None)


def test_rows_with_too_many_cells(tmp_path):
    (tmp_path / "c.csv").write_text("image,caption\na.png,a dog,test,more\nb.png\n")
    assert words.read_captions(tmp_path / "c.csv", None) == [("a.png", "a dog")]


def test_broken_photos_are_counted(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "worse.png").write_bytes(b"%!PS")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    names, image = ["good.png", "bad.png", "worse.png", "float.tiff"], {"shape": [8, 8, 3], "fit": "crop"}
    with pytest.raises(words.InputError, match=r"3 images in '.*' cannot be read, the first is bad.png \("):
        photos.photos_of(tmp_path, names, image)
    assert photos.photos_of(tmp_path, names[:1], image).shape == (1, 8, 8, 3)


@pytest.mark.parametrize("every", [0.0, 60.0])
def test_a_long_training_shows_how_far_it_is(every, monkeypatch, capsys):
    monkeypatch.setattr(train, "SHOW_EVERY", every)
    record = record_of(TOWERS["convnet"](), phases=[{"steps": 2, "factor": 1.0}, {"steps": 1, "factor": 0.1}])
    texts = torch.from_numpy(normal(len(IMAGES[:M]), TEXT))
    pairs = {"images": torch.from_numpy(IMAGES[:M]).float() / 255, "texts": texts, "p": {}}
    train.train(record | {"batch": len(texts)}, pairs, {}, "cpu", "student 2 of 3")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", loss ")[0] for line in lines] == [
        f"student 2 of 3: {done} of 3 steps" for done in (1, 2, 3) if not every]
    assert all(float(line.split(", loss ")[1]) > 0 for line in lines)


def test_a_diverged_student_is_refused():
    record = record_of(TOWERS["convnet"](), step_sizes={"image": 1e30, "text": 1e30})
    pairs = {"images": torch.from_numpy(IMAGES[:M]).float() / 255, "texts": torch.from_numpy(normal(M, TEXT))[
        :len(IMAGES[:M])], "p": {}}
    with pytest.raises(words.InputError, match="The training diverged: .* nothing was written"):
        train.train(record | {"batch": len(pairs["texts"])}, pairs, {}, "cpu")


@pytest.mark.parametrize(("mean", "spread", "interval"), [(1.0, 2.0, "0.00 to "), (99.0, 2.0, "to 100.00;")])
def test_intervals_end_at_0_and_100(capsys, mean, spread, interval):
    record = {"test": {"images": 3, "captions": 5}, "expected": {
        "mean": {"r_mean": mean}, "std": {"r_mean": spread}, "students": 3, "select_on": "val", "t": 4.3}}
    score = dict.fromkeys((*train.METRICS, "r_mean"), mean)
    train.report([score], record, {"images": range(3), "texts": range(5)})
    out = capsys.readouterr().out
    assert interval in out and "lies inside" in out and "Your data" not in out  # they are those of the export


def test_own_data_are_known_by_their_captions(capsys):
    expected = {"mean": {"r_mean": 9.0}, "std": {"r_mean": 1.0}, "students": 3, "select_on": "val", "t": 4.3}
    record = {"test": {"images": 1, "captions": 2}, "expected": expected}
    score, data = dict.fromkeys((*train.METRICS, "r_mean"), 9.0), {"images": range(1), "texts": range(2)}
    same, other = (checks.captions_digest(captions) for captions in ((" b", "a"), ("a", "c")))
    assert same == hashlib.sha256(b"a\nb").hexdigest()
    for known, mine, told in ((same, same, "by the sha256 of their captions"), (same, other, "Your data are others, by"),
                              (None, other, "by their number alone: this export is of a version")):
        digest = {"test_captions_sha256": known} if known else {}
        train.report([score], record | digest, data | {"captions_sha256": mine})
        out = capsys.readouterr().out
        assert told in out and ("lies inside" in out) == ("others" not in told)
