"""Images that no row of a table names are said, with their number and the first names."""

import json
import zipfile

import forms
import pytest

from mdw_jax.analysis.inspection import inspect_command
from mdw_jax.data.readers.folder import folder
from mdw_jax.data.readers.karpathy import karpathy
from mdw_jax.data.uncaptioned import uncaptioned_note


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("images, everywhere, found", [
    ("", False, ["d.jpg", "e.JPG"]),  # beside the table there may be other things
    ("", True, ["a.jpg", "d.jpg", "e.JPG", "f.jpg"]), ("photos", True, ["d.jpg", "e.JPG"])])
def test_what_is_counted(tmp_path, images, everywhere, found):
    _touch(tmp_path, "photos/b.jpg", "photos/deep/C.jpg", "photos/d.jpg", "photos/deep/e.JPG", "photos/notes.txt",
           "photos/._d.jpg", "photos/.cache/g.jpg", "venv/f.jpg", "a.jpg")
    [note] = uncaptioned_note(["photos/b.jpg", "photos\\deep\\./c.jpg"], tmp_path / images, "t.csv", everywhere)
    assert note.startswith(f"{len(found)} image files in no row of 't.csv' that can be read, so not used: '")
    assert all(name in note for name in found[:3]) and note.endswith(", ..." if len(found) > 3 else "'.")


def test_all_that_is_named_is_no_note(tmp_path):
    _touch(tmp_path, "a.jpg", "deep/b.jpg")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("top/c.jpg", b"")
    sources = [tmp_path, tmp_path / "p.zip"]
    assert uncaptioned_note(["/elsewhere/../a.jpg", "b.jpg", "c.jpg"], sources, "t.csv", True) == []
    [note] = uncaptioned_note([str(tmp_path / "a.jpg"), "deep/b.jpg"], sources, "t.csv", True)
    assert note == "1 image file in no row of 't.csv' that can be read, so not used: 'top/c.jpg'."


@pytest.mark.parametrize("directory", ["/elsewhere/photos/", "../x/", "val2014/", "C:\\photos\\"])
def test_names_with_the_directories_of_another_machine_are_those_of_their_files(tmp_path, directory):
    _touch(tmp_path, "a.jpg", "deep/B.jpg", "c.jpg")
    [note] = uncaptioned_note([f"{directory}a.jpg", f"{directory}b.jpg", "d.jpg"], tmp_path, "t.csv", True)
    assert note == "1 image file in no row of 't.csv' that can be read, so not used: 'c.jpg'."


def test_the_whole_file_system_is_not_looked_through(tmp_path, monkeypatch):
    _touch(tmp_path, "a.jpg", "b.jpg")
    monkeypatch.setattr("os.walk", lambda *args, **kwargs: pytest.fail("it is"))
    assert uncaptioned_note([str(tmp_path / "a.jpg")], "/", "t.csv", True) == []


def test_readers_and_inspect_say_it(tmp_path, capsys):
    forms.write_images(tmp_path, lambda i: f"{i}.jpg", range(6))
    rows = [{"image": f"{i}.jpg", "caption": "a", "split": ("train", "val", "test", "other")[i]} for i in range(4)]
    forms.write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    said = "2 image files in no row of 't.jsonl' that can be read, so not used: '4.jpg', '5.jpg'."
    assert said in folder(tmp_path / "t.jsonl", size=8).notes  # 3.jpg is of a split that is not read
    inspect_command([str(tmp_path)])
    assert f"note:      {said}" in capsys.readouterr().out


def test_karpathys_json_says_it(tmp_path):
    forms.write_images(tmp_path, lambda i: f"{i}.jpg", range(5))
    document = {"dataset": "x", "images": [
        {"filename": f"{i}.jpg", "split": ("train", "val", "test", "other")[i], "sentences": [{"raw": "a", "sentid": i}]}
        for i in range(4)]}
    (tmp_path / "d.json").write_text(json.dumps(document))
    notes = karpathy(tmp_path / "d.json", tmp_path, size=8).notes
    assert "1 image file in no row of 'd.json' that can be read, so not used: '4.jpg'." in notes
