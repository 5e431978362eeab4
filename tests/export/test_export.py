"""Exports read back by those they are for (where these are installed), and by plain zip, tar and JSON."""

import dataclasses
import io
import json
import re
import tarfile

import numpy as np
import pytest
import yaml
from PIL import Image

from mdw_jax.config import base
from mdw_jax.data.readers.folder import folder as read_folder
from mdw_jax.data.readers.webdataset import webdataset as read_webdataset
from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.errors import UserError
from mdw_jax.export.command import export_command
from mdw_jax.export.export_set import export_set
from mdw_jax.export.formats import FORMATS, NearestCaptions, dense_correspondence, eight_bits, png_loss
from mdw_jax.io.distilled_set import DistilledSet, load_distilled

M, ALPHA, RANK = 6, 1.1, 2
CARD = {"preset": "mdw", "set": 0, "data": "/home/jane doe/flickr8k", "noise": {"rate": 0.4, "protocol": "image"},
        "config": {"model": {"tau": 0.05}, "text": {"encoder": "transformer", "path": "google-bert/bert", "dim": 3},
                   "data": {"images": "/home/jane doe/a.zip::/home/jane doe/b.zip",
                            "annotations": "C:\\jane doe\\c.json"},
                   "run": {"dir": "~/jane doe/run"}}}


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def make_set(channels=3, **changes):
    """Pixels mostly in [0, 1], and some outside."""
    made = DistilledSet(
        images=0.5 + 0.3 * normal(M, 4, 8, channels), texts=normal(M, 7),
        correspondence={"diag": normal(M), "left": normal(M, RANK), "right": 2 * normal(M, RANK)},
        step_sizes={"image": float(np.float32(0.1)), "text": 0.25}, alpha=ALPHA, loss="wbce")
    return dataclasses.replace(made, **changes)


NEAR = NearestCaptions([[f'a "dog", {row}\nand naïve | snow', "../../etc/passwd"] for row in range(M)],
            np.linspace(1, -1, 2 * M).reshape(M, 2))
P = np.diag(normal(M)) + ALPHA / RANK * normal(M, RANK) @ (2 * normal(M, RANK)).T


def export(folder, distilled=None, formats=FORMATS, license="cc-by-4.0", **others):
    export_set(folder, distilled or make_set(), NEAR, CARD, formats=formats, license=license, **others)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("pyarrow")
    return export(tmp_path_factory.mktemp("export"))


def pixels(file):
    return np.asarray(Image.open(file))


def test_p_in_full_by_hand():
    np.testing.assert_allclose(dense_correspondence(make_set()), P, atol=1e-6)
    np.testing.assert_array_equal(dense_correspondence(make_set(correspondence={})), np.eye(M))


def test_safetensors_holds_every_number_and_the_card_what_else_was_done(exported):
    (loaded, card), made = load_distilled(exported), make_set()
    np.testing.assert_array_equal(loaded.images, made.images)
    np.testing.assert_array_equal(loaded.texts, made.texts)
    for name in made.correspondence:
        np.testing.assert_array_equal(loaded.correspondence[name], made.correspondence[name])
    assert loaded.step_sizes == made.step_sizes == card["step_sizes"]
    assert (card["alpha"], card["loss"], card["license"], card["preset"]) == (ALPHA, "wbce", "cc-by-4.0", "mdw")
    assert card["formats"] == list(FORMATS)


def test_what_8_bits_cost():
    images = np.array([0.0, 0.5, 1.0, 1.2, -0.1, 100.4 / 255], np.float32).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(eight_bits(images).ravel(), [0, 128, 255, 255, 0, 100])
    assert png_loss(images) == {"largest_error": pytest.approx(0.2), "clipped": pytest.approx(2 / 6)}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_image_folder(tmp_path, channels):
    made = make_set(channels)
    export(tmp_path, made, ["folder"])
    rows = [json.loads(line) for line in (tmp_path / "images" / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [f"{row:06d}.png" for row in range(M)]
    for row, said in enumerate(rows):
        seen = pixels(tmp_path / "images" / said["file_name"]).reshape(4, 8, channels)
        np.testing.assert_array_equal(seen, eight_bits(made.images[row]))
        assert (said["caption"], said["captions"]) == (NEAR.captions[row][0], NEAR.captions[row])
        assert said["cosines"] == pytest.approx(NEAR.cosines[row])
        np.testing.assert_array_equal(np.float32(said["text"]), made.texts[row])  # exact, though decimal
        np.testing.assert_array_equal(np.float32(said["correspondence"]), dense_correspondence(made)[row])


def test_our_readers_read_the_folder_and_the_shard(tmp_path):
    made, common = make_set(images=0.5 + 0.3 * normal(M, 4, 4, 3)), {"holdout_val": 1, "holdout_test": 1, "size": 4}
    export(tmp_path, made, ["folder", "webdataset"])
    from_folder = read_folder(tmp_path / "images" / "metadata.jsonl", image_column="file_name", **common)
    # Every caption has a line break here, which would be taken for the end of a caption; `join` makes it a space.
    from_shard = read_webdataset(str(tmp_path / "shard-000000.tar"), caption_lines="join", **common)
    for pairs in (from_folder, from_shard):
        assert len(pairs.train.images) == M - 2 and not pairs.skipped
        seen = {image.tobytes() for image in np.asarray(pairs.train.images[np.arange(M - 2)])}
        assert len(seen) == M - 2 and seen <= {image.tobytes() for image in eight_bits(made.images)}
        assert {" ".join(caption.split()) for caption in pairs.train.captions} <= {
            " ".join(said[0].split()) for said in NEAR.captions}
        assert len(pairs.train.captions) == M - 2


def test_the_shard_by_plain_tar(exported):
    made, found = make_set(), {}
    with tarfile.open(exported / "shard-000000.tar") as tar:
        members = tar.getmembers()
        assert all(re.fullmatch(r"\d{6}\.(png|txt|json|text\.npy|correspondence\.npy)", m.name) for m in members)
        assert all(m.isfile() and (m.uid, m.mtime, m.uname) == (0, 0, "") for m in members)
        keys = [member.name.split(".")[0] for member in members]
        assert keys == sorted(keys) and len(keys) == 5 * M  # the parts of a sample stand together
        for member in members:
            found[member.name] = tar.extractfile(member).read()
    for row in range(M):
        np.testing.assert_array_equal(pixels(io.BytesIO(found[f"{row:06d}.png"])), eight_bits(made.images[row]))
        assert found[f"{row:06d}.txt"].decode() == NEAR.captions[row][0]
        for part, array in (("text", made.texts), ("correspondence", dense_correspondence(made))):
            read = np.load(io.BytesIO(found[f"{row:06d}.{part}.npy"]), allow_pickle=False)
            assert read.dtype == np.float32
            np.testing.assert_array_equal(read, array[row])
        said = json.loads(found[f"{row:06d}.json"])
        assert (said["row"], said["pairs"], said["step_sizes"]) == (row, M, made.step_sizes)


def test_webdataset_reads_the_shard_as_open_clip_does(exported):
    wds = pytest.importorskip("webdataset")
    samples = list(wds.WebDataset(str(exported / "shard-000000.tar"), shardshuffle=False).decode("pilrgb").rename(
        image="jpg;png;jpeg;webp", text="txt", feature="text.npy").to_tuple("image", "text", "feature"))
    assert [text for _, text, _ in samples] == [said[0] for said in NEAR.captions]
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image, _, _ in samples]),
                                  eight_bits(make_set().images))
    np.testing.assert_array_equal(np.stack([feature for _, _, feature in samples]), make_set().texts)


def test_parquet_by_pyarrow(exported):
    parquet = pytest.importorskip("pyarrow.parquet")
    table, made = parquet.read_table(exported / "data.parquet"), make_set()
    columns = table.to_pydict()
    for name, array in (("pixels", made.images), ("text", made.texts), ("correspondence", dense_correspondence(made))):
        np.testing.assert_array_equal(np.array(columns[name], np.float32), array)
    assert columns["captions"] == NEAR.captions and columns["row"] == list(range(M))
    numbers = json.loads(table.schema.metadata[b"mdw_jax"])
    assert numbers == {"step_sizes": made.step_sizes, "alpha": ALPHA, "loss": "wbce"}


@pytest.mark.parametrize("what", ["the card", "parquet", "imagefolder", "webdataset"])
def test_hugging_face_datasets_loads_it(exported, tmp_path, what):
    datasets = pytest.importorskip("datasets")
    arguments = {"the card": (str(exported), {}), "parquet": ("parquet", {"data_files": f"{exported}/data.parquet"}),
                 "imagefolder": ("imagefolder", {"data_dir": f"{exported}/images"}),
                 "webdataset": ("webdataset", {"data_files": f"{exported}/shard-000000.tar"})}
    name, named = arguments[what]
    read, made = datasets.load_dataset(name, split="train", cache_dir=str(tmp_path), **named), make_set()
    assert len(read) == M
    image = "png" if what == "webdataset" else "image"
    np.testing.assert_array_equal(np.stack([np.asarray(row[image]) for row in read]), eight_bits(made.images))
    if what == "webdataset":
        assert [row["txt"] for row in read] == [captions[0] for captions in NEAR.captions]
        return
    np.testing.assert_array_equal(np.array(read["text"], np.float32), made.texts)
    np.testing.assert_array_equal(np.array(read["correspondence"], np.float32), dense_correspondence(made))
    assert read["captions"][:] == NEAR.captions
    if what != "imagefolder":
        np.testing.assert_array_equal(read.with_format("numpy")["pixels"][:], made.images)


def test_video_clips_and_odd_channels_are_no_images_but_have_numbers(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    clips = make_set(images=normal(M, 2, 4, 4, 3), texts=normal(M, 3, 7))
    for made in (clips, make_set(channels=2)):
        for formats in (FORMATS, ["folder"], ["webdataset"]):
            with pytest.raises(UserError, match="as PNG files, .*set export.formats to safetensors,parquet"):
                export(tmp_path, made, formats)
        assert not list(tmp_path.iterdir())
    export(tmp_path, clips, ["safetensors", "parquet"])
    table = parquet.read_table(tmp_path / "data.parquet")
    assert "image" not in table.column_names
    np.testing.assert_array_equal(np.array(table["pixels"].to_pylist(), np.float32), clips.images)
    np.testing.assert_array_equal(np.array(table["text"].to_pylist(), np.float32), clips.texts)


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


@pytest.mark.parametrize("license, expected", [
    ("cc-by-4.0", {"license": "cc-by-4.0"}), ("unknown", {"license": "unknown"}), ("mit", {"license": "mit"}),
    ("Flickr's terms:\nask Jane", {"license": "other", "license_name": "Flickr's terms: ask Jane"}),
])
def test_the_license_is_the_one_given(tmp_path, license, expected):
    export(tmp_path, formats=["folder"], license=license)
    front = front_matter(tmp_path)
    assert {key: value for key, value in front.items() if key.startswith("license")} == expected
    assert front["configs"] == [{"config_name": "default", "data_dir": "images"}]


def test_the_card_says_what_users_must_know(tmp_path, exported):
    text = (exported / "README.md").read_text()
    assert "8-bit copies and lose precision" in text and "not checked: cc-by-4.0" in text and "40%" in text
    assert "image 0.1, text 0.25" in text and "transformer, path google-bert/bert)" in text and "synthetic" in text
    assert front_matter(exported)["configs"] == [{"config_name": "default", "data_files": "data.parquet"}]
    chosen = (export(tmp_path, formats=["folder"], real=True) / "README.md").read_text()
    assert "real pairs, chosen" in chosen and "so are the images" in chosen and "synthetic" not in chosen
    assert "holds no exact ones" in chosen and "torch" not in chosen


def test_no_path_of_this_machine_is_written(exported):
    for path in exported.rglob("*"):
        assert not path.is_file() or b"jane" not in path.read_bytes().lower()
    data = load_distilled(exported)[1]["config"]["data"]
    assert data == {"images": "a.zip::b.zip", "annotations": "c.json"}


def test_the_same_set_is_the_same_files_and_nothing_old_is_left(tmp_path, exported):
    again = export(tmp_path)
    files = {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert len(files) == M + 7  # with metadata.jsonl, two of safetensors and their checksums, Parquet, tar and README
    for name, data in files.items():
        assert (exported / name).read_bytes() == data
    (again / "notes.txt").write_text("mine")
    (again / "images" / "mine.png").write_text("mine")
    few = make_set(images=make_set().images[:2], texts=make_set().texts[:2], correspondence={})
    export(again, few, ["folder"])
    assert {str(path.relative_to(again)) for path in again.rglob("*") if path.is_file()} == {
        "notes.txt", "README.md", "card.json", "SHA256SUMS", "images/mine.png", "images/metadata.jsonl",
        "images/000000.png", "images/000001.png"}


@pytest.mark.parametrize("changes, match", [
    ({"license": " "}, "export.license is not set; .* cc-by-4.0 .*unknown.*: the dataset card tells"),
    ({"formats": ()}, "export.formats is empty"),
    ({"formats": ("pickle",)}, "no export format 'pickle'; set export.formats"),
    ({"presets": ("full", "experts")}, "none of run.presets .* ends in a set"),
    ({"neighbors": 0}, "export.neighbors must be at least 1"),
])
def test_mistakes_cost_no_time(tmp_path, changes, match):
    c = base()
    c.run.dir, c.run.presets = str(tmp_path / "run"), changes.pop("presets", ("random",))
    c.export.update({"formats": ("folder",), "license": "mit", **changes})
    with pytest.raises(UserError, match=match):
        export_command(c)
    assert not (tmp_path / "run").exists()


def test_a_preset_of_ones_own_is_exported_as_what_it_is(tmp_path, monkeypatch):
    (tmp_path / "own_presets.py").write_text(
        "from mdw_jax.config.presets import PresetSpec\n\n\n"
        "def chosen():\n    return PresetSpec(kind='coreset', coreset='random', needs_experts=False)\n")
    monkeypatch.syspath_prepend(tmp_path)
    c = base()
    c.update_from_flattened_dict(TINY | {"run.dir": str(tmp_path / "run"), "run.presets": ("own_presets:chosen",),
                                         "export.formats": ("folder",)})
    export_command(c)
    [directory] = (tmp_path / "run" / "export").iterdir()
    assert directory.name == "own_presets.chosen-0"
    assert "real pairs, chosen" in (directory / "README.md").read_text()


TINY = {
    "data.size": 16, "data.train": 40, "data.val": 4, "data.test": 4, "text.dim": 64, "model.mode": "projection",
    "model.patches": (8,), "model.widths": (4,), "model.dim": 8, "distill.pairs": 8, "distill.batch": 4,
    "distill.rank": 2, "noise.rate": 0.0, "export.license": "unknown", "export.neighbors": 2}


def test_the_command_on_a_tiny_run(tmp_path, capsys):
    c = base()
    c.update_from_flattened_dict(TINY | {
        "run.dir": str(tmp_path), "run.presets": ("random", "full"), "distill.sets": 2,
        "export.formats": ("safetensors", "folder")})
    export_command(c)
    assert capsys.readouterr().out.count("export/random-") == 2
    train = scenes(40, 4, 4, size=16).train
    for index in (0, 1):
        folder = tmp_path / "export" / f"random-{index}"
        distilled, _ = load_distilled(folder)
        [stored] = tmp_path.glob(f"distilled/random-*/set_{index}")
        np.testing.assert_array_equal(distilled.images, load_distilled(stored)[0].images)
        rows = [json.loads(line) for line in (folder / "images" / "metadata.jsonl").read_text().splitlines()]
        for row in rows:  # a real pair: its nearest caption is its own, and the picture is exact
            assert row["cosines"][0] == pytest.approx(1, abs=1e-5) and row["cosines"][1] <= row["cosines"][0]
            seen = pixels(folder / "images" / row["file_name"])
            [image] = np.flatnonzero((train.images == seen).all((1, 2, 3)))
            own = [train.captions[k] for k in np.flatnonzero(train.image_of == image)]
            assert row["caption"] in own and len(row["captions"]) == 2
