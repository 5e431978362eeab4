"""A miniature data set is written as a folder, zips and gzip, read back, and then damaged in every way we name."""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from mdw_jax.data.readers.karpathy import karpathy
from mdw_jax.errors import UserError

SPLITS = ("train", "val", "train", "test", "restval", "train", "val", "test")  # interleaved, as in the real files


def _pixels(i, height=8, width=8):
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _document():
    images, sentid = [], 100
    for i, split in enumerate(SPLITS):
        sentids = list(range(sentid, sentid + (6 if i == 2 else 5)))  # one image with a sixth caption, as in COCO
        sentences = [{"raw": f"Photo {i}, caption {s}.", "tokens": ["photo"], "imgid": i, "sentid": s} for s in sentids]
        images.append({"filename": f"{i}.png", "imgid": i, "split": split, "sentids": sentids, "sentences": sentences})
        sentid = sentids[-1] + 1
    return {"images": images, "dataset": "mini"}


def _write(tmp_path, document, files):
    folder = tmp_path / "images"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    annotations = tmp_path / "dataset.json"
    annotations.write_text(json.dumps(document))
    return annotations, folder


def _zip(path, files, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def files():
    return {f"{i}.png": _png(_pixels(i)) for i in range(len(SPLITS))}


@pytest.fixture
def mini(tmp_path, files):
    return _write(tmp_path, _document(), files)


def test_everything_of_a_folder(mini):
    pairs = karpathy(*mini, size=8)
    assert pairs.name == "mini"
    rows = {"train": [0, 2, 4, 5], "val": [1, 6], "test": [3, 7]}
    source = _document()["images"]
    for split, members in rows.items():
        got = getattr(pairs, split)
        np.testing.assert_array_equal(got.images, [_pixels(i) for i in members])
        assert list(got.attributes["filename"]) == [f"{i}.png" for i in members]
        truth = [(row, s) for row, i in enumerate(members) for s in source[i]["sentences"]]
        assert got.captions == tuple(s["raw"] for _, s in truth)
        assert got.image_of.tolist() == [row for row, _ in truth]
        assert got.caption_ids.tolist() == [s["sentid"] for _, s in truth]
        assert got.image_of.dtype == got.caption_ids.dtype == np.int64


def test_every_way_to_name_the_images_is_the_same_data(tmp_path, mini, files):
    annotations, folder = mini
    want = karpathy(annotations, folder, size=8).fingerprint
    names = list(files)
    first = _zip(tmp_path / "part-0.zip", {name: files[name] for name in names[:3]})
    second = _zip(tmp_path / "part-1.zip", {f"top/{name}": files[name] for name in names[3:]}, zipfile.ZIP_DEFLATED)
    packed = tmp_path / "dataset.json.gz"
    packed.write_bytes(gzip.compress(annotations.read_bytes()))
    for source in ([first, second], (str(second), str(first)), f"{first}, {second}", str(tmp_path / "part-*.zip"),
                   f"{tmp_path}/part-*.zip,{first}", str(folder)):
        assert karpathy(packed, source, size=8).fingerprint == want, source
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dataset.json", "dataset.json.gz", "images", "part-0.zip", "part-1.zip"]  # nothing was extracted


def test_filepath_is_the_sub_folder(tmp_path, files):
    document = _document()
    for entry in document["images"]:
        entry["filename"], entry["filepath"] = "same.png", f"folder{entry['imgid']}"
    files = {f"folder{i}/same.png": data for i, data in enumerate(files.values())}
    annotations, folder = _write(tmp_path, document, files)
    archive = _zip(tmp_path / "all.zip", files)
    for source in (folder, archive):
        np.testing.assert_array_equal(karpathy(annotations, source, size=8).val.images, [_pixels(1), _pixels(6)])


@pytest.mark.parametrize(("fit", "box"), [("crop", (14, 0, 26, 12)), ("squash", (0, 0, 40, 12))])
def test_images_become_square(tmp_path, files, fit, box):
    wide = _pixels(0, 12, 40)
    files["0.png"] = _png(wide)
    files["2.png"] = _png(np.array(Image.fromarray(_pixels(2)).convert("L")))  # grey becomes RGB
    train = karpathy(*_write(tmp_path, _document(), files), size=8, fit=fit).train.images
    want = np.array(Image.fromarray(wide).resize((8, 8), Image.Resampling.BICUBIC, box))
    np.testing.assert_array_equal(train[0], want)
    assert train.shape == (4, 8, 8, 3) and np.ptp(train[1].astype(int), axis=-1).max() == 0


def test_limit_keeps_the_first_of_each_split(mini):
    whole, part = karpathy(*mini, size=8), karpathy(*mini, size=8, limit=2)
    np.testing.assert_array_equal(part.train.images, whole.train.images[:2])
    assert part.train.captions == whole.train.captions[:11] and len(part.val.images) == 2
    assert len(karpathy(*mini, size=8, limit=99).train.images) == 4


@pytest.mark.parametrize("holder, key", [("top", "images"), ("image", "filename"), ("image", "split"),
                                         ("image", "sentences"), ("sentence", "raw"), ("sentence", "sentid")])
def test_a_missing_key_is_named(tmp_path, files, holder, key):
    document = _document()
    image = document["images"][3]
    del {"top": document, "image": image, "sentence": image["sentences"][1]}[holder][key]
    with pytest.raises(UserError, match=f"no key '{key}'"):
        karpathy(*_write(tmp_path, document, files), size=8)


def _set(image, key, value):
    return lambda document: document["images"][image].__setitem__(key, value)


def _set_sentence(image, sentence, key, value):
    return lambda document: document["images"][image]["sentences"][sentence].__setitem__(key, value)


@pytest.mark.parametrize("change, message", [
        (_set(3, "filename", 7), "'filename' of image 3 .* int, not str"),
    (_set(3, "sentences", []), r"1 image without a caption \('3.png'"),
    (_set_sentence(3, 0, "raw", " \n"), r"dataset.json' .*1 empty caption \(caption 1 of '3.png'\)"),
    (_set_sentence(3, 0, "raw", None), r"dataset.json' .*1 empty caption \(caption 1 of '3.png'\)"),
    (_set_sentence(3, 0, "raw", True), r"1 broken row \(caption 1 of '3.png'"),
    (_set_sentence(3, 0, "sentid", 104), "1 sentids .* the first is 104"),
    (_set_sentence(3, 0, "sentid", "a"), "'sentid' of a sentence of image 3 .* is 'a', no number"),
    (_set_sentence(3, 0, "sentid", 10**18), "'sentid' of a sentence of image 3 .* may have 18 digits"),
    (_set_sentence(3, 0, "sentid", "9" * 5000), "'sentid' of a sentence of image 3 .* may have 18 digits"),
    (_set_sentence(3, 0, "sentid", 1.5), "'sentid' of a sentence of image 3 .* float, not int or str"),
    (lambda document: [document["images"].pop(i) for i in (6, 1)], "no image of split 'val'"),
])
def test_bad_annotations(tmp_path, files, change, message):
    document = _document()
    change(document)
    with pytest.raises(UserError, match=message):
        karpathy(*_write(tmp_path, document, files), size=8)


@pytest.mark.parametrize("data, message", [
    (b"{", "not a readable JSON"), (b"[]", "no key 'images'"), (b"\xff\xfe\xfa", "not a readable JSON"),
    (gzip.compress(json.dumps(_document()).encode())[:-20], "not a readable JSON"),
    (b"\x1f\x8b\x08\x00 not gzip", "not a readable JSON"),
], ids=["cut short", "a list", "not UTF-8", "gzip cut short", "not gzip"])  # bytes of a gzip hold the time of day
def test_damaged_annotation_file(mini, data, message):
    mini[0].write_bytes(data)
    with pytest.raises(UserError, match=message):
        karpathy(*mini, size=8)


def test_missing_annotation_file(tmp_path, mini):
    with pytest.raises(UserError, match="no annotation file .*nowhere.json"):
        karpathy(tmp_path / "nowhere.json", mini[1])


def test_missing_and_doubled_images(tmp_path, mini, files):
    annotations, folder = mini
    for name in ("5.png", "7.png"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"2 absent images \(the first: '5\.png'"):
        karpathy(annotations, folder, size=8)
    with pytest.raises(UserError, match=r"6 of 8 images are more than once in .*, the first is '0\.png'"):
        karpathy(annotations, [folder, _zip(tmp_path / "all.zip", files)], size=8)


@pytest.mark.parametrize("images, message", [("nowhere", "no image directory or zip file 'nowhere'"),
                                             ("no-*.zip", r"no image directory or zip file 'no-\*.zip'"),
                                             ([], "no image directory or zip file is given"),
                                             (" , ", "no image directory or zip file is given")])
def test_no_such_images(mini, images, message):
    with pytest.raises(UserError, match=message):
        karpathy(mini[0], images)


def test_a_file_that_is_no_zip(mini):
    with pytest.raises(UserError, match="neither a directory nor a readable zip"):
        karpathy(mini[0], mini[0])


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: b"", lambda data: b"not an image",
                                    lambda data: data[:60] + bytes(20) + data[80:]])
def test_undecodable_images_are_counted(tmp_path, files, damage):
    for name in ("2.png", "6.png"):
        files[name] = damage(files[name])
    annotations, folder = _write(tmp_path, _document(), files)
    for source in (folder, _zip(tmp_path / "all.zip", files)):
        with pytest.raises(UserError, match=r"2 broken images \(the first: '2\.png'"):
            karpathy(annotations, source, size=8)


def test_a_damaged_zip_member_is_an_undecodable_image(tmp_path, mini, files):
    archive = _zip(tmp_path / "all.zip", files)
    data = bytearray(archive.read_bytes())
    data[data.index(files["4.png"]) + 50] ^= 255
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"1 broken image \('4\.png' \(BadZipFile"):
        karpathy(mini[0], archive, size=8)


def test_a_decompression_bomb_is_an_undecodable_image(tmp_path, files, monkeypatch):
    files["3.png"] = _png(_pixels(3, 40, 40))
    mini = _write(tmp_path, _document(), files)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"1 broken image \('3\.png' \(.*(DecompressionBomb|pixels)"):
        karpathy(*mini, size=8)


def test_size_and_limit_are_positive(mini):
    for wrong in ({"size": 0}, {"limit": 0}):
        with pytest.raises(UserError, match="at least 1"):
            karpathy(*mini, **wrong)
