import base64
import io
import sys

import numpy as np
import pytest
from PIL import Image

from mdw_jax.errors import UserError
from mdw_jax.models.embedding import nearest_captions
from mdw_jax.reporting.figures import curves, data_uri, identity_change_rgb, image_grid, overlay_weights, to_rgb


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def count(path, color, tolerance=2):
    """Pixels of one color (r, g, b in 0..255)."""
    return int((abs(pixels(path) - color) <= tolerance).all(-1).sum())


def test_nearest_captions_by_brute_force():
    generator = np.random.default_rng(0)
    texts, real = generator.normal(size=(150, 6)), generator.normal(size=(40, 6)) * generator.uniform(0.1, 9, (40, 1))
    real[7] = 0  # a caption without any known word
    captions = [f"caption {k}" for k in range(40)]

    def cosine(a, b):
        return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))) if b.any() else 0.0

    expected = [max(range(40), key=lambda k, t=text: cosine(t, real[k])) for text in texts]
    assert nearest_captions(texts, real, captions) == [captions[k] for k in expected]


def test_nearest_captions_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="8 features and real ones 6"):
        nearest_captions(np.ones((2, 8)), np.ones((3, 6)), ["a"] * 3)
    with pytest.raises(UserError, match="2 captions for 3"):
        nearest_captions(np.ones((2, 6)), np.ones((3, 6)), ["a"] * 2)


@pytest.mark.parametrize("channels, shown", [(1, (51, 51, 51)), (2, (102, 102, 102)), (3, (51, 153, 255)),
                                             (4, (153, 153, 153))])
def test_grid_shows_every_image_in_its_color(tmp_path, channels, shown):
    color = np.array([[0.2], [0.2, 0.6], [0.2, 0.6, 1.7], [0.2, 0.6, 0.7, 0.9]][channels - 1], np.float32)
    for m in (1, 2, 8):
        image_grid(np.broadcast_to(color, (m, 4, 4, channels)), ["words"] * m, tmp_path / f"{m}.png", columns=3)
    one = count(tmp_path / "1.png", shown)
    assert one > 150**2
    assert [count(tmp_path / f"{m}.png", shown) / one for m in (2, 8)] == pytest.approx([2, 8], rel=0.03)


def test_captions_stay_in_their_cell(tmp_path):
    """Long words, many words, dollars and braces neither fail nor run into the next image's space."""
    white = np.ones((2, 4, 4, 3), np.float32)
    awkward = "pays $5 {and_^$ 6 \\frac for a " + "wwmwwm" * 12 + " of very many words" * 20
    image_grid(white, [awkward, ""], tmp_path / "a.png")
    dark = (pixels(tmp_path / "a.png").sum(-1) < 300).any(0)
    assert dark[: len(dark) // 2].any() and not dark[len(dark) // 2:].any()


def test_the_change_of_the_identity_is_blank_and_a_change_has_the_color_of_its_sign():
    assert len(np.unique(identity_change_rgb(np.eye(6)).reshape(-1, 3), axis=0)) == 1
    for sign, strong, weak in ((0.2, 0, 2), (-0.2, 2, 0)):
        matrix = np.eye(6)
        matrix[2, 3] += sign
        drawn = identity_change_rgb(matrix).astype(int)
        [place] = np.argwhere(np.ptp(drawn, axis=-1) > 60)
        assert place.tolist() == [2, 3] and drawn[2, 3, strong] > drawn[2, 3, weak] + 60


def test_to_rgb_takes_every_kind_of_image():
    for shape in ((2, 4, 5, 3), (2, 4, 5, 1), (2, 4, 5, 2), (2, 3, 4, 5, 3)):
        images = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
        drawn = to_rgb(images)
        assert drawn.shape == (2, 4, 5, 3) and drawn.dtype == np.uint8
        assert abs(drawn - to_rgb(np.round(255 * images).astype(np.uint8)).astype(int)).max() <= 1
    rising = np.broadcast_to(np.linspace(0, 1, 8, dtype=np.float32)[None, :, None, None], (1, 8, 3, 1))
    assert to_rgb(rising, spectrogram=True).sum(-1)[0, 0, 0] > to_rgb(rising, spectrogram=True).sum(-1)[0, -1, 0]


def test_weights_is_brightest_where_weights_are():
    weights = np.ones((2, 6, 6), np.float16)
    weights[0, 1, 4] = 3
    drawn = overlay_weights(np.full((2, 6, 6, 3), 100, np.uint8), weights).sum(-1).astype(int)
    assert np.argwhere(drawn[0] == drawn[0].max()).tolist() == [[1, 4]] and np.ptp(drawn[1]) == 0


def test_data_uris_come_back():
    image = np.random.default_rng(0).integers(0, 256, (200, 100, 3)).astype(np.uint8)

    def opened(uri):
        head, data = uri.split(";base64,")
        return head, Image.open(io.BytesIO(base64.b64decode(data)))

    head, exact = opened(data_uri(image[:40]))
    assert head == "data:image/png" and (np.asarray(exact) == image[:40]).all()
    head, photo = opened(data_uri(image, 160))
    assert head == "data:image/jpeg" and photo.size == (80, 160)
    assert opened(data_uri(image, 400, photo=False))[0] == "data:image/png"


def test_curves_draw_each_series(tmp_path):
    blue, orange = (31, 119, 180), (255, 127, 14)
    steps, first, second = [0, 1, 2], [1.0, float("nan"), 2.0], [3.0, 2.0, 1.0]
    curves({"$a_$": (steps, first)}, tmp_path / "one.png", "$x_$", "$y_$", "$t_$")  # not mathematics, so no error
    curves({"a": (steps, first), "b": (steps, second)}, tmp_path / "two.png", "step", "loss", "Loss")
    curves({}, tmp_path / "none.png", "step", "loss", "Loss")
    assert count(tmp_path / "one.png", blue) > 30 and count(tmp_path / "one.png", orange) == 0
    assert count(tmp_path / "two.png", orange) > count(tmp_path / "two.png", blue) > 30  # no line across the gap
    assert count(tmp_path / "none.png", blue) == 0


def test_no_global_figure_state(tmp_path):
    curves({"a": ([0], [1])}, tmp_path / "a.png", "x", "y", "t")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
