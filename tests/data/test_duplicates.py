"""Groups of images that show the same, compared with brute force; hashes of copies that were compressed or resized."""

import importlib.util
import io
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from miniature import encoded, photo
from PIL import Image

from mdw_jax.data import duplicates
from mdw_jax.data.decoding import Encoded, content_digests
from mdw_jax.data.duplicates import groups, near_duplicate_groups, perceptual_hashes
from mdw_jax.data.encoded_columns import content_numbers
from mdw_jax.errors import UserError

needs_imagehash = pytest.mark.skipif(not importlib.util.find_spec("imagehash"), reason="imagehash is an extra")


def _brute_force(hashes, distance):
    group_of = list(range(len(hashes)))
    for i, one in enumerate(hashes):
        for j, other in enumerate(hashes[:i]):
            if one is not None and other is not None and (one ^ other).bit_count() <= distance:
                group_of = [group_of[j] if group == group_of[i] else group for group in group_of]
    return groups(np.array(group_of, np.uint64) + 1).tolist()


def _near(generator, count, most_bits):
    """`count` hashes in clusters of up to `most_bits` bits around a few, some of them None."""
    centers = generator.integers(0, 2**64, 8, dtype=np.uint64).tolist()
    hashes = []
    for _ in range(count):
        flipped = generator.choice(64, generator.integers(0, most_bits + 1), replace=False).tolist()
        value = centers[generator.integers(8)] ^ sum(1 << bit for bit in flipped)
        hashes.append(None if generator.random() < 0.05 else value)
    return hashes


def test_groups_are_numbered_as_they_occur():
    assert groups(np.array([9, 0, 5, 9, 0, 5, 7], np.uint64)).tolist() == [0, 1, 2, 0, 3, 2, 4]
    assert groups(np.zeros(0, np.uint64)).tolist() == []


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4, 7, 8, 12, 20, 33, 62, 63])
def test_near_duplicates_are_those_of_brute_force(distance):
    generator = np.random.default_rng(distance)
    for most_bits in (distance, min(64, distance + 3)):
        hashes = _near(generator, 70, most_bits)
        found = near_duplicate_groups(hashes, distance)
        assert found == _brute_force(hashes, distance)


def test_near_duplicates_whatever_is_equal_in_a_pair(monkeypatch):
    """For every choice of how many bands must be equal, and with pairs merged in many parts."""
    hashes = _near(np.random.default_rng(0), 60, 6)
    want = _brute_force(hashes, 4)
    for most_edges in (0, 5, 10**6):
        monkeypatch.setattr(duplicates, "_MOST_EDGES", most_edges)
        for most_tables in (0, 5, 15, 35, 70, 500):
            monkeypatch.setattr(duplicates, "_MOST_TABLES", most_tables)
            monkeypatch.setattr(math, "log2", lambda count: 0)  # so that more tables are always cheaper
            assert len(duplicates._masks(60, 4)) == max(
                [math.comb(4 + k, k) for k in range(1, 61) if math.comb(4 + k, k) <= most_tables], default=5)
            assert near_duplicate_groups(hashes, 4) == want
            monkeypatch.undo()
            monkeypatch.setattr(duplicates, "_MOST_EDGES", most_edges)


def test_chains_connect_and_the_smallest_cases():
    chain = [(1 << bits) - 1 for bits in range(0, 30, 3)]
    assert near_duplicate_groups(chain, 3) == [0] * 10 and near_duplicate_groups(chain, 2) == list(range(10))
    assert near_duplicate_groups([2**64 - 1, 0, 2**64 - 1, 2**63], 1) == [0, 1, 0, 1]
    assert near_duplicate_groups([], 4) == [] and near_duplicate_groups([None, 3, None], 4) == [0, 1, 2]
    for distance in (-1, 64):
        with pytest.raises(UserError, match=f"near-duplicates is {distance} bits; give 0 to 63"):
            near_duplicate_groups([1], distance)


def test_many_hashes_are_not_compared_pair_by_pair(monkeypatch):
    compared = []
    count_bits = np.bitwise_count
    monkeypatch.setattr(np, "bitwise_count", lambda bits: compared.append(len(bits)) or count_bits(bits))
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64).tolist()
    hashes += [hashes[0]] * 5000 + [value ^ 5 for value in hashes[1000:1100]]
    assert near_duplicate_groups(hashes, 4) == [*range(20_000), *[0] * 5000, *range(1000, 1100)]
    assert sum(compared) < 20_000**2 / 2 / 500


def _saved(image, kind, **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


@needs_imagehash
def test_copies_have_near_hashes_and_other_pictures_have_not():
    pictures = [Image.fromarray(photo(i, 240, 320)) for i in range(12)]
    forms = {
        "PNG": lambda picture: _saved(picture, "PNG"),
        "BMP": lambda picture: _saved(picture, "BMP"),
        "JPEG at quality 60": lambda picture: _saved(picture, "JPEG", quality=60),
        "half the size": lambda picture: _saved(picture.resize((160, 120)), "JPEG", quality=90),
        "three times the size": lambda picture: _saved(picture.resize((960, 720)), "JPEG", quality=80),
    }
    stored = [Encoded(f"{name} {i}", partial(bytes, form(picture)))
              for i, picture in enumerate(pictures) for name, form in forms.items()]
    with ThreadPoolExecutor(2) as pool:
        hashes = perceptual_hashes(stored, pool)
        contents = content_digests(stored, pool)
    assert near_duplicate_groups(hashes, 6) == [i for i in range(12) for _ in forms]
    of_contents = groups(content_numbers(contents))
    assert all(of_contents[row] == of_contents[row + 1] for row in range(0, 60, 5))  # PNG and BMP
    assert len(set(of_contents)) == 48


@needs_imagehash
def test_hashes_are_those_of_imagehash_and_broken_images_have_none():
    import imagehash

    square = Image.fromarray(photo(3, 64, 64))
    stored = [Encoded("0", partial(bytes, _saved(square, "PNG"))), Encoded("1", lambda: b"no image"),
              Encoded("2", partial(bytes, encoded(4)))]
    with ThreadPoolExecutor(2) as pool:
        first, broken, third = perceptual_hashes(stored, pool)
    assert f"{first:016x}" == str(imagehash.phash(square)) and broken is None and third is not None


def test_without_the_package_its_name_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match=r"imagehash: pip install 'mdw-jax\[dedup\]'"):
        perceptual_hashes([], pool)
