"""Noise draws have the rates the literature's files have, and their files survive or are refused."""

import dataclasses

import numpy as np
import pytest

from mdw_jax.config import options
from mdw_jax.data.noise import PROTOCOLS, draw, load, read_index, save, write_index
from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.data.structured_noise import swap_similar
from mdw_jax.errors import UserError
from mdw_jax.runtime.rng import named_generator


def _split(n, per_image, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (n, 1, 1, 3), np.uint8)
    image_of = np.repeat(np.arange(n, dtype=np.int64), per_image)
    captions = tuple(f"caption {k}" for k in range(len(image_of)))
    return Split(images, captions, image_of, np.arange(len(image_of)))


def _pairs(n=4000, per_image=5, seed=0):
    return Pairs("mini", _split(n, per_image, seed), _split(1, 1), _split(1, 1))


@pytest.fixture(scope="module")
def pairs():
    return _pairs()


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6, 0.8, 1.0])
def test_image_level(pairs, rate):
    noise = draw(pairs, "image", rate, 0)
    assert rate - 4 / 4000 <= noise.true_rate <= rate  # a permutation has one fixed point on average
    rows = noise.image_of.reshape(4000, 5)
    assert np.all(rows == rows[:, :1])  # captions of an image stay together
    np.testing.assert_array_equal(np.sort(rows[:, 0]), np.arange(4000))
    assert np.mean(np.all(~noise.mismatched.reshape(4000, 5), axis=1)) == pytest.approx(1 - rate, abs=1e-3)


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.5, 0.6, 1.0])
def test_caption_level(pairs, rate):
    noise = draw(pairs, "caption", rate, 0)
    assert rate - 14 / 20000 <= noise.true_rate <= rate  # about 1 + 4 * rate rows find their own image again
    np.testing.assert_array_equal(np.sort(noise.image_of), pairs.train.image_of)
    right = np.mean(np.all(~noise.mismatched.reshape(4000, 5), axis=1))
    expected = (1 - rate) ** 5
    assert right == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 4000) + 1e-3)


def test_images_with_different_numbers_of_captions_move_whole():
    pairs = _pairs(60, np.arange(60) % 3 + 5)
    noise = draw(pairs, "image", 0.5, 3)
    destination = {}
    for image, moved in zip(noise.true_image_of, noise.image_of):
        assert destination.setdefault(image, moved) == moved
    assert sorted(destination.values()) == list(range(60)) and noise.true_rate > 0.3


def test_who_is_chosen_and_where_they_go_is_uniform():
    small = _pairs(4, 1)
    counts = np.zeros((4, 4))
    for seed in range(2000):
        counts[np.arange(4), draw(small, "image", 0.5, seed).image_of] += 1
    expected = np.where(np.eye(4), 0.75, 1 / 12)  # two of four are chosen, and they swap half of the time
    np.testing.assert_allclose(counts / 2000, expected, atol=5 * np.sqrt(0.75 * 0.25 / 2000))


@pytest.mark.parametrize("protocol", ["none", "image", "caption"])
def test_rate_zero_is_the_identity(pairs, protocol):
    noise = draw(pairs, protocol, 0.0, 5)
    assert noise.true_rate == 0 and np.array_equal(noise.image_of, pairs.train.image_of)


def test_draws_repeat_and_depend_on_the_seed_alone():
    pairs = _pairs(50)
    assert draw(pairs, "caption", 0.5, 1).sha256 == draw(pairs, "caption", 0.5, 1).sha256
    assert not np.array_equal(draw(pairs, "caption", 0.5, 1).image_of, draw(pairs, "caption", 0.5, 2).image_of)


def test_sha256_covers_every_field():
    noise = draw(_pairs(20), "caption", 0.5, 1)
    changed = {"protocol": "image", "rate": 0.4, "seed": 2, "fingerprint": "f" * 64, "image_of": noise.image_of[::-1],
               "true_image_of": noise.true_image_of[::-1]}
    assert set(changed) == {field.name for field in dataclasses.fields(noise)}
    shas = {dataclasses.replace(noise, **{name: value}).sha256 for name, value in changed.items()}
    assert len(shas | {noise.sha256}) == 7


@pytest.mark.parametrize("arguments, message", [(("images", 0.2, 0), "no noise protocol 'images'"),
                                                (("external", 0.2, 0), "no noise protocol 'external'"),
                                                (("image", 1.1, 0), "between 0 and 1, not 1.1"),
                                                (("image", float("nan"), 0), "between 0 and 1"),
                                                (("none", 0.2, 0), "'none' goes with rate 0"),
                                                (("image", 0.2, -1), "seed must be 0 or more")])
def test_draw_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        draw(_pairs(4), *arguments)


def test_save_and_load(tmp_path):
    pairs = _pairs(30)
    for protocol in ("image", "caption"):
        noise = draw(pairs, protocol, 0.3, 2**40)
        path = save(noise, tmp_path / "deep" / f"{protocol}.npz")
        back = load(path, pairs)
        assert back.sha256 == noise.sha256 and back.image_of.dtype == np.int64
        assert np.array_equal(back.mismatched, noise.mismatched)
        assert save(back, tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_load_refuses_another_data_set(tmp_path):
    pairs, other = _pairs(30), _pairs(30, seed=1)
    path = save(draw(pairs, "image", 0.5, 0), tmp_path / "noise.npz")
    with pytest.raises(UserError, match=f"{pairs.fingerprint[:12]}, but this one is {other.fingerprint[:12]}"):
        load(path, other)


def test_a_damaged_file_never_loads_as_something_else(tmp_path):
    noise = draw(_pairs(30), "caption", 0.5, 0)
    path = save(noise, tmp_path / "noise.npz")
    data = path.read_bytes()
    refused = 0
    for i in range(0, len(data), 3):  # a flip in the zip's dates or flags may pass, if the draw is unharmed
        path.write_bytes(data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1:])
        try:
            assert load(path).sha256 == noise.sha256
        except UserError:
            refused += 1
    assert refused > len(data) / 3 * 0.75
    for length in (0, 1, 4, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="not a noise file or is damaged"):
            load(path)


def test_load_refuses_what_is_no_noise_file(tmp_path):
    path = tmp_path / "noise.npz"
    with pytest.raises(UserError, match="cannot read .*No such file"):
        load(path)
    np.savez(path, image_of=np.arange(3))
    with pytest.raises(UserError, match="not a noise file"):
        load(path)
    np.savez(path, meta=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="not a noise file"):
        load(path)


def test_load_refuses_edited_contents(tmp_path):
    path = save(draw(_pairs(30), "caption", 0.5, 0), tmp_path / "noise.npz")
    with np.load(path) as file:
        entries = dict(file)
    entries["image_of"] = np.roll(entries["image_of"], 1)
    np.savez(path, **entries)
    with pytest.raises(UserError, match="do not match its sha256"):
        load(path)


@pytest.mark.parametrize("protocol, form, length", [("image", "image", 40), ("image", "caption", 200),
                                                    ("caption", "caption", 200)])
def test_index_files_round_trip(tmp_path, protocol, form, length):
    pairs = _pairs(40)
    noise = draw(pairs, protocol, 0.4, 1)
    path = write_index(noise, tmp_path / "index.npy", form)
    assert np.load(path).shape == (length,) and np.load(path).dtype == np.int64
    back = read_index(path, pairs)
    assert np.array_equal(back.image_of, noise.image_of) and np.array_equal(back.true_image_of, noise.true_image_of)
    assert (back.protocol, back.rate, back.fingerprint) == ("external", noise.true_rate, pairs.fingerprint)
    assert load(save(back, tmp_path / "noise.npz"), pairs).sha256 == back.sha256


def test_the_two_forms_of_one_draw_agree_with_the_repeat_of_the_literature(tmp_path):
    noise = draw(_pairs(40), "image", 0.4, 1)
    by_image = np.load(write_index(noise, tmp_path / "image.npy", "image"))
    np.testing.assert_array_equal(np.load(write_index(noise, tmp_path / "caption.npy", "caption")),
                                  np.repeat(by_image, 5))


def test_write_index_refuses(tmp_path):
    path = tmp_path / "index.npy"
    with pytest.raises(UserError, match="captions of one image to different images"):
        write_index(draw(_pairs(40), "caption", 0.4, 1), path, "image")
    with pytest.raises(UserError, match="no index form 'images'"):
        write_index(draw(_pairs(40), "image", 0.4, 1), path, "images")
    split = dataclasses.replace(_split(4, 1), image_of=np.array([1, 0, 2, 3]))  # as many captions, in another order
    with pytest.raises(UserError, match="would be read as one by caption"):
        write_index(draw(Pairs("one", split, split, split), "none", 0.0, 0), path, "image")
    assert not path.exists()


@pytest.mark.parametrize("index, message", [
    (np.arange(41), "41 entries, but the train split has 40 images and 200 captions"),
    (np.r_[np.arange(39), 40], "indices from 0 to 40, but there are 40 images"),
    (np.r_[-1, np.arange(1, 40)], "indices from -1 to 39"),
    (np.r_[np.arange(39), 0], "leaves 1 images without a caption, the first is image 39"),
    (np.zeros(200, np.int64), "leaves 39 images without a caption, the first is image 1"),
    (np.arange(40.0), "float64 .* not one row of integers"),
    (np.zeros((40, 5), np.int64), "not one row of integers"),
    (np.array([None] * 40), "not a readable .npy"),
])
def test_read_index_refuses(tmp_path, index, message):
    np.save(tmp_path / "index.npy", index, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        read_index(tmp_path / "index.npy", _pairs(40))


def test_read_index_refuses_other_files(tmp_path):
    path = tmp_path / "index.npy"
    with pytest.raises(UserError, match="cannot read"):
        read_index(path, _pairs(4))
    np.save(path, np.arange(40))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="not a readable .npy"):
        read_index(path, _pairs(40))
    with open(path, "wb") as file:
        np.savez(file, index=np.arange(40))
    with pytest.raises(UserError, match="an .npz, not one row"):
        read_index(path, _pairs(40))


def test_the_table_has_every_protocol():
    assert set(PROTOCOLS) == set(options.NOISE_PROTOCOLS)


def test_a_protocol_that_was_renamed_keeps_its_draws():
    noise = draw(_pairs(30), "near_duplicate", 0.5, 1)
    index = swap_similar(_pairs(30).train, 0.5, named_generator(1, "noise", "similar"))
    np.testing.assert_array_equal(noise.image_of, index[noise.true_image_of])
