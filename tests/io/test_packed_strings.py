"""`PackedStrings` behaves like a tuple of str, and a digest of it is that of the list."""

import json
import sys

import numpy as np
import pytest

from mdw_jax.io.files import digest
from mdw_jax.io.packed_strings import PackedStrings

TEXTS = ("a dog", "", "größer\n", "\U0001f415 \"x\"", "\ud800", "a dog")


def test_it_reads_as_a_tuple():
    packed = PackedStrings.of(TEXTS)
    assert packed == TEXTS and TEXTS == packed and list(TEXTS) == packed and packed != TEXTS[:-1]
    assert packed != (*TEXTS[:-1], "a cat") and packed != 3
    assert packed != (*TEXTS[:-1], None) and PackedStrings.of(["1"]) != [1]
    assert [packed[n] for n in range(-6, 6)] == [*TEXTS, *TEXTS] and packed[np.int64(2)] == TEXTS[2]
    assert packed[1:5:2] == TEXTS[1:5:2] and packed[np.array([5, 0, 3])] == (TEXTS[5], TEXTS[0], TEXTS[3])
    assert packed.index("größer\n") == 2 and "a dog" in packed and "dog" not in packed
    with pytest.raises(IndexError):
        packed[6]


def test_more_strings_than_one_block():
    many = [f"caption {n}" for n in range(10_000)]
    packed = PackedStrings.of(many)
    assert packed.tolist() == many and packed[5000:9000][-1] == many[8999]


@pytest.mark.parametrize("count", [0, 1, 4096, 4097, 9000])
def test_digests_do_not_tell_them_from_lists(count):
    texts = [f"{n} \u00e9\ud800\"" * (n % 3) for n in range(count)]
    packed = PackedStrings.of(texts)
    assert digest(packed) == digest(texts)
    assert digest("x", [packed, texts[:2], packed[:1]], 3) == digest("x", [texts, texts[:2], texts[:1]], 3)
    assert json.loads(json.dumps(packed.tolist())) == texts


def test_they_take_their_letters_and_twelve_bytes():
    texts = [f"a caption of forty letters, number {n:06}" for n in range(1000)]
    packed = PackedStrings.of(texts)
    bytes_of = len(packed._data) + packed._starts.nbytes + packed._lengths.nbytes
    assert bytes_of == 1000 * (len(texts[0]) + 12) < 0.6 * (sum(map(sys.getsizeof, texts)) + sys.getsizeof(texts))
