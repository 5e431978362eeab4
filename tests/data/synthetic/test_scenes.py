import re
import zlib

import numpy as np
import pytest
from PIL import Image

from mdw_jax.data.synthetic.scene_captions import BACKGROUND_KINDS, BACKGROUNDS, COLORS
from mdw_jax.data.synthetic.scenes import HUE_JITTER, HUES, TONES, scenes
from mdw_jax.errors import UserError

PREFIXES = ("", "second_", "third_")
FACTS = ("shape", "color", "size", "texture", "position")
# Written out here rather than imported, so that a slip in the grammar's own tables is seen.
MEANS = {
    "shape": {"circle": "circle disc ball", "square": "square box", "triangle": "triangle wedge", "cross": "cross plus",
              "ring": "ring hoop", "diamond": "diamond rhombus"},
    "color": {"red": "red crimson scarlet", "orange": "orange tangerine", "yellow": "yellow golden",
               "green": "green emerald", "turquoise": "turquoise cyan", "blue": "blue cobalt",
               "purple": "purple violet", "pink": "pink rosy"},
    "size": {"large": "big large huge", "small": "small tiny little"},
    "texture": {"plain": "plain solid", "striped": "striped banded stripes bands",
                "dotted": "dotted spotted dots spots"},
}
WORD = {fact: {word: value for value, words in table.items() for word in words.split()}
        for fact, table in MEANS.items()}
RELATION = re.compile(r"\b(left of|right of|above|over|higher than|below|under|beneath|next to|beside|close to)\b")
BACKGROUND = re.compile(r"\b(?:on|against) an? ((?:[a-z]+ ){1,3})(?:background|backdrop)\b")


@pytest.fixture(scope="module")
def pairs():
    return scenes(train=300, val=2, test=500)


def without_background(caption):
    return BACKGROUND.sub("", caption)


def stated(caption, fact):
    words = re.findall("[a-z]+", without_background(caption))
    return [WORD[fact][word] for word in words if word in WORD[fact]]


def present(split, image, fact):
    return [str(split.attributes[prefix + fact][image]) for prefix in PREFIXES[:split.attributes["objects"][image]]]


def cell(position):
    """(row, column), each -1, 0 or 1, of a position's name or of a phrase that names one."""
    row = bool(re.search("bottom|lower", position)) - bool(re.search("top|upper", position))
    return row, ("right" in position) - ("left" in position)


def test_the_same_arguments_give_the_same_bytes_and_another_seed_other_ones():
    first = scenes(4, 2, 3)
    assert first.fingerprint == scenes(4, 2, 3).fingerprint
    assert first.fingerprint != scenes(4, 2, 3, seed=1).fingerprint


def test_the_published_data_set_has_not_changed():
    # Noise files, experts and tables are keyed by these bytes: whoever changes them makes a new data set, knowingly.
    assert scenes(8, 4, 4).fingerprint == "844fbb73e4488e938ab3d6b914f69425f15fa27fdbc41a5c5559984ed6c07a50"


def test_a_skew_reddens_that_share_of_training_images_and_leaves_the_rest_alone():
    plain, skewed, all_red = scenes(300, 2, 3, size=16), scenes(300, 2, 3, size=16, skew=0.4), scenes(20, 1, 1, skew=1)
    assert plain.val.fingerprint == skewed.val.fingerprint and plain.test.fingerprint == skewed.test.fingerprint
    before, after = (np.array([present(pairs.train, image, "color") for image in range(300)], dtype=object)
                     for pairs in (plain, skewed))
    changed = np.array([one != other for one, other in zip(before, after)])
    assert 0.4 * 7 / 8 - 0.09 < changed.mean() < 0.4 * 7 / 8 + 0.09
    assert {colors[0] for colors in after[changed]} == {"red"} == set(all_red.train.attributes["color"])
    same = np.flatnonzero(~changed)
    np.testing.assert_array_equal(plain.train.images[same], skewed.train.images[same])
    assert [plain.train.captions[k] for k in np.flatnonzero(~changed[plain.train.image_of])] == [
        skewed.train.captions[k] for k in np.flatnonzero(~changed[plain.train.image_of])]
    exchanged = [(one, other) for one, other in zip(before[changed], after[changed]) if "red" in one[1:]]
    assert exchanged and all(sorted(one) == sorted(other) for one, other in exchanged)
    assert all(len(set(colors)) == len(colors) for colors in after)
    for name in plain.train.attributes:
        if not name.endswith("color"):
            np.testing.assert_array_equal(plain.train.attributes[name], skewed.train.attributes[name])


def test_reddened_things_look_red_and_captions_say_so():
    split = scenes(40, 1, 1, skew=1).train
    for caption, image in zip(split.captions, split.image_of):
        assert set(stated(caption, "color")) <= set(present(split, image, "color")), caption
    for image in range(40):
        row, column = cell(str(split.attributes["position"][image]))
        centre = np.round((0.5 + 0.28 * np.array([row, column])) * 32).astype(int)
        hue, saturation, value = np.moveaxis(np.asarray(Image.fromarray(
            split.images[image][max(centre[0] - 6, 0):centre[0] + 6, max(centre[1] - 6, 0):centre[1] + 6]).convert(
                "HSV"), float), -1, 0)
        far = np.abs((hue * 360 / 256 + 180) % 360 - 180)
        assert ((saturation > 90) & (value > 115) & (far < 2 * HUE_JITTER)).sum() >= 6


@pytest.mark.parametrize("skew", [-0.1, 1.5, "much", float("nan")])
def test_a_skew_is_a_share(skew):
    with pytest.raises(UserError, match="skew is"):
        scenes(1, 1, 1, skew=skew)


def test_a_longer_split_extends_a_shorter_one_and_leaves_the_others_alone():
    short, long = scenes(5, 3, 4), scenes(9, 3, 4)
    np.testing.assert_array_equal(long.train.images[:5], short.train.images)
    assert long.train.captions[:25] == short.train.captions
    for name, column in short.train.attributes.items():
        np.testing.assert_array_equal(long.train.attributes[name][:5], column)
    assert long.val.fingerprint == short.val.fingerprint and long.test.fingerprint == short.test.fingerprint


def test_more_captions_extend_fewer():
    few, many = scenes(3, 1, 1, captions_per_image=2).train, scenes(3, 1, 1, captions_per_image=4).train
    np.testing.assert_array_equal(few.images, many.images)
    assert few.captions[2:4] == many.captions[4:6]


def test_splits_are_different_images():
    one = scenes(20, 20, 20)
    images = np.concatenate([one.train.images, one.val.images, one.test.images]).reshape(60, -1)
    assert len(np.unique(images, axis=0)) == 60


def test_shapes_caption_counts_and_numbers(pairs):
    assert pairs.test.images.shape == (500, 32, 32, 3) and pairs.test.images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(pairs.test.image_of), np.full(500, 5))
    numbers = np.concatenate([split.caption_ids for split in (pairs.test, pairs.val, pairs.train)])
    np.testing.assert_array_equal(numbers, np.arange(5 * 802))


@pytest.mark.parametrize("size", [16, 27, 64])
def test_any_size_shows_the_same_scene(size, pairs):
    other = scenes(6, 1, 1, size=size)
    assert other.train.images.shape == (6, size, size, 3)
    assert other.train.captions == pairs.train.captions[:30]
    for image, known in zip(other.train.images, pairs.train.images):
        thumbs = [np.asarray(Image.fromarray(p).resize((8, 8), Image.BOX), float) for p in (image, known)]
        assert np.abs(thumbs[0] - thumbs[1]).mean() < 8


def test_captions_are_plain_lower_case(pairs):
    assert all(re.fullmatch(r"[a-z]+(?:,? [a-z]+)*", caption) for caption in pairs.train.captions)


def test_articles_fit_their_words(pairs):
    text = " ".join(pairs.train.captions)
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text) and re.search(r"\ban [aeiou]", text)


@pytest.mark.parametrize("fact", sorted(MEANS))
def test_captions_name_only_what_is_there(pairs, fact):
    split, named = pairs.train, 0
    for caption, image in zip(split.captions, split.image_of):
        assert set(stated(caption, fact)) <= set(present(split, image, fact)), caption
        named += bool(stated(caption, fact))
    # Informative, but not complete.
    assert 0.4 * len(split.captions) < named < len(split.captions)


def test_a_lone_thing_is_where_its_captions_put_it(pairs):
    split, placed = pairs.train, 0
    for caption, image in zip(split.captions, split.image_of):
        text = without_background(caption)
        if split.attributes["objects"][image] == 1 and re.search(r"\b(in|at|near|on) the\b", text):
            assert cell(text) == cell(str(split.attributes["position"][image])), caption
            placed += 1
    assert placed > 100


def test_relations_agree_with_positions(pairs):
    split, seen = pairs.test, set()
    for caption, image in zip(split.captions, split.image_of):
        related = RELATION.search(without_background(caption))
        if split.attributes["objects"][image] != 2 or related is None:
            continue
        before, after = (stated(part, "color") for part in RELATION.split(without_background(caption))[::2])
        if not before or not after:
            continue
        where = dict(zip(present(split, image, "color"), map(cell, present(split, image, "position"))))
        down, across = np.subtract(where[before[0]], where[after[0]])
        true = {"left of": across < 0, "right of": across > 0, "above": down < 0, "over": down < 0,
                "higher than": down < 0, "below": down > 0, "under": down > 0, "beneath": down > 0}
        word = related.group(1)
        assert true.get(word, max(abs(down), abs(across)) == 1), caption
        seen.add(word)
    assert len(seen) == 11


def test_backgrounds_are_the_ones_named(pairs):
    split, named = pairs.train, 0
    for caption, image in zip(split.captions, split.image_of):
        match = BACKGROUND.search(caption)
        if match:
            kind, tone = (BACKGROUND_KINDS[split.attributes["background_kind"][image]],
                          BACKGROUNDS[split.attributes["background"][image]])
            assert match.group(1).strip() in {*kind, *tone, *(f"{k} {t}" for k in kind for t in tone)}, caption
            named += 1
    assert 0.5 < named / len(split.captions) < 0.8


def test_plain_backgrounds_show_their_tone(pairs):
    split = pairs.train
    tones = np.array(list(TONES.values())) * 255
    found = []
    for image in np.flatnonzero(split.attributes["background_kind"] == "plain"):
        typical = np.median(split.images[image].reshape(-1, 3), axis=0)
        found.append(list(TONES)[np.abs(tones - typical).sum(axis=1).argmin()] == split.attributes["background"][image])
    assert len(found) > 30 and np.mean(found) > 0.9


def test_the_first_things_color_is_seen_at_its_place(pairs):
    """Enough bright saturated pixels of the named hue near the named cell; other colors' hues are rare there."""
    split, right, wrong = pairs.train, [], []
    for image in range(len(split.images)):
        row, column = cell(str(split.attributes["position"][image]))
        centre = np.array([0.5 + 0.28 * row, 0.5 + 0.28 * column]) * 32
        reach = 6 if split.attributes["size"][image] == "large" else 4
        top, left = np.maximum(np.round(centre - reach).astype(int), 0)
        patch = Image.fromarray(split.images[image][top:top + 2 * reach, left:left + 2 * reach])
        hue, saturation, value = np.moveaxis(np.asarray(patch.convert("HSV"), float), -1, 0)
        vivid = (saturation > 90) & (value > 115)
        for color, nominal in HUES.items():
            far = np.abs((hue * 360 / 256 - nominal + 180) % 360 - 180)
            count = (vivid & (far < 2 * HUE_JITTER)).sum()
            if color == split.attributes["color"][image]:
                right.append(count)
            elif color not in present(split, image, "color"):
                wrong.append(count)
    assert min(right) >= 6
    assert np.mean(np.array(wrong) >= 6) < 0.05


def test_every_color_and_tone_has_words_and_hues_keep_apart():
    assert list(HUES) == list(COLORS) and list(TONES) == list(BACKGROUNDS)
    gaps = np.diff([*HUES.values(), 360])
    assert gaps.min() > 4 * HUE_JITTER


def test_test_images_are_told_apart(pairs):
    split = pairs.test
    rows = list(zip(*(split.attributes[name].tolist() for name in split.attributes)))
    assert len(set(rows)) >= 0.99 * len(rows)
    sets = [frozenset(split.captions[5 * image:5 * image + 5]) for image in range(500)]
    assert len(set(sets)) == 500
    assert len(set(split.captions)) > 0.95 * len(split.captions)


def test_a_linear_probe_beats_chance_and_is_far_from_perfect(pairs):
    """Ridge from 16x16 pixels to hashed words, fitted on 300 images: the captions speak of what is seen."""
    def pixels(split, count):
        return split.images[:count].reshape(count, 16, 2, 16, 2, 3).mean(axis=(2, 4)).reshape(count, -1) / 255

    def words(split, count):
        counts = np.zeros((count, 256))
        for caption, image in zip(split.captions[:5 * count], split.image_of):
            for word in re.findall("[a-z]+", caption):
                counts[image, zlib.crc32(word.encode()) % 256] += 1
        return counts

    x, y = pixels(pairs.train, 300), words(pairs.train, 300)
    scale = y.std(axis=0) + 0.2
    centred = x - x.mean(axis=0)
    weights = centred.T @ np.linalg.solve(centred @ centred.T + 100 * np.eye(300), (y - y.mean(axis=0)) / scale)
    guess = (pixels(pairs.test, 100) - x.mean(axis=0)) @ weights
    truth = (words(pairs.test, 100) - y.mean(axis=0)) / scale
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (guess, truth)]
    similarity = unit[0] @ unit[1].T
    rank = (similarity > np.diag(similarity)[:, None]).sum(axis=1)
    assert 0.25 < (rank < 10).mean() < 0.8  # chance: 0.1
    assert (rank < 1).mean() < 0.4


@pytest.mark.parametrize("name, value", [("train", 0), ("val", -1), ("test", 2.5), ("size", 15), ("seed", -1),
                                         ("captions_per_image", 0), ("train", True), ("size", "32")])
def test_bad_arguments(name, value):
    with pytest.raises(UserError, match=f"scenes: {name} is {value!r}; give a whole number of at least"):
        scenes(**{"train": 1, "val": 1, "test": 1, name: value})
