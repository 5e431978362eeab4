"""All images of a set in a page of bounded size."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mdw_jax.reporting.thumbnails import thumbnails


def images_of(count, side):
    """A function that gives rows of smooth images, and the list of how many it was asked for."""
    asked = []

    def images(rows):
        asked.append(len(rows))
        grid = np.mgrid[:side, :side].sum(0)[None, :, :, None] * np.array([1, 2, 3]) + 37 * rows[:, None, None, None]
        return (grid % 256).astype(np.uint8)
    return images, asked


def decoded(source):
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_what_fits_is_lossless_and_whole():
    images, _ = images_of(30, 16)
    drawn = thumbnails(images, 30, 1e6)
    assert len(drawn.sources) == 30 and drawn.words == "shown at their 16 pixels" and drawn.is_small
    np.testing.assert_array_equal(np.asarray(decoded(drawn.sources[7])), images(np.array([7]))[0])


@pytest.mark.parametrize("budget", [6e5, 2.5e5])
def test_a_thousand_large_images_fit_their_budget(budget):
    images, asked = images_of(300, 224)
    drawn = thumbnails(images, 300, budget)
    assert len(drawn.sources) == 300 and sum(map(len, drawn.sources)) <= 1.1 * budget
    side = max(decoded(drawn.sources[0]).size)
    assert side <= 112 and drawn.words == f"shown at {side} of 224 pixels, compressed (WebP)" and not drawn.is_small
    assert max(asked) <= 64  # as models see them, few at a time


def test_the_larger_the_budget_the_larger_the_images():
    images, _ = images_of(50, 224)
    sides = [max(decoded(thumbnails(images, 50, budget).sources[0]).size) for budget in (2e4, 5e4, 1e5, 1e6)]
    assert sides == sorted(sides) and sides[0] < sides[-1] == 112


def test_where_not_even_the_smallest_fit_as_many_as_fit_are_shown():
    images, _ = images_of(50, 64)
    drawn = thumbnails(images, 50, 2000)
    assert 1 <= len(drawn.sources) < 50 and sum(map(len, drawn.sources)) < 3000
    assert len(thumbnails(images, 50, 0).sources) == 1
