"""Images by their names: in directories and zip files, deeper than they are said to be, absent, and there twice."""

import os
import re
import unicodedata
import zipfile

import pytest

from mdw_jax.data import archives
from mdw_jax.data.archives import locate
from mdw_jax.data.decoding import checksum
from mdw_jax.data.problems import Problems
from mdw_jax.errors import UserError


def _files(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())
    return folder


def _zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name.encode())
    return path


def _read(names, images, **settings):
    """What is stored where each name is found."""
    return [None if image is None else image.read().decode()
            for image in locate([[name] if isinstance(name, str) else name for name in names], images, **settings)]


@pytest.fixture(params=["directory", "zip"])
def source(request, tmp_path):
    """Makes a directory or zip file that has these paths."""
    return lambda *paths: (_files(tmp_path / "pictures", *paths) if request.param == "directory" else
                           _zip(tmp_path / "pictures.zip", *paths))


def test_names_are_paths_or_ends_of_them(source):
    images = source("a.jpg", "b/c.jpg", "b/d/e.jpg", "b/d/ee.jpg", "f/d/e.jpg")
    names = ["a.jpg", "b/c.jpg", "c.jpg", "f/d/e.jpg", "ee.jpg", "d/ee.jpg", "./a.jpg", "d//ee.jpg"]
    assert _read(names, images) == ["a.jpg", "b/c.jpg", "b/c.jpg", "f/d/e.jpg", "b/d/ee.jpg", "b/d/ee.jpg", "a.jpg",
                                    "b/d/ee.jpg"]
    located = locate([["ee.jpg", "x"], ["no", "b/c.jpg"]], images)
    assert [image.key for image in located] == ["ee.jpg", "no"]
    assert {image.sum for image in located} <= {None, checksum(b"b/d/ee.jpg"), checksum(b"b/c.jpg")}


@pytest.mark.parametrize("name", [".jpg", "jpg", "d", "b", "b/", "", ".", "..", "../b/c.jpg", "/a.jpg", "/b/c.jpg", "A.jpg",
                                  "d/e", "e.jpg.", "x" * 5000, "a\0.jpg", "__MACOSX/a.jpg"])
def test_what_is_no_end_of_a_path_is_absent(source, name):
    problems = Problems()
    assert _read(["a.jpg", name], source("a.jpg", "b/c.jpg", "b/d/e.jpg"), problems=problems) == ["a.jpg", None]
    assert problems.counts == {"absent image": 1}


def test_a_directory_is_walked_through_once_and_only_if_it_must(tmp_path, monkeypatch):
    walks = []
    walk = os.walk
    monkeypatch.setattr(archives.os, "walk", lambda *args: walks.append(args) or walk(*args))
    _files(tmp_path / "one", *(f"{i}.jpg" for i in range(9)), "in/9.jpg", "in/10.jpg")
    _files(tmp_path / "two", *(f"{i}.png" for i in range(9)))
    both = [tmp_path / "one", tmp_path / "two"]
    assert _read(["3.jpg", "5.png"], both) == ["3.jpg", "5.png"] and not walks
    assert _read(["3.jpg", "9.jpg", "5.png", "10.jpg"], both) == ["3.jpg", "in/9.jpg", "5.png", "in/10.jpg"]
    assert len(walks) == 2


def test_the_likelier_name_counts_and_what_is_direct_counts_before_what_is_deep(tmp_path):
    _files(tmp_path, "train/x.jpg", "val/x.jpg", "y.jpg", "in/y.jpg", "deep/test/z.jpg", "deep/val/z.jpg")
    assert _read([["val/x.jpg", "x.jpg"], "y.jpg", ["test/z.jpg", "z.jpg"]], tmp_path) == [
        "val/x.jpg", "y.jpg", "deep/test/z.jpg"]
    archive = _zip(tmp_path / "all.zip", "train/x.jpg", "x.jpg")
    assert _read(["x.jpg", "train/x.jpg"], archive) == ["x.jpg", "train/x.jpg"]


@pytest.mark.parametrize("same", [True, False])
def test_images_in_two_places_are_refused(source, same):
    images = source("a/0.jpg", "b/0.jpg", "1.jpg")
    if same and images.is_dir():
        (images / "b/0.jpg").write_bytes((images / "a/0.jpg").read_bytes())
    with pytest.raises(UserError, match=r"^1 of 2 images are more than once in '.*' \(as '.*a/0.jpg' and '.*b/0.jpg'\), "
                                        "the first is '0.jpg'; leave one copy"):
        locate([["1.jpg"], ["0.jpg"]], images, Problems())


def test_one_file_that_two_sources_have_is_not_twice_there(tmp_path):
    _files(tmp_path, "a/b/c/0.jpg", "a/1.jpg")
    (tmp_path / "a/b/link.jpg").symlink_to(tmp_path / "a/1.jpg")
    (tmp_path / "a/link.jpg").symlink_to(tmp_path / "a/1.jpg")
    assert _read(["0.jpg", "link.jpg"], [tmp_path / "a", tmp_path / "a/b"]) == ["a/b/c/0.jpg", "a/1.jpg"]


def test_what_systems_add_is_no_image(source):
    images = source("pictures/0.jpg", "__MACOSX/pictures/._0.jpg", "__MACOSX/0.jpg", "pictures/._1.jpg", "pictures/1.jpg")
    assert _read(["0.jpg", "1.jpg"], images) == ["pictures/0.jpg", "pictures/1.jpg"]
    problems = Problems()
    assert _read(["._0.jpg", "._1.jpg"], images, problems=problems) == [None, None]


def test_links_to_directories_and_hidden_directories_are_not_walked(tmp_path):
    _files(tmp_path / "else", "0.jpg")
    images = _files(tmp_path / "images", "in/1.jpg", ".thumbnails/1.jpg")
    (images / "link").symlink_to(tmp_path / "else")
    (images / "in" / "loop").symlink_to(images)
    (images / "in" / "2.jpg").symlink_to(tmp_path / "nowhere")
    problems = Problems()
    assert _read(["0.jpg", "1.jpg", "2.jpg", "link/0.jpg"], images, problems=problems) == [None, "in/1.jpg", None, "0.jpg"]
    assert problems.counts == {"absent image": 2}


def test_names_do_not_lead_out(tmp_path, monkeypatch):
    _files(tmp_path, "secret.jpg", "images-2/x.jpg", "images/0.jpg")
    monkeypatch.chdir(tmp_path / "images")
    for images in (tmp_path / "images", "."):
        for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "../images-2/x.jpg", "a/../../secret.jpg"):
            with pytest.raises(UserError, match="lead out of a directory are not followed"):
                locate([[name]], images)
        assert _read(["../images/0.jpg", "no/../0.jpg", str(tmp_path / "images/0.jpg")], images) == ["images/0.jpg"] * 3


@pytest.mark.parametrize("there, name, hint", [
    ("in/Cat.JPG", "cat.jpg", r"\(there is 'in/Cat.JPG', spelled in other letters\)"),
    ("cat.png", "cat.jpg", r"\(there is 'cat.png', with another extension\)"),
    ("cat.jpeg", "Cat", r"\(there is 'cat.jpeg', with another extension\)"),
    ("in/cat.jpg", "out/cat.jpg", r"\(there is 'in/cat.jpg'\)"),
    ("in/cat.jpg", "in\\cat.jpg", r"\(there is 'in/cat.jpg'\)"),
    ("cat.jpg", "/home/me/cat.jpg", r"\(names that lead out .* not followed; there is 'cat.jpg'\)"),
    (unicodedata.normalize("NFD", "café.jpg"), unicodedata.normalize("NFC", "café.jpg"),
     r"\(there is '.*', spelled in other letters\)"),
    ("train.zip", "cat.jpg", r"\(there is 'train.zip'; zip files are read where data.images names them\)"),
    ("dog.jpg", "cat.jpg", ""),
])
def test_absent_images_are_counted_with_a_hint(source, there, name, hint):
    images, problems = source(there, "dog.png"), Problems()
    located = locate([["dog.png"], [name], ["gone.jpg"]], images, problems)
    assert [image and image.key for image in located] == ["dog.png", None, None]
    assert problems.counts == {"absent image": 2}
    name_of, name, hint = name, re.escape(name), f" {hint}" if hint else ""
    assert re.fullmatch(rf"'{name}' is not in '\S*pictures(\.zip)?'{hint}", problems.first["absent image"])
    with pytest.raises(UserError, match=rf"^2 of 3 images are not in '\S*', the first is '{name}'{hint}; check where"):
        locate([["dog.png"], [name_of], ["gone.jpg"]], images)


@pytest.mark.parametrize("table, column, command", [
    ("", "", "--url_list TABLE --input_format csv --url_col COLUMN --caption_col caption"),
    ("cc3m.tsv", "url", "--url_list cc3m.tsv --input_format tsv --url_col url --caption_col"),
    ("a b.csv.gz", "the url", "--url_list 'a b.csv.gz' --input_format csv.gz --url_col 'the url' --caption_col"),
    ("x.parquet", "URL", "--url_list x.parquet --input_format parquet --url_col URL --caption_col"),
])
def test_addresses_are_answered_by_the_command_that_fetches_them(tmp_path, table, column, command):
    _files(tmp_path, "0.jpg")
    for problems in (None, Problems()):
        with pytest.raises(UserError) as error:
            locate([["0.jpg"], ["HTTPS://example.org/1.jpg?x=1"]], tmp_path, problems, table=table, column=column)
        assert f"`img2dataset {command}" in str(error.value) and "--output_format webdataset" in str(error.value)
        assert "'HTTPS://example.org/1.jpg?x=1' is an address in the web" in str(error.value)


def test_zip_files_of_other_programs(tmp_path):
    backslashes = tmp_path / "windows.zip"
    with zipfile.ZipFile(backslashes, "w") as archive:
        archive.writestr("in\\0.jpg", b"pixels")
    assert _read(["in/0.jpg", "0.jpg"], backslashes) == ["pixels"] * 2
    folders = _zip(tmp_path / "folders.zip", "in/", "in/0.jpg/", "in/a/0.jpg")
    assert _read(["0.jpg"], folders) == ["in/a/0.jpg"]
    for name in ("../0.jpg", "in\\..\\..\\0.jpg", "/0.jpg"):
        with pytest.raises(UserError, match="a name that leads out of it"):
            locate([["0.jpg"]], _zip(tmp_path / "astray.zip", name))


def test_images_are_read_late_from_anywhere(tmp_path, monkeypatch):
    _files(tmp_path, "in/0.jpg", "in/a/1.jpg")
    monkeypatch.chdir(tmp_path)
    located = locate([["0.jpg"], ["1.jpg"]], "in")
    monkeypatch.chdir("/")
    assert [image.read() for image in located] == [b"in/0.jpg", b"in/a/1.jpg"]
