import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.data.stored_rows import SideBySide, create_rows, finished_rows
from mdw_jax.errors import UserError
from mdw_jax.method import caption_index, caption_search
from mdw_jax.method.caption_search import SEARCHES, sampled_captions, search_note, search_of, top_captions


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embeddings(images, captions, width=6, seed=0):
    generator = np.random.default_rng(seed)
    return unit(generator.normal(size=(images, width))), unit(generator.normal(size=(captions, width)))


def by_sorting(images, texts, k):
    return np.argsort(-(np.asarray(images, np.float32) @ np.asarray(texts, np.float32).T), 1, kind="stable")[:, :k]


@pytest.mark.parametrize("captions, k", [(3, 3), (64, 2), (130, 2), (1000, 5), (1000, 15)])
def test_the_nearest_are_those_of_sorting(captions, k):
    images, texts = embeddings(37, captions)
    np.testing.assert_array_equal(top_captions(jnp.asarray(images), jnp.asarray(texts), k), by_sorting(images, texts, k))


def test_blocks_of_both_sides_give_the_same(monkeypatch):
    images, texts = embeddings(50, 700)
    for name, size in (("_ON_CPU", (8, 192)), ("_READ", 20), ("_RESIDENT", 0)):
        monkeypatch.setattr(caption_search, name, size)
    np.testing.assert_array_equal(top_captions(images, texts, 4), by_sorting(images, texts, 4))


def test_of_equal_captions_the_first_is_found(monkeypatch):
    monkeypatch.setattr(caption_search, "_ON_CPU", (250, 256))
    images, texts = embeddings(20, 40)
    texts = np.tile(texts, (20, 1))
    found = top_captions(images, texts, 1)[:, 0]
    np.testing.assert_array_equal(found, by_sorting(images, texts[:40], 1)[:, 0])


def test_stored_embeddings_are_searched_in_half_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_search, "_ON_CPU", (250, 128))
    both = []
    for rows in embeddings(30, 300):
        parts = []
        for n, part in enumerate(np.split(rows, 2, axis=1)):
            file = create_rows(tmp_path / f"{len(rows)}-{n}.npy", part.shape)
            file[:] = part
            parts.append(finished_rows(file))
        both.append(SideBySide(parts, 0.5))
    images, texts = both
    np.testing.assert_array_equal(top_captions(images, texts, 3), by_sorting(images[:], texts[:], 3))


def test_a_sample_holds_other_captions_with_another_generator(monkeypatch):
    monkeypatch.setattr(caption_search, "SAMPLE", 50)
    images, texts = embeddings(30, 400)
    one, again, other = (sampled_captions(images, texts, 3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    rows = np.sort(np.random.default_rng(1).choice(400, 50, replace=False))
    np.testing.assert_array_equal(one, rows[by_sorting(images, texts[rows], 3)])
    assert (one != other).mean() > 0.5
    monkeypatch.setattr(caption_search, "SAMPLE", 400)
    np.testing.assert_array_equal(sampled_captions(images, texts, 3, None), by_sorting(images, texts, 3))


def test_auto_is_exact_as_long_as_that_is_cheap_and_then_says_what_it_is():
    assert search_of("auto", 113_000, 567_000) == "exact"  # COCO
    assert search_of("auto", 2_900_000, 2_900_000) == "sample" and search_of("exact", 2_900_000, 2_900_000) == "exact"
    assert search_note("auto", 1000, 5000) == search_note("exact", 10**7, 10**7) == search_note("sample", 100, 100) == ""
    assert "100,000 random captions of 2,900,000" in search_note("auto", 2_900_000, 2_900_000)
    assert "approximate index" in search_note("ann", 1000, 50_000)
    assert not search_note("ann", 1000, 5000)  # of so few the exact ones are found
    assert {"auto", *SEARCHES} == {"auto", "exact", "ann", "sample"}


def test_an_index_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(caption_search, "FEWEST", 10)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'mdw-jax\[ann\]', or set it to sample"):
        SEARCHES["ann"](*embeddings(5, 100), 2, np.random.default_rng(0))
    caption_search.require_search("auto", 5, 100)
    with pytest.raises(UserError, match="needs faiss"):
        caption_search.require_search("ann", 5, 100)


@pytest.mark.parametrize("width", [16, 200])  # the wider ones are reduced, and compared again in full
def test_an_index_finds_nearly_all(monkeypatch, width):
    pytest.importorskip("faiss")
    monkeypatch.setattr(caption_search, "FEWEST", 10)
    generator = np.random.default_rng(0)
    planes = generator.normal(size=(8, width))
    images, texts = (unit(generator.normal(size=(count, 8)) @ planes + 0.1 * generator.normal(size=(count, width)))
                     for count in (100, 3000))
    found, wanted = SEARCHES["ann"](images, texts, 5, np.random.default_rng(0)), by_sorting(images, texts, 5)
    assert found.min() >= 0 and np.mean([len({*a} & {*b}) / 5 for a, b in zip(found, wanted, strict=True)]) > 0.9


def test_images_whose_cells_are_almost_empty_are_searched_exactly(monkeypatch):
    monkeypatch.setattr(caption_search, "FEWEST", 10)
    images, texts = embeddings(6, 100)
    missing = np.full((6, 2), -1, np.int32)
    missing[0] = [7, 8]
    monkeypatch.setattr(caption_search, "indexed_captions", lambda *arguments: missing.copy())
    found = SEARCHES["ann"](images, texts, 2, None)
    np.testing.assert_array_equal(found[0], [7, 8])
    np.testing.assert_array_equal(found[1:], by_sorting(images, texts, 2)[1:])


def test_what_is_compared_again_is_ordered_by_its_full_similarity(monkeypatch):
    monkeypatch.setattr(caption_index, "_BYTES", 100)  # several parts
    images, texts = embeddings(9, 50)
    near = np.tile(np.arange(50), (9, 1))
    near[:, 40:] = -1
    np.testing.assert_array_equal(caption_index._compared_again(images, texts, near, 3), by_sorting(images, texts[:40], 3))
