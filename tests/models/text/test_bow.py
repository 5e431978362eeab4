"""Bag-of-words features against bags counted by hand."""

import re
from collections import Counter

import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.models.text.bow import bow_features

CAPTIONS = ["A black dog is running after a white dog in the snow .", "Black dog chasing brown dog through snow",
            "Two dogs play together in the snow .", "A man in a red shirt climbs a rock", "a MAN climbs; a rock!",
            "rock " * 30 + "a man climbs"]


def _cosines(captions):
    """Cosines of the exact bags: a hash sign cancels in them, and few words hardly collide in 2**14 bins."""
    bags = []
    for caption in captions:
        words = re.findall(r"\w+", caption.lower())
        bags.append({word: 1 + np.log(n) for word, n in Counter(words + list(zip(words, words[1:]))).items()})
    words = {word: i for i, word in enumerate(sorted({w for bag in bags for w in bag}, key=repr))}
    rows = np.zeros((len(bags), len(words)))
    for row, bag in zip(rows, bags):
        for word, value in bag.items():
            row[words[word]] = value
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_cosines_are_those_of_the_bags_to_the_accuracy_of_the_projection():
    features = bow_features(CAPTIONS, dim=4000)
    assert features.shape == (6, 4000) and features.dtype == np.float32
    np.testing.assert_allclose(features @ features.T, _cosines(CAPTIONS), atol=4 / np.sqrt(4000))


def test_a_caption_has_the_same_unit_feature_whatever_stands_around_it():
    features = bow_features(CAPTIONS)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    crowd = bow_features([f"caption number {i}" for i in range(4095)] + CAPTIONS)  # straddles two chunks
    np.testing.assert_array_equal(crowd[4095:], features)


def test_case_and_punctuation_do_not_count_but_word_order_and_seed_do():
    a, b, c = bow_features(["A dog, a man", "a DOG a man!", "a man a dog"])
    np.testing.assert_array_equal(a, b)
    assert a @ c < 0.95
    assert abs(a @ bow_features(["a dog a man"], seed=1)[0]) < 0.3


def test_captions_without_words_have_a_unit_feature_too():
    empty, dots, word = bow_features(["", "...", "I"])
    np.testing.assert_array_equal(empty, dots)
    assert abs(np.linalg.norm(empty) - 1) < 1e-5 and abs(empty @ word) < 0.3


def test_a_width_below_one_is_refused():
    with pytest.raises(UserError, match="dim=0"):
        bow_features(CAPTIONS, dim=0)
