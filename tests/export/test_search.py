"""mdw search: what it finds, what it keeps, and what it says."""

import numpy as np
import pytest
from PIL import Image
from test_student import IMAGES, saved

from mdw_jax.errors import UserError
from mdw_jax.export.search_command import best, cache_of, embed_photos, photo_paths, search_command
from mdw_jax.export.student import Student, load_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("search")
    saved(root / "student")
    for number, image in enumerate(IMAGES):
        path = root / "photos" / ("deep" if number == 4 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (root / "photos" / "notes.txt").write_text("no photo")
    (root / "captions.txt").write_text("a dog\n\ntwo red squares\na cat\n")
    return root


def search(folder, *words, images=("photos",), captions=None, like=None, top="10", text=None):
    search_command([str(folder / "student"), *words], [str(folder / one) for one in images],
                   captions and str(folder / captions), like and str(folder / like), top, None, text)


def test_best_by_hand():
    assert best(np.array([1.0, 0]), np.array([[0, 1.0], [0.6, 0.8], [1, 0]]), 2) == [(2, 1.0), (1, pytest.approx(0.6))]


def test_a_sentence_finds_the_photos_of_largest_cosine(folder, capsys):
    search(folder, "a dog on a beach", top="3")
    lines = capsys.readouterr().out.splitlines()
    assert "5 photos (" in lines[0] and "nearest to 'a dog on a beach'" in lines[0]
    student = load_student(folder / "student")
    paths = photo_paths([str(folder / "photos")])
    cosines = student.embed_images(paths) @ student.embed_captions(["a dog on a beach"])[0]
    order = np.argsort(-cosines)[:3]
    assert lines[1:] == [f"  {cosines[row]:.3f}  {paths[row]}" for row in order]


def test_a_photo_finds_itself_and_captions(folder, capsys):
    search(folder, like="photos/2.png", top="1")
    assert capsys.readouterr().out.splitlines()[1] == f"  1.000  {folder}/photos/2.png"
    search(folder, images=(), captions="captions.txt", like="photos/2.png", top="2")
    lines = capsys.readouterr().out.splitlines()
    assert "3 captions; nearest to" in lines[0] and len(lines) == 3
    student = load_student(folder / "student")
    captions = ["a dog", "two red squares", "a cat"]
    cosines = student.embed_captions(captions) @ student.embed_images([folder / "photos" / "2.png"])[0]
    assert lines[1] == f"  {cosines.max():.3f}  {captions[cosines.argmax()]}"


def test_photos_are_embedded_once_by_what_they_hold(folder, tmp_path, monkeypatch):
    student, embedded = load_student(folder / "student"), []
    original = Student.embed_images
    monkeypatch.setattr(Student, "embed_images", lambda self, images: (
        embedded.append(len(images)) if isinstance(images, np.ndarray) else None, original(self, images))[1])
    for number in range(3):
        Image.fromarray(IMAGES[number]).save(tmp_path / f"{number}.png")
    (tmp_path / "3.jpg").write_bytes(b"broken")
    cache = cache_of(student, tmp_path / "kept")

    def embed():
        embedded.clear()
        found = embed_photos(student, photo_paths([str(tmp_path)]), cache)
        return found, sum(embedded)

    first, count = embed()
    assert count == 3 and first.kept == 0 and [path.name for path, _ in first.unreadable] == ["3.jpg"]
    (tmp_path / "0.png").rename(tmp_path / "9.png")  # a moved photo is known, a copy too
    (tmp_path / "8.png").write_bytes((tmp_path / "1.png").read_bytes())
    again, count = embed()
    assert count == 0 and again.kept == 4
    np.testing.assert_array_equal(again.embeddings[-1], first.embeddings[0])
    Image.fromarray(IMAGES[4]).save(tmp_path / "1.png")  # a changed one is not
    changed, count = embed()
    assert count == 1 and changed.kept == 3
    np.testing.assert_allclose(changed.embeddings[0], student.embed_images(IMAGES[4:])[0], atol=1e-6)
    cache.write_bytes(b"damaged")
    assert embed()[1] == 4 - 0  # four contents, all of them anew


@pytest.mark.parametrize(("words", "settings", "message"), [
    ((), {}, "say what to look for: a sentence in quotes, or --like PHOTO"),
    (("a dog",), {"like": "photos/1.png"}, "say what to look for.* not both"),
    (("a", "dog"), {}, "one sentence, not 3 words; put the sentence in quotes"),
    (("a dog",), {"images": ()}, "say what to search: --images DIR, or --captions FILE"),
    (("a dog",), {"captions": "captions.txt"}, "say what to search.* not both"),
    (("a dog",), {"top": "0"}, "--top must be a whole number of at least 1"),
    (("a dog",), {"images": ("nowhere",)}, "there is no '.*nowhere'"),
    (("a dog",), {"images": ("student",)}, "there are no photos in '.*student'"),
    ((" ",), {}, "the sentence is empty"),
    ((), {"like": "photos/none.png"}, "there is no photo"),
    (("a",), {"images": (), "captions": "none.txt"}, "cannot be read"),
])
def test_what_makes_no_search(folder, words, settings, message):
    with pytest.raises(UserError, match=message):
        search(folder, *words, **settings)
