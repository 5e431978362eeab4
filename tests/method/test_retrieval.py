import numpy as np
import pytest
from goldens import assert_close, golden_files

from mdw_jax.io.scores import METRICS
from mdw_jax.method.retrieval import recalls


@pytest.mark.parametrize("path", golden_files("retrieval"), ids=lambda path: path.stem)
def test_recalls_match_golden(path):
    golden = np.load(path)
    expected = [golden[f"{side}_r{k}"] for side in ("img", "txt") for k in (1, 5, 10)] + [golden["r_mean"]]
    assert_close(recalls(golden["similarity"], golden["caption_to_image"]), np.array(expected), 1e-4)


def test_recalls_by_sorting():
    generator = np.random.default_rng(0)
    image_of = np.repeat(np.arange(30), 3)
    similarity = generator.normal(size=(30, 90)) + 2 * (image_of[None] == np.arange(30)[:, None])
    by_caption = [list(np.argsort(-similarity[:, k])).index(image_of[k]) for k in range(90)]
    by_image = [min(list(np.argsort(-similarity[i])).index(k) for k in range(90) if image_of[k] == i)
                for i in range(30)]
    expected = [100 * np.mean(np.array(rank) < k) for rank in (by_caption, by_image) for k in (1, 5, 10)]
    np.testing.assert_allclose(recalls(similarity, image_of)[:6], expected, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_collapsed_or_broken_model_scores_nothing(value):
    image_of = np.repeat(np.arange(20), 5)
    scores = dict(zip(METRICS, np.asarray(recalls(np.full((20, 100), value, np.float32), image_of)), strict=True))
    assert scores["r_mean"] == 0
